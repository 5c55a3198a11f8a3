"""Direct preference optimisation: a policy learns from pairs of completions, without rollouts or a reward model."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from rlaif.metrics import Mean, Metric, Sum

__all__ = ["PreferenceBatch", "PreferenceOptions", "preference_loss"]


@dataclass(frozen=True)
class PreferenceOptions:
    """What `preference_loss` optimises."""

    beta: float = 0.1                   # pull to the reference, reward per nat, > 0
    label_smoothing: float = 0.0        # share of pairs whose label is taken to be wrong, [0, 0.5)

    def __post_init__(self) -> None:
        if not 0 < self.beta < math.inf:
            raise ValueError(f"beta must be > 0, got {self.beta}; 0.1 is usual")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing must be in [0, 0.5), got {self.label_smoothing}; 0 trusts every label")


@dataclass(frozen=True)
class PreferenceBatch:
    """B pairs of one micro-batch: log-probabilities of whole completions given the prompt, sums over their tokens."""

    policy_chosen: Tensor               # [B] nats; carries the gradient
    policy_rejected: Tensor             # [B] nats; carries the gradient
    reference_chosen: Tensor            # [B] nats
    reference_rejected: Tensor          # [B] nats

    def __post_init__(self) -> None:
        for name in ("policy_rejected", "reference_chosen", "reference_rejected"):
            assert getattr(self, name).shape == self.policy_chosen.shape, (name, getattr(self, name).shape)
        assert self.policy_chosen.ndim == 1, self.policy_chosen.shape


def preference_loss(batch: PreferenceBatch, options: PreferenceOptions, *, num_global_pairs: int
                    ) -> tuple[Tensor, dict[str, Metric]]:
    """The loss of direct preference optimisation (scalar, float32 at least, nats) and its metrics.

        d    = (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)
        pair = -(1 - e) log sigmoid(beta d) - e log sigmoid(-beta d)
        loss = sum over pairs / num_global_pairs

    with e the label smoothing. num_global_pairs: pairs of all micro-batches and ranks of this optimizer step, >= 1.
    Metrics, each a mean over pairs: `preference_accuracy` (equal sides count half); `implicit_reward_margin`, beta d;
    `implicit_reward_chosen` and `implicit_reward_rejected`, beta times policy - reference; `loss`, to be added.

    Source: Rafailov et al. 2023 (arXiv 2305.18290), eq. 7; label smoothing: Mitchell 2023, A Note on DPO with Noisy
    Preferences, eq. 3.
    """
    assert num_global_pairs >= 1, f"num_global_pairs must be >= 1, got {num_global_pairs}"
    dtype = torch.promote_types(batch.policy_chosen.dtype, torch.float32)
    chosen = batch.policy_chosen.to(dtype) - batch.reference_chosen.detach().to(dtype)
    rejected = batch.policy_rejected.to(dtype) - batch.reference_rejected.detach().to(dtype)
    margin = options.beta * (chosen - rejected)
    smoothing = options.label_smoothing
    per_pair = -(1 - smoothing) * functional.logsigmoid(margin) - smoothing * functional.logsigmoid(-margin)
    loss = per_pair.sum() / num_global_pairs
    with torch.no_grad():
        # A NaN is no wrong answer: it stays one.
        accuracy = torch.where(margin.isnan(), margin, (margin.sign() + 1) / 2)
        means = {"preference_accuracy": accuracy, "implicit_reward_margin": margin,
                 "implicit_reward_chosen": options.beta * chosen, "implicit_reward_rejected": options.beta * rejected}
        totals = torch.stack([values.double().sum() for values in means.values()]).tolist()
    count = len(margin)
    return loss, {"loss": Sum(float(loss.detach()))} | {
        name: Mean(total, count) for name, total in zip(means, totals, strict=True)}
