"""Float32 products of learners on a CPU: by oneDNN where torch's usual library is slower, forward and backward."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch

__all__ = ["one_dnn_products", "prefers_one_dnn", "use_fast_products"]

ONE_DNN = "bf16"    # torch's name for it; what it does is looked at in prefers_one_dnn


def use_fast_products() -> bool:
    """Whether float32 products of this process go to oneDNN from now on; they do where `prefers_one_dnn`.

    Every product is meant, those of gradients, attention and training engines too, so nothing of torch is replaced.
    """
    if prefers_one_dnn():
        torch.backends.mkldnn.matmul.fp32_precision = ONE_DNN
    return prefers_one_dnn()


@contextlib.contextmanager
def one_dnn_products() -> Iterator[None]:
    """Inside, float32 products go to oneDNN; afterwards as before."""
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = ONE_DNN
    try:
        yield
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


@cache
def prefers_one_dnn() -> bool:
    """Whether oneDNN multiplies float32 matrices faster than MKL here, and as exactly.

    MKL keeps to its AVX2 kernels on processors that are not Intel's: on an AMD EPYC with AVX-512 oneDNN is 2.1 times as
    fast on linear layers and their gradients, 1.4 to 1.9 times on the small products of attention. torch asks oneDNN
    for float32 products only where they may be rounded to bfloat16 first. Processors with AMX alone do that, and the
    result is looked at: it must have float32's error.
    """
    usual = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    if not usual or torch.backends.cpu.get_cpu_capability() != "AVX512" or _vendor() != "AuthenticAMD":
        return False
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(128, 128, generator=generator) for _ in range(2))
    with one_dnn_products():
        error = (left @ right).double() - left.double() @ right.double()
    return bool(error.abs().max() < 1e-4)       # sums of 128 products: 1e-5 in float32, 0.1 in bfloat16


def _vendor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")
