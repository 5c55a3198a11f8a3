"""Advantages without a critic: completions are compared with the others of their prompt, a group, or of the batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rlaif.metrics import Mean, Metric
from rlaif.policy.gae import discounted_sums, whiten

__all__ = ["dr_grpo", "group_statistics", "grpo", "grpo_of_parts", "reinforce", "reinforce_pp",
           "reinforce_pp_baseline", "rloo"]


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


def grpo_of_parts(parts: Tensor, weights: Tensor, group_index: Tensor, *, eps: float = 1e-6) -> Tensor:
    """Advantages `[N]`: each part of the reward in standard deviations of its group, then added by weight.

        A_i = sum_k w_k (r_ik - mean(r_k)) / (std(r_k) + eps)

    parts: `[N, K]` float, any units; NaN where part k does not judge row i, which is then 0 for that row and no part
    of the group's mean and deviation. weights: `[K]` float. Otherwise as `grpo`. A part whose values in a group are
    all equal adds nothing there, however the others differ, and no part drowns another by its scale.

    Source: GDPO (Liu et al. 2026, arXiv 2601.05242). Its last step, normalising over the batch, is `whiten: batch`.
    """
    assert parts.ndim == 2 and weights.shape == parts.shape[1:], (parts.shape, weights.shape)
    total = parts.new_zeros(len(parts))
    for values, weight in zip(parts.unbind(1), weights, strict=True):
        judged = ~values.isnan()
        total[judged] += weight * grpo(values[judged], group_index[judged], eps=eps)
    return total


def reinforce_pp(token_rewards: Tensor, num_tokens: Tensor, *, gamma: float = 1.0, is_counted: Tensor | None = None,
                 eps: float = 1e-6) -> Tensor:
    """Advantages `[M]` of every token: the reward to go, normalised over the tokens of the whole batch.

        G_t = sum_{s >= t} gamma^(s - t) r_s,    A_t = (G_t - mean(G)) / (std(G) + eps)

    token_rewards: `[M]` float, flat as in `rlaif.policy.gae`: the reward at a completion's last token, less the KL
    penalty at every token. num_tokens: `[N]` int64. is_counted: `[M]` bool, tokens that mean and deviation are taken
    of; None for all.

    Source: REINFORCE++ (Hu et al. 2025, arXiv 2501.03262), its advantage without a baseline.
    """
    return whiten(discounted_sums(token_rewards, num_tokens, gamma), is_counted, eps=eps)


def reinforce_pp_baseline(rewards: Tensor, group_index: Tensor, *, is_counted: Tensor | None = None,
                          eps: float = 1e-6) -> Tensor:
    """Advantages `[N]`: the reward less the mean of its group, in standard deviations of the whole batch.

        A_i = (d_i - mean(d)) / (std(d) + eps),    d_i = r_i - mean(r over the group of i)

    Arguments as in `grpo`; is_counted: `[N]` bool, rows that the batch's mean and deviation are taken of; None for
    all. A group whose rewards are all equal gets exactly 0, though the batch's mean were not.

    Source: REINFORCE++ (Hu et al. 2025, arXiv 2501.03262), its form with a group baseline.
    """
    groups = _groups(rewards, group_index)
    difference = torch.where(groups.is_equal, 0.0, groups.rewards - groups.mean)
    return _finish(whiten(difference, is_counted, eps=eps), groups, rewards)


def reinforce(rewards: Tensor, baseline: float | None, *, is_counted: Tensor | None = None) -> Tensor:
    """Advantages `[N]`: the reward less a number that does not depend on this batch, in the unit of the reward.

        A_i = r_i - b

    rewards: `[N]` float. baseline: b, the running mean of the rewards of earlier steps; None at the first step, where
    the mean of the other rows of the batch stands in, and 0 if there are none. is_counted: `[N]` bool, rows that this
    mean is taken of; None for all.

    Source: Williams 1992, Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning.
    """
    if baseline is not None:
        return rewards - baseline
    counted = torch.ones_like(rewards) if is_counted is None else is_counted.to(rewards.dtype)
    total, others = (counted * rewards).sum(), counted.sum() - counted
    return rewards - (total - counted * rewards) / others.clamp(min=1)


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
