"""Advantages without a critic: the completions of one prompt, a group, are compared with each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rlaif.metrics import Mean, Metric

__all__ = ["ADVANTAGES", "dr_grpo", "group_statistics", "grpo", "rloo"]


class _Groups(NamedTuple):
    """Per-group figures, each spread back to the rows of its group."""

    index: Tensor  # [N] int64, groups renumbered 0..G-1
    rewards: Tensor  # [N] float64
    size: Tensor  # [N] float64, rows in the group
    mean: Tensor  # [N] float64
    std: Tensor  # [N] float64, with size - 1 in the denominator; 0 where all rewards are equal
    is_equal: Tensor  # [N] bool, all rewards of the group are the same number


def grpo(rewards: Tensor, group_index: Tensor, *, eps: float = 1e-6) -> Tensor:
    """Advantages `[N]`, the reward in standard deviations of its group.

        A_i = (r_i - mean(r)) / (std(r) + eps)

    rewards: `[N]` float, any unit. group_index: `[N]` int64, equal for the rows of one group; any numbers,
    any order, groups of any size. A group whose rewards are all equal, and so also a group of one, gets
    exactly 0.

    Source: DeepSeekMath (Shao et al. 2024, arXiv 2402.03300), section 4.1.2, outcome supervision. The paper
    leaves the kind of standard deviation open; as in the common implementations it is the sample one (n - 1),
    with an eps.
    """
    groups = _groups(rewards, group_index)
    return _finish((groups.rewards - groups.mean) / (groups.std + eps), groups, rewards)


def dr_grpo(rewards: Tensor, group_index: Tensor) -> Tensor:
    """Advantages `[N]`, the reward less the mean of its group, in the unit of the reward.

        A_i = r_i - mean(r)

    Arguments and edges as in `grpo`. Dividing by the standard deviation would give more weight to prompts
    that are nearly always right or nearly always wrong.

    Source: Understanding R1-Zero-Like Training (Liu et al. 2025, arXiv 2503.20783), section 3.2. The other
    half of that method, the constant length normaliser, belongs to the loss.
    """
    groups = _groups(rewards, group_index)
    return _finish(groups.rewards - groups.mean, groups, rewards)


def rloo(rewards: Tensor, group_index: Tensor) -> Tensor:
    """Advantages `[N]`, the reward less the mean of the *other* rewards of its group.

        A_i = r_i - 1/(n - 1) * sum_{j != i} r_j = n / (n - 1) * (r_i - mean(r))

    In the unit of the reward; arguments and edges as in `grpo`. A group of one has no others and hence no
    baseline; it gets 0 (no learning signal) rather than its raw reward, which would be on another scale than
    all other advantages.

    Source: Back to Basics (Ahmadian et al. 2024, arXiv 2402.14740), the RLOO estimator, after Kool et al.
    2019, Buy 4 REINFORCE Samples, Get a Baseline for Free!
    """
    groups = _groups(rewards, group_index)
    scale = groups.size / (groups.size - 1).clamp(min=1)
    return _finish(scale * (groups.rewards - groups.mean), groups, rewards)


# name in the config -> (rewards [N], group_index [N]) -> advantages [N]
ADVANTAGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "rloo": rloo,
}


def group_statistics(rewards: Tensor, group_index: Tensor) -> dict[str, Metric]:
    """How much the groups have to teach, as metrics over groups (not over rows).

    `equal_reward_group_share`: share of groups whose rewards are all equal, which teach nothing (a group of
    one counts).
    `group_reward_std`: mean of the in-group sample standard deviation, in the unit of the reward.
    """
    groups = _groups(rewards, group_index)
    num_groups = int(groups.index.max()) + 1 if len(rewards) else 0
    weight = 1 / groups.size  # the rows of a group add up to one
    num_equal = (weight * groups.is_equal).sum().round()
    return {
        "equal_reward_group_share": Mean(float(num_equal), num_groups),
        "group_reward_std": Mean(float((weight * groups.std).sum()), num_groups),
    }


def _groups(rewards: Tensor, group_index: Tensor) -> _Groups:
    assert rewards.ndim == 1 and rewards.is_floating_point(), (rewards.shape, rewards.dtype)
    assert group_index.shape == rewards.shape, (group_index.shape, rewards.shape)
    assert group_index.dtype == torch.int64, group_index.dtype
    finite = torch.isfinite(rewards)
    if not finite.all():
        row = int((~finite).nonzero()[0])
        raise ValueError(
            f"rewards must be finite, got {float(rewards[row])} in row {row}; mend its reward function"
        )

    ids, index = torch.unique(group_index, return_inverse=True)
    wide = rewards.detach().double()
    zeros = wide.new_zeros(len(ids))
    size = zeros.index_add(0, index, torch.ones_like(wide))
    mean = zeros.index_add(0, index, wide) / size
    variance = zeros.index_add(0, index, (wide - mean[index]) ** 2) / (size - 1).clamp(min=1)
    # Compared as numbers: the mean of equal rewards may differ from them in the last bit.
    is_equal = zeros.scatter_reduce(0, index, wide, "amax", include_self=False) == zeros.scatter_reduce(
        0, index, wide, "amin", include_self=False
    )
    std = torch.where(is_equal, zeros, variance.sqrt())
    return _Groups(index, wide, size[index], mean[index], std[index], is_equal[index])


def _finish(advantages: Tensor, groups: _Groups, rewards: Tensor) -> Tensor:
    return torch.where(groups.is_equal, 0.0, advantages).to(rewards.dtype)
