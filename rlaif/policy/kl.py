"""Estimators of KL(policy || reference) from one sampled token."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["KL_ESTIMATORS", "k1", "k2", "k3"]


def k1(log_ratio: Tensor) -> Tensor:
    return -log_ratio


def k2(log_ratio: Tensor) -> Tensor:
    return 0.5 * log_ratio**2


def k3(log_ratio: Tensor) -> Tensor:
    return torch.expm1(log_ratio) - log_ratio


# Estimators per token, in nats, from d = log reference - log policy at a sampled token. Source: Schulman 2020,
# Approximating KL Divergence; k3 is eq. 4 of DeepSeekMath (arXiv 2402.03300).
# k1 = -d           unbiased; as a loss its expected gradient is zero on the policy's own samples
# k2 = d^2 / 2      biased as a value, but its gradient is that of the KL
# k3 = e^d - d - 1  unbiased and never negative
KL_ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}
