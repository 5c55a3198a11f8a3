"""Masked tensors: zeros where nothing counts, and metrics over what does."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlaif.metrics import Max, Mean, Metric

__all__ = ["measure", "only"]


def only(tensor: Tensor, mask: Tensor) -> Tensor:
    """`tensor`, in float32 at least, with 0 where `mask` is False; done first, so that NaN reaches no gradient."""
    assert tensor.shape == mask.shape, (tensor.shape, mask.shape)
    return torch.where(mask, tensor.to(torch.promote_types(tensor.dtype, torch.float32)), 0.0)


@torch.no_grad()
def measure(mask: Tensor, means: dict[str, Tensor], maxima: dict[str, Tensor]) -> dict[str, Metric]:
    """Means and maxima over the masked entries; one transfer from the device for all of them."""
    if not mask.numel():
        return {name: Mean(0.0, 0) for name in means} | {name: Max(None) for name in maxima}
    parts = [mask.sum(dtype=torch.float64)]
    parts += [torch.where(mask, values.double(), 0.0).sum() for values in means.values()]
    parts += [torch.where(mask, values.double(), -math.inf).max() for values in maxima.values()]
    count, *numbers = torch.stack(parts).tolist()
    totals, peaks = numbers[: len(means)], numbers[len(means) :]
    metrics: dict[str, Metric] = {name: Mean(total, int(count)) for name, total in zip(means, totals, strict=True)}
    return metrics | {name: Max(peak if count else None) for name, peak in zip(maxima, peaks, strict=True)}
