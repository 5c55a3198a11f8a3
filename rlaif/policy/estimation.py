"""From the rewards of a step to the advantage of every token: the one entry point, pure and the same on every rank.

    rewards - penalties -> advantages (ESTIMATORS) -> whitening -> filters -> one number a token
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlaif.config.algorithm import TOKEN_ADVANTAGES, AlgorithmConfig
from rlaif.metrics import Max, Mean, Metric
from rlaif.policy.advantages import (
    dr_grpo,
    group_statistics,
    grpo,
    grpo_of_parts,
    reinforce,
    reinforce_pp,
    reinforce_pp_baseline,
    rloo,
)
from rlaif.policy.controllers import MovingBaseline
from rlaif.policy.gae import gae, whiten
from rlaif.policy.kl import KL_ESTIMATORS

__all__ = ["ESTIMATORS", "AdvantageInputs", "Estimated", "estimate", "overlong_penalty"]


@dataclass(frozen=True)
class AdvantageInputs:
    """What the rows of a step, all ranks together, bring to `estimate`: N completions, in any order."""

    rewards: Sequence[float]            # [N], the column `reward`
    group_index: Sequence[int]          # [N], equal for the rows of one group
    num_tokens: Sequence[int]           # [N] tokens of the completion, >= 0
    is_cut: Sequence[bool]              # [N] the completion ended by its length
    max_tokens: int                     # rollout.max_tokens
    kl_coefficient: float = 0.0         # reward per nat, as the controller has it now; used with kl_in: reward
    # Needed with parts: separate. Each row's terms by name, None or absent where a term does not judge the row.
    reward_terms: Sequence[Mapping[str, float | None]] | None = None
    term_weights: Mapping[str, float] | None = None
    # One list a row with an entry a completion token. Needed with kl_in: reward and kl_coefficient > 0 (the first
    # two, in nats), and with advantage: gae (the last, in the reward's unit: the value before each token).
    proximal_logprobs: Sequence[Sequence[float]] | None = None
    reference_logprobs: Sequence[Sequence[float]] | None = None
    values: Sequence[Sequence[float]] | None = None


@dataclass(frozen=True)
class Estimated:
    """What `estimate` finds, row by row in the order of its inputs."""

    advantages: list[list[float]]       # one entry a completion token
    returns: list[list[float]] | None   # likewise, what the critic's values should be; None without a critic
    kept: list[bool]                    # False: no token of the row is to be learnt from
    metrics: dict[str, Metric]          # of the whole step: to be taken from one rank, not merged over ranks
    state: MovingBaseline               # of the next step


@dataclass(frozen=True)
class _Signals:
    """The inputs as tensors, penalties taken off. N rows, M tokens lying flat as in rlaif.policy.gae."""

    rewards: Tensor                     # [N] float64
    group_index: Tensor                 # [N] int64
    num_tokens: Tensor                  # [N] int64
    is_counted: Tensor                  # [N] bool, rows that a mean over the batch is taken of
    token_rewards: Tensor               # [M] float64, adds up to `rewards` in each row with a token
    baseline: float | None              # of reinforce
    parts: tuple[Tensor, Tensor] | None     # [N, K] float64 with NaN, and weights [K]
    values: Tensor | None               # [M] float64

    def of_tokens(self, rows: Tensor) -> Tensor:
        """What holds for rows, `[N]`, for each of their tokens, `[M]`."""
        return rows.repeat_interleave(self.num_tokens)


def _grpo(signals: _Signals, options: AlgorithmConfig) -> Tensor:
    if signals.parts is None:
        return grpo(signals.rewards, signals.group_index)
    return grpo_of_parts(*signals.parts, signals.group_index)


# name in the config -> advantages, [M] for TOKEN_ADVANTAGES and [N] for the others
ESTIMATORS: dict[str, Callable[[_Signals, AlgorithmConfig], Tensor]] = {
    "grpo": _grpo,
    "dr_grpo": lambda signals, options: dr_grpo(signals.rewards, signals.group_index),
    "rloo": lambda signals, options: rloo(signals.rewards, signals.group_index),
    "reinforce_pp": lambda signals, options: reinforce_pp(
        signals.token_rewards, signals.num_tokens, gamma=options.gamma,
        is_counted=signals.of_tokens(signals.is_counted)),
    "reinforce_pp_baseline": lambda signals, options: reinforce_pp_baseline(
        signals.rewards, signals.group_index, is_counted=signals.is_counted),
    "reinforce": lambda signals, options: reinforce(
        signals.rewards, signals.baseline, is_counted=signals.is_counted),
    "gae": lambda signals, options: gae(
        signals.token_rewards, signals.values, signals.num_tokens, gamma=options.gamma, lam=options.lam)[0],
}


def estimate(inputs: AdvantageInputs, options: AlgorithmConfig, state: MovingBaseline) -> Estimated:
    """Advantages of every token, returns for the critic, and which rows are kept.

    Needs every row of the step, on every rank; the result is then the same everywhere, whatever the split, and does
    not depend on the order of rows or groups. All in float64.

    Penalties come first: `overlong_penalty`, and with kl_in = reward the KL, kl_coefficient times KL(policy ||
    reference) at every token. Then the estimator that `options.advantage` names; then whitening over rows, or over
    tokens where advantages differ between them. Rows that are masked out for being cut take part in the baseline of
    their group, but not in means over the batch, of which the baseline of `reinforce` is made. At last rows whose
    advantage lies more than advantage_limit standard deviations off the batch's mean are masked out.

    Metrics: those of `group_statistics` on the rewards as they came; `cut_share` of rows; `overlong_penalty`, mean
    over rows; `reward_kl`, nats a completion by kl_estimator; `outlier_share` of rows; `advantage_size`, mean of |A|
    over tokens, and `max_advantage_size`; `baseline`; `explained_variance` of the critic, 1 - Var(R - V) / Var(R).

    Raises ValueError for a reward, logprob or value that is not finite, naming row and token.

    Source: outlier filter: R1-Reward (Zhang et al. 2025, arXiv 2505.02835), StableReinforce's advantage filter.
    """
    rewards = torch.tensor(inputs.rewards, dtype=torch.float64)
    group_index = torch.tensor(inputs.group_index, dtype=torch.int64)
    num_tokens = torch.tensor(inputs.num_tokens, dtype=torch.int64)
    is_cut = torch.tensor(inputs.is_cut, dtype=torch.bool)
    for name, tensor in (("group_index", group_index), ("num_tokens", num_tokens), ("is_cut", is_cut)):
        assert tensor.shape == rewards.shape, (name, tensor.shape, rewards.shape)
    metrics = group_statistics(rewards, group_index) | {"cut_share": Mean(float(is_cut.sum()), len(rewards))}

    penalty = torch.zeros_like(rewards)
    if options.overlong == "penalty":
        penalty = overlong_penalty(num_tokens, inputs.max_tokens, options.overlong_buffer, options.overlong_penalty)
        metrics["overlong_penalty"] = Mean(float(penalty.sum()), len(rewards))
    token_penalty = torch.zeros(int(num_tokens.sum()), dtype=torch.float64)
    if options.kl_in == "reward" and inputs.kl_coefficient > 0:
        kl = _token_kl(inputs, num_tokens, options.kl_estimator)
        metrics["reward_kl"] = Mean(float(kl.sum()), len(rewards))
        token_penalty = inputs.kl_coefficient * kl
    kept = ~is_cut if options.overlong == "mask" else torch.ones_like(is_cut)

    signals = _signals(inputs, options, rewards - penalty, group_index, num_tokens, token_penalty, kept, state.value)
    advantages = ESTIMATORS[options.advantage](signals, options)
    returns = None
    if options.advantage == "gae":
        returns = advantages + signals.values
        metrics["explained_variance"] = _explained_variance(returns, signals.values)
    if options.advantage == "reinforce":
        metrics["baseline"] = Mean(state.value or 0.0, int(state.value is not None))
        if kept.any():
            state = state.after(float(signals.rewards[kept].mean()), options.baseline_decay)

    is_per_token = options.advantage in TOKEN_ADVANTAGES
    if options.whiten == "batch":
        advantages = whiten(advantages, signals.of_tokens(kept) if is_per_token else kept)
    if options.advantage_limit is not None:
        is_outlier = kept & (whiten(advantages, kept).abs() > options.advantage_limit)
        metrics["outlier_share"] = Mean(float(is_outlier.sum()), len(rewards))
        kept = kept & ~is_outlier
    per_token = advantages if is_per_token else signals.of_tokens(advantages)
    size = per_token[signals.of_tokens(kept)].abs()
    metrics["advantage_size"] = Mean(float(size.sum()), len(size))
    metrics["max_advantage_size"] = Max(float(size.max()) if len(size) else None)
    return Estimated(_rows(per_token, num_tokens), None if returns is None else _rows(returns, num_tokens),
                     kept.tolist(), metrics, state)


def overlong_penalty(num_tokens: Tensor, max_tokens: int, buffer: int | None, penalty: float) -> Tensor:
    """The reward `[N]` float64, >= 0, that is taken off long completions.

        penalty * clip((n - (max_tokens - buffer)) / buffer, 0, 1)

    num_tokens: `[N]` int64. max_tokens: the longest completion, > 0. buffer: tokens over which the penalty grows,
    1..max_tokens; None takes a fifth of max_tokens, as in the paper. penalty: reward, > 0, at max_tokens.

    Source: DAPO (Yu et al. 2025, arXiv 2503.14476), eq. 13, soft overlong punishment.
    """
    buffer = max(1, max_tokens // 5) if buffer is None else buffer
    if not 1 <= buffer <= max_tokens:
        raise ValueError(f"overlong_buffer must be in 1..{max_tokens}, rollout.max_tokens, got {buffer}; lower it")
    return penalty * ((num_tokens.double() - (max_tokens - buffer)) / buffer).clamp(0, 1)


def _signals(inputs: AdvantageInputs, options: AlgorithmConfig, rewards: Tensor, group_index: Tensor,
             num_tokens: Tensor, token_penalty: Tensor, kept: Tensor, baseline: float | None) -> _Signals:
    row_of_token = torch.arange(len(rewards)).repeat_interleave(num_tokens)
    has_tokens = num_tokens > 0
    token_rewards = (-token_penalty).index_add(0, num_tokens.cumsum(0)[has_tokens] - 1, rewards[has_tokens])
    values = None
    if options.advantage == "gae":
        assert inputs.values is not None, "advantage gae needs values"
        values = _flat("values", inputs.values, num_tokens)
    return _Signals(rewards=rewards.index_add(0, row_of_token, -token_penalty), group_index=group_index,
                    num_tokens=num_tokens, is_counted=kept, token_rewards=token_rewards, baseline=baseline,
                    parts=_parts(inputs) if options.parts == "separate" else None, values=values)


def _parts(inputs: AdvantageInputs) -> tuple[Tensor, Tensor]:
    assert inputs.reward_terms is not None and inputs.term_weights is not None, "parts separate needs reward_terms"
    names = list(inputs.term_weights)
    for row, terms in enumerate(inputs.reward_terms):
        for name, value in terms.items():
            assert name in inputs.term_weights, (name, names)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"reward_terms must be finite, got {value} of {name} in row {row}; mend its reward "
                                 "function")
    table = [[math.nan if terms.get(name) is None else terms[name] for name in names] for terms in inputs.reward_terms]
    weights = torch.tensor([inputs.term_weights[name] for name in names], dtype=torch.float64)
    return torch.tensor(table, dtype=torch.float64).reshape(len(table), len(names)), weights


def _token_kl(inputs: AdvantageInputs, num_tokens: Tensor, estimator: str) -> Tensor:
    """KL(policy || reference) estimated at every token, `[M]` float64, nats."""
    assert inputs.proximal_logprobs is not None and inputs.reference_logprobs is not None, (
        "kl_in reward needs proximal_logprobs and reference_logprobs")
    proximal = _flat("proximal_logprobs", inputs.proximal_logprobs, num_tokens)
    reference = _flat("reference_logprobs", inputs.reference_logprobs, num_tokens)
    return KL_ESTIMATORS[estimator](reference - proximal)


def _flat(name: str, rows: Sequence[Sequence[float]], num_tokens: Tensor) -> Tensor:
    """The entries of all `rows`, `[M]` float64, finite."""
    assert [len(row) for row in rows] == num_tokens.tolist(), name
    flat = torch.tensor([entry for row in rows for entry in row], dtype=torch.float64)
    is_finite = torch.isfinite(flat)
    if not is_finite.all():
        place = int((~is_finite).nonzero()[0])
        ends = num_tokens.cumsum(0)
        row = int((ends <= place).sum())
        token = place - int(ends[row] - num_tokens[row])
        raise ValueError(f"{name} must be finite, got {float(flat[place])} in row {row}, token {token}; the model "
                         "that computed them has gone wrong")
    return flat


def _explained_variance(returns: Tensor, values: Tensor) -> Metric:
    """1 - Var(R - V) / Var(R): 1 for a perfect critic, 0 for a constant one; no value where returns are equal."""
    spread = float(((returns - returns.mean()) ** 2).sum()) if len(returns) else 0.0
    if spread == 0.0:
        return Mean(0.0, 0)
    error = returns - values
    return Mean(1 - float(((error - error.mean()) ** 2).sum()) / spread, 1)


def _rows(flat: Tensor, num_tokens: Tensor) -> list[list[float]]:
    return [row.tolist() for row in flat.split(num_tokens.tolist())] if len(num_tokens) else []
