"""What this GPU multiplies and copies at best, as torch does it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def seconds(task: Callable[[], object], repeats: int = 10) -> float:
    """Median seconds of `task` on the GPU, after three calls to warm up."""
    taken = []
    for number in range(repeats + 3):
        torch.cuda.synchronize()
        started = time.perf_counter()
        task()
        torch.cuda.synchronize()
        if number >= 3:
            taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def matrix_rate(dtype: torch.dtype, size: int = 8192) -> float:
    """Operations a second of a product of two square matrices."""
    left, right = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
    return 2 * size**3 / seconds(lambda: left @ right)


def copy_to_host_s(num_bytes: int, *, pinned: bool) -> float:
    """Seconds of a copy of `num_bytes` bytes from the GPU into memory that is there already."""
    there = torch.empty(num_bytes, dtype=torch.uint8, device="cuda")
    here = torch.zeros(num_bytes, dtype=torch.uint8, pin_memory=pinned)
    return seconds(lambda: here.copy_(there))
