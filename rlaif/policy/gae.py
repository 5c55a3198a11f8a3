"""Advantages token by token: rewards to go, generalised advantage estimation, and whitening.

Tokens lie flat: those of row 0, then those of row 1 and so on, M in all, `num_tokens` telling them apart.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["discounted_sums", "gae", "whiten"]


def discounted_sums(values: Tensor, num_tokens: Tensor, factor: float) -> Tensor:
    """`[M]`: from each token to the end of its row, the sum of `values` discounted by `factor` a token.

        S_t = x_t + factor * S_{t+1},  S = 0 after the last token of a row

    values: `[M]` float. num_tokens: `[N]` int64, >= 0, which add up to M. factor: 0..1.
    """
    _check_flat(values, num_tokens)
    if not len(values):
        return values.clone()
    mask = torch.arange(int(num_tokens.max()), device=num_tokens.device) < num_tokens.unsqueeze(1)
    table = values.new_zeros(mask.shape).masked_scatter(mask, values).T.contiguous()
    for step in range(len(table) - 2, -1, -1):      # zeros stand behind the end of a row
        table[step] += factor * table[step + 1]
    return table.T[mask]


def gae(rewards: Tensor, values: Tensor, num_tokens: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns, `[M]` each, in the unit of the reward.

        delta_t = r_t + gamma V_{t+1} - V_t,  V = 0 after the last token
        A_t     = delta_t + gamma lam A_{t+1}
        R_t     = A_t + V_t

    rewards: `[M]` float, of each token. values: `[M]`, the critic's estimate of the reward to go before each token.
    num_tokens: `[N]` int64. gamma, lam: 0..1; lam = 1 is the discounted return less the value, lam = 0 the temporal
    difference. A completion that was cut ends like any other.

    Source: Schulman et al. 2016 (arXiv 1506.02438), eq. 16; returns: the PPO of OpenAI baselines.
    """
    assert values.shape == rewards.shape, (values.shape, rewards.shape)
    _check_flat(rewards, num_tokens)
    ends = num_tokens.cumsum(0)[num_tokens > 0] - 1
    following = torch.cat([values[1:], values.new_zeros(min(1, len(values)))]).index_fill(0, ends, 0.0)
    advantages = discounted_sums(rewards + gamma * following - values, num_tokens, gamma * lam)
    return advantages, advantages + values


def whiten(values: Tensor, is_counted: Tensor | None = None, *, eps: float = 1e-6) -> Tensor:
    """`values` `[K]` less their mean and over their standard deviation.

        (x - mean(x)) / (std(x) + eps)

    values: `[K]` float. is_counted: `[K]` bool, the entries that mean and deviation are taken of; None for all. The
    deviation is the sample one (n - 1). Where the counted values are equal, or a single one, everything is exactly 0.
    """
    counted = values if is_counted is None else values[is_counted]
    if not len(counted) or bool((counted == counted[0]).all()):     # their mean may differ in the last bit
        return torch.zeros_like(values)
    return (values - counted.mean()) / (counted.std() + eps)


def _check_flat(values: Tensor, num_tokens: Tensor) -> None:
    assert values.ndim == 1 and values.is_floating_point(), (values.shape, values.dtype)
    assert num_tokens.ndim == 1 and num_tokens.dtype == torch.int64, (num_tokens.shape, num_tokens.dtype)
    assert int(num_tokens.sum()) == len(values), (int(num_tokens.sum()), len(values))
