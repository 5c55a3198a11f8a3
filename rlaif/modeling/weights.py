"""Weights on their way from the learner to the engines: manifest, buckets, checksums. Pure bytes and names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save


@dataclass(frozen=True)
class Manifest:
    """What a published set of weights holds: name -> (dtype, shape), in order, and one checksum over its buckets."""

    tensors: dict[str, tuple[str, tuple[int, ...]]]
    checksum: str


def checksum_bytes(data: bytes | memoryview) -> str:
    """Hex digest (BLAKE2b, 128 bit) of `data`."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def combined_checksum(checksums: Iterable[str]) -> str:
    """One checksum of the buckets' checksums, in order."""
    return checksum_bytes("".join(checksums).encode())


def buckets(tensors: Iterable[tuple[str, torch.Tensor]], max_bytes: int) -> Iterator[dict[str, torch.Tensor]]:
    """`tensors` in order, in dicts of at most `max_bytes` each; a tensor larger than that travels alone."""
    bucket: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in tensors:
        num_bytes = tensor.numel() * tensor.element_size()
        if bucket and size + num_bytes > max_bytes:
            yield bucket
            bucket, size = {}, 0
        bucket[name] = tensor
        size += num_bytes
    if bucket:
        yield bucket


def pack(tensors: Iterable[tuple[str, torch.Tensor]], max_bytes: int) -> tuple[Manifest, list[bytes]]:
    """The manifest and the safetensors buckets of `tensors` (CPU copies are made bucket by bucket)."""
    described: dict[str, tuple[str, tuple[int, ...]]] = {}
    packed: list[bytes] = []
    for bucket in buckets(tensors, max_bytes):
        ready = {name: tensor.detach().cpu().contiguous() for name, tensor in bucket.items()}
        described |= {name: (str(t.dtype).removeprefix("torch."), tuple(t.shape)) for name, t in ready.items()}
        packed.append(save(ready))
    return Manifest(described, combined_checksum(map(checksum_bytes, packed))), packed


def checkpoint_shapes(folder: str | Path) -> dict[str, tuple[int, ...]]:
    """name -> shape of every tensor in the safetensors files of a model folder; reads only their headers.

    Raises ValueError for a file that is cut short or none.
    """
    shapes: dict[str, tuple[int, ...]] = {}
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


def refuse_mismatch(manifest: Manifest, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raises ValueError unless `manifest` covers exactly the tensors of `shapes`.

    Checked before an engine is touched: a half-installed update leaves an engine without weights.
    """
    for name in sorted(manifest.tensors.keys() ^ shapes.keys()):
        where = "the engine's model" if name in shapes else "the published weights"
        raise ValueError(f"weights must name the same tensors on both sides, got {name} only in {where}")
    for name, (_, shape) in manifest.tensors.items():
        if shape != shapes[name]:
            raise ValueError(f"weight {name} must have shape {shapes[name]}, got {shape}")


def version_label(version: int, checksum: str) -> str:
    """How an engine is told which weights it holds."""
    return f"{version}:{checksum}"
