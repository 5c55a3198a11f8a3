"""The losses: policy update, supervised tokens, slots. Each returns `(loss, metrics)`.

Every normaliser is an argument and counts the *global* batch, so that losses and gradients of micro-batches
and ranks are added, never averaged. Where an engine averages gradients over ranks, the caller multiplies by
the number of ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from rlaif.kl import KL_ESTIMATORS, k3
from rlaif.masked import measure, only
from rlaif.metrics import Metric, Sum

__all__ = ["KL_ESTIMATORS", "LossOptions", "policy_loss", "slot_loss", "supervised_loss"]


@dataclass(frozen=True)
class LossOptions:
    """What `policy_loss` optimises."""

    clip_low: float = 0.2  # ratio is clipped at 1 - clip_low; [0, 1]
    clip_high: float = 0.2  # ratio is clipped at 1 + clip_high; >= 0, above clip_low for clip-higher
    importance_cap: float | None = (
        2.0  # largest weight proximal / rollout; >= 1, null for no weighting at all
    )
    kl_coefficient: float = 0.0  # weight of the KL term, reward per nat; >= 0, 0 for no term
    kl_estimator: str = "k3"  # one of KL_ESTIMATORS

    def __post_init__(self) -> None:
        if not 0 <= self.clip_low <= 1:
            raise ValueError(f"clip_low must be in 0..1, got {self.clip_low}; 0.2 is usual")
        if not (0 <= self.clip_high < math.inf):
            raise ValueError(f"clip_high must be >= 0 and finite, got {self.clip_high}; 0.2 to 0.28 is usual")
        if self.importance_cap is not None and not 1 <= self.importance_cap < math.inf:
            raise ValueError(
                f"importance_cap must be >= 1 and finite, got {self.importance_cap}; "
                "2.0 is usual, null switches it off"
            )
        if not (0 <= self.kl_coefficient < math.inf):
            raise ValueError(
                f"kl_coefficient must be >= 0 and finite, got {self.kl_coefficient}; 0 switches it off"
            )
        if self.kl_estimator not in KL_ESTIMATORS:
            raise ValueError(
                f"kl_estimator must be one of {', '.join(KL_ESTIMATORS)}, got {self.kl_estimator}; "
                "k3 is usual"
            )


def policy_loss(
    policy_logprobs: Tensor,
    proximal_logprobs: Tensor,
    rollout_logprobs: Tensor,
    reference_logprobs: Tensor | None,
    advantages: Tensor,
    loss_mask: Tensor,
    *,
    num_global_tokens: int,
    options: LossOptions,
    entropy: Tensor | None = None,
) -> tuple[Tensor, dict[str, Metric]]:
    """The clipped policy loss (scalar float32) and its metrics.

        ratio  = exp(policy - proximal)
        weight = min(exp(proximal - rollout), importance_cap)                      (no gradient)
        token  = -weight * min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A) + kl_coefficient * kl
        loss   = sum over masked tokens of token / num_global_tokens

    policy_logprobs: `[B, T]`, nats, under the weights being trained; carries the gradient. proximal_logprobs:
    `[B, T]`, under the weights at the start of the step. rollout_logprobs: `[B, T]`, as the inference engine
    reported them when it sampled. reference_logprobs: `[B, T]` or None; needed when kl_coefficient > 0.
    advantages: `[B]`, one a completion. loss_mask: `[B, T]` bool, True at the tokens to learn; anything may
    stand elsewhere, NaN included. num_global_tokens: True entries of the masks of all micro-batches and ranks
    of this optimizer step, >= 1. entropy: `[B, T]` or None, nats, only measured.

    A log-probability that is wild at a masked-in token (NaN, or so far off that exp overflows) makes the loss
    NaN or inf: it is left to be seen rather than clamped.

    Source: PPO (Schulman et al. 2017, arXiv 1707.06347), eq. 7; two clip bounds and the mean over all tokens:
    DAPO (Yu et al. 2025, arXiv 2503.14476), eq. 8; proximal policy apart from the behaviour policy: Hilton et
    al. 2021 (arXiv 2110.00641), the decoupled clipped objective; truncated weight: Yao et al. 2025, Your
    Efficient RL Framework Secretly Brings You Off-Policy RL Training; KL in the loss: DeepSeekMath (Shao et
    al. 2024, arXiv 2402.03300), eq. 3 and 4.
    """
    _check_policy_batch(policy_logprobs, advantages, loss_mask, num_global_tokens)
    mask = loss_mask
    policy = only(policy_logprobs, mask)
    proximal = only(proximal_logprobs, mask).detach()
    rollout = only(rollout_logprobs, mask).detach()
    advantage = advantages.detach().float().unsqueeze(1)

    ratio = torch.exp(policy - proximal)
    clipped_ratio = ratio.clamp(1 - options.clip_low, 1 + options.clip_high)
    raw_weight = torch.exp(proximal - rollout)
    weight = torch.ones_like(raw_weight)
    if options.importance_cap is not None:
        weight = raw_weight.clamp(max=options.importance_cap)
    per_token = -weight * torch.minimum(ratio * advantage, clipped_ratio * advantage)

    kl = None
    if reference_logprobs is not None:
        log_ratio = only(reference_logprobs, mask).detach() - policy
        kl = k3(log_ratio.detach())
        if options.kl_coefficient > 0:
            per_token = per_token + options.kl_coefficient * KL_ESTIMATORS[options.kl_estimator](log_ratio)
    elif options.kl_coefficient > 0:
        raise ValueError(
            f"kl_coefficient must be 0 without a reference policy, got {options.kl_coefficient}; "
            "set it to 0 or give reference_logprobs"
        )
    loss = torch.where(mask, per_token, 0.0).sum() / num_global_tokens

    is_clipped = ((advantage > 0) & (ratio > 1 + options.clip_high)) | (
        (advantage < 0) & (ratio < 1 - options.clip_low)
    )
    means = {"clip_share": is_clipped, "importance_weight": weight}
    if options.importance_cap is not None:
        means["importance_truncated_share"] = raw_weight > options.importance_cap
    if kl is not None:
        means["kl_per_token"] = kl
    if entropy is not None:
        means["entropy"] = only(entropy, mask)
    maxima = {"max_importance_weight": raw_weight, "max_logprob_gap": (proximal - rollout).abs()}
    return loss, {"loss": Sum(float(loss.detach())), **measure(mask, means, maxima)}


def supervised_loss(
    token_logprobs: Tensor, loss_mask: Tensor, *, num_global_tokens: int
) -> tuple[Tensor, dict[str, Metric]]:
    """The negative log-likelihood of the masked tokens (scalar float32) and its metrics.

        loss = -sum over masked tokens of logprob / num_global_tokens

    token_logprobs: `[B, T]`, nats; carries the gradient. loss_mask: `[B, T]` bool; anything may stand where
    it is False. num_global_tokens: True entries of all masks of this optimizer step, >= 1.
    """
    assert token_logprobs.ndim == 2, token_logprobs.shape
    assert loss_mask.shape == token_logprobs.shape and loss_mask.dtype == torch.bool, (
        loss_mask.shape,
        loss_mask.dtype,
    )
    assert num_global_tokens >= 1, f"num_global_tokens must be >= 1, got {num_global_tokens}"
    nll = -only(token_logprobs, loss_mask)
    loss = nll.sum() / num_global_tokens
    return loss, {"loss": Sum(float(loss.detach())), **measure(loss_mask, {"nll": nll}, {})}


def slot_loss(
    class_logits: Tensor, labels: Tensor, *, num_global_rows: int
) -> tuple[Tensor, dict[str, Metric]]:
    """The cross-entropy of the labelled slots (scalar float32, nats a row) and its metrics.

        loss = -sum over labelled (n, s) of log softmax(class_logits[n, s])[labels[n, s]] / num_global_rows

    class_logits: `[N, S, K]`, nats up to a constant; -inf where slot s has fewer than K classes; carries the
    gradient. labels: `[N, S]` int64 in 0..K-1, -1 where there is no label. num_global_rows: rows of all
    micro-batches and ranks of this optimizer step, >= 1. The slots of a row are added: the loss is minus the
    log-likelihood of a whole row. Metrics: `slot_accuracy` and `slot_nll`, both a mean over labelled slots.
    """
    assert class_logits.ndim == 3, class_logits.shape
    assert labels.shape == class_logits.shape[:2] and labels.dtype == torch.int64, (
        labels.shape,
        labels.dtype,
    )
    assert num_global_rows >= 1, f"num_global_rows must be >= 1, got {num_global_rows}"
    num_classes = class_logits.shape[2]
    if labels.numel() and not -1 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f"labels must be in -1..{num_classes - 1}, got {int(labels.min())}..{int(labels.max())}; "
            "number the classes of a slot from 0 in the template's order"
        )
    mask = labels >= 0
    # Unlabelled slots are replaced before the softmax, so that nothing in them reaches the gradient.
    logits = torch.where(mask.unsqueeze(-1), class_logits.float(), 0.0)
    nll = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-1, reduction="none")
    loss = nll.sum() / num_global_rows
    is_right = logits.detach().argmax(-1) == labels
    means = {"slot_accuracy": is_right, "slot_nll": nll.view_as(labels)}
    return loss, {"loss": Sum(float(loss.detach())), **measure(mask, means, {})}


def _check_policy_batch(
    policy_logprobs: Tensor, advantages: Tensor, loss_mask: Tensor, num_global_tokens: int
) -> None:
    assert policy_logprobs.ndim == 2, policy_logprobs.shape
    assert advantages.shape == policy_logprobs.shape[:1], (advantages.shape, policy_logprobs.shape)
    assert loss_mask.shape == policy_logprobs.shape, (loss_mask.shape, policy_logprobs.shape)
    assert loss_mask.dtype == torch.bool, loss_mask.dtype
    assert num_global_tokens >= 1, f"num_global_tokens must be >= 1, got {num_global_tokens}"
