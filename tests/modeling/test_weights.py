import pytest
import torch
from safetensors.torch import load, save_file

from rlaif.modeling.weights import (
    Manifest,
    buckets,
    checkpoint_shapes,
    checksum_bytes,
    combined_checksum,
    pack,
    refuse_mismatch,
)


def tensors():
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (4, 8), "b": (3,), "c": (40, 10), "d": (2, 2, 2), "e": ()}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()} | {
        "f": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)}


@pytest.mark.parametrize("max_bytes", [1, 128, 140, 200, 1599, 1600, 1 << 20])
def test_buckets_keep_the_order_and_hold_at_most_max_bytes_unless_single(max_bytes):
    found = list(buckets(tensors().items(), max_bytes))
    assert [name for bucket in found for name in bucket] == list(tensors())
    sizes = [sum(tensor.nbytes for tensor in bucket.values()) for bucket in found]
    assert all(size <= max_bytes or len(bucket) == 1 for size, bucket in zip(sizes, found, strict=True))
    for size, following in zip(sizes, found[1:], strict=False):
        assert size + next(iter(following.values())).nbytes > max_bytes, "a bucket was closed too early"


def test_no_tensors_make_no_bucket():
    assert list(buckets([], 10)) == []


@pytest.mark.parametrize("max_bytes", [100, 1 << 20])
def test_packed_weights_come_out_bit_by_bit_and_as_the_manifest_says(max_bytes):
    manifest, packed = pack(tensors().items(), max_bytes)
    unpacked = {name: tensor for bucket in packed for name, tensor in load(bucket).items()}
    assert unpacked.keys() == tensors().keys()
    for name, tensor in tensors().items():
        assert torch.equal(unpacked[name], tensor) and unpacked[name].dtype == tensor.dtype
        assert manifest.tensors[name] == (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
    assert list(manifest.tensors) == list(tensors())


def test_a_view_that_is_not_contiguous_and_needs_a_gradient_is_packed_by_value():
    tensor = torch.arange(6.0).reshape(2, 3).requires_grad_()
    _, packed = pack([("t", tensor.T)], 100)
    assert torch.equal(load(packed[0])["t"], tensor.T)


def test_the_checksum_follows_every_bit_of_the_weights():
    manifest, packed = pack(tensors().items(), 200)
    assert pack(tensors().items(), 200)[0] == manifest
    assert manifest.checksum == combined_checksum(map(checksum_bytes, packed))
    changed = tensors()
    changed["c"].view(torch.int32)[39, 9] ^= 1
    assert pack(changed.items(), 200)[0].checksum != manifest.checksum


def test_the_order_of_buckets_is_part_of_the_checksum():
    assert combined_checksum(["a", "b"]) != combined_checksum(["b", "a"])


SHAPES = {"a": (2, 3), "b": (4,)}


def manifest_of(shapes):
    return Manifest({name: ("float32", shape) for name, shape in shapes.items()}, "0")


@pytest.mark.parametrize(
    ("published", "message"),
    [
        ({"a": (2, 3)}, "weights must name the same tensors on both sides, got b only in the engine's model"),
        (SHAPES | {"c": (1,)}, "weights must name the same tensors on both sides, got c only in the published weights"),
        (SHAPES | {"b": (5,)}, r"weight b must have shape \(4,\), got \(5,\)"),
        (SHAPES | {"a": (3, 2)}, r"weight a must have shape \(2, 3\), got \(3, 2\)"),
    ],
)
def test_weights_that_do_not_fit_the_model_are_refused_by_name(published, message):
    with pytest.raises(ValueError, match=message):
        refuse_mismatch(manifest_of(published), SHAPES)


def test_weights_in_another_order_fit():
    refuse_mismatch(manifest_of(dict(reversed(SHAPES.items()))), SHAPES)


def test_shapes_are_read_from_the_headers_of_all_files(tmp_path):
    items = list(tensors().items())
    save_file(dict(items[:3]), tmp_path / "model-00001-of-00002.safetensors", metadata={"format": "pt"})
    save_file(dict(items[3:]), tmp_path / "model-00002-of-00002.safetensors")
    assert checkpoint_shapes(tmp_path) == {name: tuple(tensor.shape) for name, tensor in items}


def test_a_file_that_was_cut_short_is_refused_by_name(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(tensors(), path)
    whole = path.read_bytes()
    for size, message in ((len(whole) - 1, f"got {path} with {len(whole) - 1} of {len(whole)} bytes"),
                          (40, f"weights must be safetensors, got {path}"), (0, f"got {path}, which is cut short")):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=message):
            checkpoint_shapes(tmp_path)
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match=f"weights must be safetensors, got {path}"):
        checkpoint_shapes(tmp_path)
