import itertools

import pytest
import torch
from safetensors.torch import save_file

from rlaif.modeling.weights import (
    Manifest,
    checkpoint_shapes,
    digest,
    fill,
    manifest_of,
    mark,
    plan_buckets,
    refuse_mismatch,
    taken_out,
    with_neighbours,
)


def tensors():
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (4, 8), "b": (3,), "c": (40, 10), "d": (2, 2, 2), "e": ()}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()} | {
        "f": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)}


def whole(**options):
    return manifest_of([(name, t.dtype, tuple(t.shape)) for name, t in tensors().items()], **options)


@pytest.mark.parametrize("max_bytes", [1, 128, 140, 200, 1600, 1700, 1 << 20])
def test_buckets_keep_the_order_and_hold_at_most_max_bytes_unless_single(max_bytes):
    found = plan_buckets(whole(), max_bytes)
    assert [part.name for bucket in found for part in bucket.parts] == list(tensors())
    assert all(bucket.num_bytes <= max_bytes or len(bucket.parts) == 1 for bucket in found)
    for bucket, following in itertools.pairwise(found):
        first = tensors()[following.parts[0].name].nbytes
        assert -(-bucket.num_bytes // 64) * 64 + first > max_bytes, "a bucket was closed too early"


def test_tensors_of_a_bucket_start_at_64_bytes_and_do_not_overlap():
    bucket, = plan_buckets(whole(), 1 << 20)
    ends = [part.start + tensors()[part.name].nbytes for part in bucket.parts]
    assert [part.start for part in bucket.parts] == [0, 128, 192, 1792, 1856, 1920]
    assert all(end <= part.start for end, part in zip(ends, bucket.parts[1:], strict=False))
    assert bucket.num_bytes == ends[-1] == 1932


def test_no_tensors_make_no_bucket():
    assert plan_buckets(Manifest({}), 10) == []


@pytest.mark.parametrize("max_bytes", [100, 1 << 20])
def test_weights_come_out_bit_by_bit_and_as_the_manifest_says(max_bytes):
    source, manifest, found = iter(tensors().items()), whole(), {}
    for bucket in plan_buckets(manifest, max_bytes):
        memory = torch.empty(bucket.num_bytes + 7, dtype=torch.uint8)
        marks = fill(bucket, source, memory)
        found |= {name: tensor.clone() for name, tensor in taken_out(bucket, memory, marks)}
    assert list(found) == list(tensors())
    for name, tensor in tensors().items():
        assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype
        assert manifest.tensors[name] == (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
    assert manifest.num_bytes == sum(tensor.nbytes for tensor in tensors().values())


def test_floats_are_cast_on_their_way_where_that_makes_them_smaller():
    half = whole(dtype=torch.bfloat16)
    assert {dtype for dtype, _ in half.tensors.values()} == {"bfloat16"}
    assert whole(dtype=torch.float32) == whole(), "a bfloat16 weight is not sent as more bytes than it has"
    bucket, = plan_buckets(half, 1 << 20)
    memory = torch.empty(bucket.num_bytes, dtype=torch.uint8)
    out = dict(taken_out(bucket, memory, fill(bucket, iter(tensors().items()), memory)))
    assert torch.equal(out["c"], tensors()["c"].bfloat16())


def test_a_view_that_is_not_contiguous_and_needs_a_gradient_is_filled_in_by_value():
    tensor = torch.arange(6.0).reshape(2, 3).requires_grad_()
    bucket, = plan_buckets(manifest_of([("t", torch.float32, (3, 2))]), 100)
    memory = torch.empty(24, dtype=torch.uint8)
    marks = fill(bucket, iter([("t", tensor.T)]), memory)
    assert torch.equal(dict(taken_out(bucket, memory, marks))["t"], tensor.T)


def test_a_weight_that_changed_on_its_way_is_refused_by_name():
    bucket, = plan_buckets(whole(), 1 << 20)
    memory = torch.empty(bucket.num_bytes, dtype=torch.uint8)
    marks = fill(bucket, iter(tensors().items()), memory)
    memory[bucket.parts[2].start + 5] ^= 16
    arrived = taken_out(bucket, memory, marks)
    assert [next(arrived)[0], next(arrived)[0]] == ["a", "b"]
    with pytest.raises(ValueError, match=f"weight c must arrive with mark {marks['c']:016x}, got "):
        next(arrived)


def test_weights_that_come_in_another_order_than_planned_are_a_bug():
    bucket, = plan_buckets(whole(), 1 << 20)
    with pytest.raises(AssertionError, match="b came in the place of a"):
        fill(bucket, iter([("b", tensors()["b"])]), torch.empty(bucket.num_bytes, dtype=torch.uint8))


def by_hand(words):
    """The mark of 64-bit words, in Python's own integers."""
    golden, other = 0x9E3779B97F4A7C15, 0x3C6EF372FE94F82A
    return sum(word * ((((n // 1024 + 1) * golden) | 1) + (n % 1024 + 1) * other)
               for n, word in enumerate(words)) % (1 << 64)


@pytest.mark.parametrize("num_words", [0, 1, 1023, 1024, 1025, 70 * 1024 + 3])
def test_the_mark_is_the_sum_that_its_formula_says(num_words):
    generator = torch.Generator().manual_seed(num_words)
    words = torch.randint(-(1 << 62), 1 << 62, (num_words,), generator=generator)
    assert mark(words) == by_hand(words.tolist())


def test_every_single_bit_of_a_tensor_changes_its_mark():
    tensor = tensors()["c"]
    before, bits = mark(tensor), tensor.view(torch.int32)
    for row, column in ((0, 0), (17, 3), (39, 9)):
        for bit in range(32):
            bits[row, column] ^= 1 << bit if bit < 31 else -(1 << 31)
            assert mark(tensor) != before, (row, column, bit)
            bits[row, column] ^= 1 << bit if bit < 31 else -(1 << 31)
    assert mark(tensor) == before


def test_the_mark_follows_the_place_of_values_and_not_that_of_the_memory():
    tensor = torch.randn(9000, generator=torch.Generator().manual_seed(1))
    swapped = tensor.clone()
    swapped[[2, 8000]] = tensor[[8000, 2]]
    assert mark(swapped) != mark(tensor)
    assert len({mark(tensor.roll(n)) for n in (0, 1, 2, 2048)}) == 4
    shifted = torch.cat([torch.zeros(1), tensor])[1:]
    assert shifted.data_ptr() % 8 == 4 and mark(shifted) == mark(tensor)


def test_the_digest_follows_every_name_dtype_shape_and_mark_and_no_order():
    manifest, marks = whole(), {name: mark(tensor) for name, tensor in tensors().items()}
    found = digest(manifest, marks)
    assert len(found) == 32 and digest(Manifest(dict(reversed(manifest.tensors.items()))), marks) == found
    others = [
        digest(manifest, marks | {"c": marks["c"] ^ 1}),
        digest(Manifest(manifest.tensors | {"a": ("float32", (8, 4))}), marks),
        digest(Manifest(manifest.tensors | {"f": ("float16", (2, 3))}), marks),
        digest(manifest, marks | {"a": marks["b"], "b": marks["a"]}),
    ]
    assert len({found, *others}) == 5
    with pytest.raises(AssertionError, match="every weight must have a mark"):
        digest(manifest, {name: marks[name] for name in "abc"})


NAMES = ["model.embed_tokens.weight",
         *(f"model.layers.{n}.{part}" for n in (0, 1) for part in (
             "self_attn.q_proj.weight", "self_attn.q_proj.bias", "self_attn.k_proj.weight", "self_attn.v_proj.weight",
             "self_attn.o_proj.weight", "mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight",
             "input_layernorm.weight", "post_attention_layernorm.weight")),
         "model.norm.weight", "lm_head.weight"]


def test_a_changed_projection_takes_along_what_engines_fuse_it_with_and_nothing_else():
    found = with_neighbours(["model.layers.1.self_attn.v_proj.weight"], NAMES)
    assert found == [name for name in NAMES if name.startswith("model.layers.1.self_attn.")] and len(found) == 5
    assert with_neighbours(["model.layers.0.mlp.down_proj.weight"], NAMES) == [
        f"model.layers.0.mlp.{part}_proj.weight" for part in ("gate", "up", "down")]


def test_a_changed_weight_of_the_model_itself_goes_alone_and_all_are_all():
    assert with_neighbours(["lm_head.weight", "model.norm.weight"], NAMES) == NAMES[-2:]
    assert with_neighbours(NAMES, NAMES) == NAMES
    assert with_neighbours([], NAMES) == []


SHAPES = {"a": (2, 3), "b": (4,)}


def manifest_with(shapes, dtype="float32", **options):
    return Manifest({name: (dtype, shape) for name, shape in shapes.items()}, **options)


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
    manifest = manifest_with(published)
    with pytest.raises(ValueError, match=message):
        refuse_mismatch(manifest, SHAPES, manifest.num_bytes)


@pytest.mark.parametrize("dtype", ["float33", "int8", "load"])
def test_weights_of_a_dtype_that_no_weight_has_are_refused(dtype):
    with pytest.raises(ValueError, match=f"weight a must have a floating-point dtype, got {dtype}"):
        refuse_mismatch(manifest_with(SHAPES, dtype), SHAPES, 40)


def test_weights_of_another_size_than_their_shapes_say_are_refused():
    with pytest.raises(ValueError, match="weights must have 40 bytes by their shapes, got 44"):
        refuse_mismatch(manifest_with(SHAPES), SHAPES, 44)


def test_weights_in_another_order_fit_and_so_do_some_of_them_where_they_are_said_to_be():
    refuse_mismatch(manifest_with(dict(reversed(SHAPES.items()))), SHAPES, 40)
    refuse_mismatch(manifest_with({"b": (4,)}, is_partial=True), SHAPES, 16)
    with pytest.raises(ValueError, match="got c only in the published weights"):
        refuse_mismatch(manifest_with({"c": (4,)}, is_partial=True), SHAPES, 16)


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
