"""Weights on their way from the learner to the engines: what travels, in which buckets, and how it is known again.

    manifest -> buckets (planned before anything is gathered) -> fill -> marks -> taken out and checked -> digest

Pure bytes and names; who carries the buckets is the business of actors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

Shape = tuple[int, ...]

_ALIGN = 64         # bytes; where a tensor starts in a bucket
_ROW = 1024         # 64-bit words: see `mark`
_ROWS_AT_ONCE = 64  # 512 KiB stay in a core's cache between the two sums
_GOLDEN, _OTHER = 0x9E3779B97F4A7C15 - (1 << 64), 0x3C6EF372FE94F82A


@dataclass(frozen=True)
class Manifest:
    """What a set of weights holds: name -> (dtype as it travels, shape), in order.

    is_partial: the rest has not changed since a whole set was sent.
    """

    tensors: dict[str, tuple[str, Shape]]
    is_partial: bool = False

    @cached_property
    def num_bytes(self) -> int:
        """Bytes of the tensors alone, without what aligns them in a bucket."""
        return sum(_num_bytes(*entry) for entry in self.tensors.values())


@dataclass(frozen=True)
class Part:
    """One tensor of a bucket, at byte `start` of it."""

    name: str
    dtype: str
    shape: Shape
    start: int


@dataclass(frozen=True)
class Bucket:
    """Tensors that travel together in `num_bytes` bytes."""

    parts: tuple[Part, ...]
    num_bytes: int


def manifest_of(shapes: Iterable[tuple[str, torch.dtype, Shape]], dtype: torch.dtype | None = None,
                names: Iterable[str] | None = None) -> Manifest:
    """The manifest of weights of these names, dtypes and shapes, of `names` alone where given.

    dtype: what floating-point tensors are cast to on their way, where that makes them smaller: bfloat16 for an engine
    that keeps bfloat16. A smaller one travels as it is, and the engine casts.
    """
    chosen = None if names is None else set(names)
    found = {name: (_travels(own, dtype), tuple(shape)) for name, own, shape in shapes
             if chosen is None or name in chosen}
    return Manifest(found, is_partial=chosen is not None)


def _travels(own: torch.dtype, wanted: torch.dtype | None) -> str:
    shrinks = wanted is not None and own.is_floating_point and wanted.itemsize < own.itemsize
    return str(wanted if shrinks else own).removeprefix("torch.")


def plan_buckets(manifest: Manifest, max_bytes: int) -> list[Bucket]:
    """The tensors of `manifest` in order, in buckets of at most `max_bytes`; a larger tensor travels alone.

    Known before a tensor is gathered: both sides can set memory aside, two times the largest of these.
    """
    found: list[Bucket] = []
    parts: list[Part] = []
    size = 0
    for name, (dtype, shape) in manifest.tensors.items():
        num_bytes = _num_bytes(dtype, shape)
        start = -(-size // _ALIGN) * _ALIGN
        if parts and start + num_bytes > max_bytes:
            found.append(Bucket(tuple(parts), size))
            parts, start = [], 0
        parts.append(Part(name, dtype, shape, start))
        size = start + num_bytes
    if parts:
        found.append(Bucket(tuple(parts), size))
    return found


def fill(bucket: Bucket, weights: Iterator[tuple[str, Tensor]], memory: Tensor) -> dict[str, int]:
    """Copies the next of `weights`, from any device, cast as they travel, to their places in `memory`, uint8 on the
    CPU; returns their marks. One tensor at a time is asked for, and none is kept.

    Raises AssertionError where `weights` are others than the bucket's.
    """
    marks = {}
    for part in bucket.parts:
        name, tensor = next(weights)
        assert (name, tuple(tensor.shape)) == (part.name, part.shape), f"{name} came in the place of {part.name}"
        target = _inside(part, memory)
        target.copy_(tensor.detach())
        marks[name] = mark(target)
    return marks


def taken_out(bucket: Bucket, memory: Tensor, marks: Mapping[str, int]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of `bucket` as they lie in `memory`, each checked against its mark before it is given.

    They are views: whoever fills the memory anew changes them. Raises ValueError for a tensor with another mark.
    """
    for part in bucket.parts:
        tensor = _inside(part, memory)
        found = mark(tensor)
        if found != marks[part.name]:
            raise ValueError(f"weight {part.name} must arrive with mark {marks[part.name]:016x}, got {found:016x}")
        yield part.name, tensor


def _inside(part: Part, memory: Tensor) -> Tensor:
    piece = memory[part.start:part.start + _num_bytes(part.dtype, part.shape)]
    return piece.view(getattr(torch, part.dtype)).view(part.shape)


def _num_bytes(dtype: str, shape: Shape) -> int:
    return getattr(torch, dtype).itemsize * torch.Size(shape).numel()


def mark(tensor: Tensor) -> int:
    """A 64-bit number that changes with every bit and place of `tensor`, computed where it lies, at the memory's speed.

        h = sum_ij w_ij (a_i + b_j)  mod 2^64

    w: the bytes as 64-bit words (zeros at the end) in rows of 1024; a odd, b even, so that a change of any one word
    changes h for certain, and of several with probability 1 - 2^-64 about. It is no protection from ill will.

    Source: the multilinear hash of Carter and Wegman 1979, with a matrix of multipliers that is a sum of two vectors.
    """
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    whole = flat.numel() // (8 * _ROW) * 8 * _ROW
    words = flat[:whole]
    if words.data_ptr() % 8 or words.storage_offset() % 8:
        words = words.clone()
    columns = torch.zeros(_ROW, dtype=torch.int64, device=tensor.device)
    sums = []
    for piece in words.view(torch.int64).view(-1, _ROW).split(_ROWS_AT_ONCE) if whole else ():
        columns += piece.sum(0)
        sums.append(piece.sum(1))
    if whole < flat.numel():
        last = torch.zeros(8 * _ROW, dtype=torch.uint8, device=tensor.device)
        last[:flat.numel() - whole] = flat[whole:]
        columns += last.view(torch.int64)
        sums.append(last.view(torch.int64).sum().view(1))
    if not sums:
        return 0
    rows = torch.cat(sums)
    first = torch.arange(1, len(rows) + 1, device=tensor.device) * _GOLDEN | 1
    second = torch.arange(1, _ROW + 1, device=tensor.device) * _OTHER     # _OTHER is even
    return int((rows * first).sum() + (columns * second).sum()) % (1 << 64)


def digest(manifest: Manifest, marks: Mapping[str, int]) -> str:
    """32 hex digits (BLAKE2b, 128 bit) of all weights: of their names, dtypes, shapes and marks, whatever the order.

    Raises AssertionError where a weight has no mark.
    """
    assert manifest.tensors.keys() == marks.keys(), "every weight must have a mark, and no other"
    lines = [f"{name} {dtype} {list(shape)} {marks[name]:016x}\n"
             for name, (dtype, shape) in sorted(manifest.tensors.items())]
    return hashlib.blake2b("".join(lines).encode(), digest_size=16).hexdigest()


def with_neighbours(changed: Iterable[str], names: Sequence[str]) -> list[str]:
    """Those of `names`, in their order, that an engine must be given together if it is given `changed`.

    Engines fuse layers that stand side by side (q, k and v; gate and up) into one, which takes weights as a whole:
    with model.layers.0.self_attn.q_proj.weight go all weights below model.layers.0.self_attn. A weight of the model
    itself goes alone.
    """
    above = {_above(name) for name in changed}
    found = set(changed)
    return [name for name in names if name in found or (_above(name) and _above(name) in above)]


def _above(name: str) -> str:
    """The module that holds the layer of weight `name`; nothing where that layer is not inside two modules at least."""
    pieces = name.split(".")[:-2]
    return ".".join(pieces) if len(pieces) > 2 else ""


def refuse_mismatch(manifest: Manifest, shapes: Mapping[str, Shape], num_bytes: int) -> None:
    """Raises ValueError unless `manifest` covers exactly the tensors of `shapes`, or some of them where it is partial,
    with dtypes that exist, in `num_bytes` bytes.

    Checked before an engine is touched: a half-installed update leaves an engine without weights.
    """
    for name in sorted(manifest.tensors.keys() ^ shapes.keys()):
        if name in manifest.tensors:
            raise ValueError(f"weights must name the same tensors on both sides, got {name} only in the published "
                             "weights")
        if not manifest.is_partial:
            raise ValueError(f"weights must name the same tensors on both sides, got {name} only in the engine's model")
    for name, (dtype, shape) in manifest.tensors.items():
        if tuple(shape) != tuple(shapes[name]):
            raise ValueError(f"weight {name} must have shape {shapes[name]}, got {shape}")
        if not isinstance(getattr(torch, dtype, None), torch.dtype) or not getattr(torch, dtype).is_floating_point:
            raise ValueError(f"weight {name} must have a floating-point dtype, got {dtype}")
    if manifest.num_bytes != num_bytes:
        raise ValueError(f"weights must have {manifest.num_bytes} bytes by their shapes, got {num_bytes}")


def version_label(version: int, checksum: str) -> str:
    """How an engine is told which weights it holds."""
    return f"{version}:{checksum}"


def checkpoint_shapes(folder: str | Path) -> dict[str, Shape]:
    """name -> shape of every tensor in the safetensors files of a model folder; reads only their headers.

    Raises ValueError for a file that is cut short or none.
    """
    shapes: dict[str, Shape] = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        size = path.stat().st_size
        with path.open("rb") as file:
            header_size = int.from_bytes(file.read(8), "little")
            header = file.read(min(header_size, size))
        try:
            tensors = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        except ValueError:
            raise ValueError(f"weights must be safetensors, got {path}, which is cut short or none") from None
        whole = 8 + header_size + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        if size != whole:
            raise ValueError(f"weights must be whole, got {path} with {size} of {whole} bytes; copy it again")
        shapes |= {name: tuple(entry["shape"]) for name, entry in tensors.items()}
    return shapes
