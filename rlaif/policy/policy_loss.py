"""The policy loss: one function, whose options make it PPO's, GRPO's, DAPO's, GSPO's, CISPO's or RLOO's.

The loss is a plain sum of token losses times `token_weights`, so those of micro-batches and ranks are added, never
averaged. Where an engine averages gradients over ranks, the caller multiplies by the number of ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rlaif.config.algorithm import AlgorithmConfig
from rlaif.metrics import Metric, Sum
from rlaif.policy.kl import KL_ESTIMATORS, k3
from rlaif.policy.masked import measure, only

__all__ = ["PolicyBatch", "PolicyLossOptions", "policy_loss", "policy_loss_options"]


@dataclass(frozen=True)
class PolicyLossOptions:
    """What `policy_loss` optimises. Ranges and combinations are those of AlgorithmConfig, which checks them."""

    loss: str = "clipped"
    ratio: str = "token"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    importance: str = "truncate"
    importance_level: str = "token"
    importance_cap: float = 2.0
    importance_floor: float = 0.0
    entropy_coefficient: float = 0.0
    kl_estimator: str = "k3"
    kl_unbiased: bool = False
    kl_coefficient: float = 0.0         # of the KL in the loss; 0 where it is in the reward


def policy_loss_options(algorithm: AlgorithmConfig, kl_coefficient: float) -> PolicyLossOptions:
    """The loss's options of a step at whose start the controller holds `kl_coefficient`, reward per nat."""
    return PolicyLossOptions(
        loss=algorithm.loss, ratio=algorithm.ratio, clip_low=algorithm.clip_low, clip_high=algorithm.clip_high,
        dual_clip=algorithm.dual_clip, importance=algorithm.importance, importance_level=algorithm.importance_level,
        importance_cap=algorithm.importance_cap, importance_floor=algorithm.importance_floor,
        entropy_coefficient=algorithm.entropy_coefficient, kl_estimator=algorithm.kl_estimator,
        kl_unbiased=algorithm.kl_unbiased, kl_coefficient=kl_coefficient if algorithm.kl_in == "loss" else 0.0)


@dataclass(frozen=True)
class PolicyBatch:
    """Whole rows of one micro-batch: B completions, T tokens; where `loss_mask` is False anything may stand."""

    policy_logprobs: Tensor             # [B, T] nats, under the weights being trained; carries the gradient
    proximal_logprobs: Tensor | None    # [B, T] nats, under the weights at the step's start; None: those being trained
    rollout_logprobs: Tensor            # [B, T] nats, as the engine reported them when it sampled
    reference_logprobs: Tensor | None   # [B, T] nats; needed for a KL in the loss, else only measured
    advantages: Tensor                  # [B, T]
    loss_mask: Tensor                   # [B, T] bool, True at the tokens to learn
    token_weights: Tensor               # [B] float, of each token of a row: rlaif.policy.token_weights
    entropy: Tensor | None = None       # [B, T] nats; carries a gradient where there is an entropy bonus

    def __post_init__(self) -> None:
        shape = self.policy_logprobs.shape
        assert len(shape) == 2, shape
        for name in ("proximal_logprobs", "rollout_logprobs", "reference_logprobs", "advantages", "loss_mask",
                     "entropy"):
            tensor = getattr(self, name)
            assert tensor is None or tensor.shape == shape, (name, tensor.shape, shape)
        assert self.loss_mask.dtype == torch.bool, self.loss_mask.dtype
        assert self.token_weights.shape == shape[:1], (self.token_weights.shape, shape)


def policy_loss(batch: PolicyBatch, options: PolicyLossOptions) -> tuple[Tensor, dict[str, Metric]]:
    """The policy loss (scalar, float32 at least) of a micro-batch, and its metrics.

        loss       = sum over masked tokens of w_b (importance * surrogate + kl_coefficient * kl
                                                    - entropy_coefficient * H)
        ratio      = exp(policy - proximal)                             token
                   = exp(mean over the row of (policy - proximal))      sequence
                   = exp(sum over the row of (policy - proximal))       product
        near       = clip(ratio, 1 - clip_low, 1 + clip_high)
        surrogate  = -min(ratio A, near A), where A < 0 at most dual_clip |A|       clipped
                   = -sg(near) A policy                                             cispo, sg: without gradient
        kl         = kl_estimator(reference - policy), times exp(policy - proximal) where kl_unbiased
        importance = sg(exp(proximal - rollout)), at level sequence of the sum over the row;
                     truncate: at most importance_cap; mask: 0 outside importance_floor..importance_cap; none: 1

    A sequence's ratio takes its gradient token by token, as sg(ratio) exp(policy - sg(policy)). That is the gradient of
    the ratio itself where advantage and importance are one number a row; where they are not, each token keeps its own.
    A product asks for one advantage a row. k1 and k3 times the ratio have the gradient of KL(policy || reference) in
    expectation over tokens of the proximal policy; without it, only k2 has, and only of the policy's own tokens.

    A log-probability that is wild at a masked-in token (NaN, or so far off that exp overflows where nothing clips)
    makes the loss NaN or inf: it is left to be seen rather than clamped. A ratio that overflows where it is clipped
    has a gradient of zero.

    Metrics: `clip_share` of tokens without a gradient (cispo: with a clipped weight), `importance_weight`,
    `importance_truncated_share` or `importance_masked_share`, `kl_per_token` (k3), `entropy`, each a mean over tokens;
    `max_importance_weight` before truncation; `max_logprob_gap`, |proximal - rollout|; `loss`, to be added.

    Source: PPO (Schulman et al. 2017, arXiv 1707.06347), eq. 7; two clip bounds: DAPO (Yu et al. 2025, arXiv
    2503.14476), eq. 8; dual clip: Ye et al. 2020 (arXiv 1912.09729); sequence: GSPO (Zheng et al. 2025, arXiv
    2507.18071), eq. 5 to 7 and its GSPO-token, eq. 13; product: Back to Basics (Ahmadian et al. 2024, arXiv
    2402.14740), the completion as one action; cispo: MiniMax-M1 (2025, arXiv 2506.13585), eq. 4 and 5; proximal
    policy apart from the behaviour policy: Hilton et al. 2021 (arXiv 2110.00641); truncated weight: Yao et al. 2025,
    Your Efficient RL Framework Secretly Brings You Off-Policy RL Training; masked weight: Ling Team 2025 (arXiv
    2510.18855), IcePop; KL in the loss: DeepSeekMath (Shao et al. 2024, arXiv 2402.03300), eq. 3 and 4;
    times the ratio: DeepSeek-V3.2 (2025, arXiv 2512.02556), section 3.1.
    """
    mask = batch.loss_mask
    policy = only(batch.policy_logprobs, mask)
    proximal = policy.detach() if batch.proximal_logprobs is None else only(batch.proximal_logprobs, mask).detach()
    rollout = only(batch.rollout_logprobs, mask).detach()
    advantages = only(batch.advantages, mask).detach()

    surrogate, is_clipped = _SURROGATES[options.loss](policy, _log_ratio(policy, proximal, mask, options.ratio),
                                                      advantages, options)
    raw_weight, weight = _importance(proximal - rollout, options)
    per_token = weight * surrogate
    means = {"clip_share": is_clipped, "importance_weight": weight}
    if options.importance != "none":
        means[_IMPORTANCE_SHARES[options.importance]] = weight != raw_weight
    if batch.reference_logprobs is not None:
        log_ratio = only(batch.reference_logprobs, mask).detach() - policy
        means["kl_per_token"] = k3(log_ratio.detach())
        if options.kl_coefficient > 0:
            kl = KL_ESTIMATORS[options.kl_estimator](log_ratio)
            per_token = per_token + options.kl_coefficient * (
                torch.exp(policy - proximal) * kl if options.kl_unbiased else kl)
    elif options.kl_coefficient > 0:
        raise ValueError(f"kl_coefficient must be 0 without a reference policy, got {options.kl_coefficient}; set it "
                         "to 0 or give reference_logprobs")
    if batch.entropy is not None:
        entropy = only(batch.entropy, mask)
        means["entropy"] = entropy
        if options.entropy_coefficient > 0:
            per_token = per_token - options.entropy_coefficient * entropy
    elif options.entropy_coefficient > 0:
        raise ValueError(f"entropy_coefficient must be 0 without entropy, got {options.entropy_coefficient}; set it "
                         "to 0 or give the tokens' entropy")

    weights = batch.token_weights.detach().to(per_token.dtype).unsqueeze(1)
    loss = torch.where(mask, per_token * weights, 0.0).sum()
    maxima = {"max_importance_weight": raw_weight, "max_logprob_gap": (proximal - rollout).abs()}
    return loss, {"loss": Sum(float(loss.detach())), **measure(mask, means, maxima)}


def _log_ratio(policy: Tensor, proximal: Tensor, mask: Tensor, level: str) -> Tensor:
    """log ratio `[B, T]` at `level`, the same for all tokens of a row above token level; carries the gradient."""
    per_token = policy - proximal       # 0 where masked out
    if level == "token":
        return per_token
    total = per_token.sum(dim=1, keepdim=True)
    if level == "product":
        return total.expand_as(per_token)
    assert level == "sequence", f"ratio must be token, sequence or product, got {level!r}"
    return (total / mask.sum(dim=1, keepdim=True).clamp(min=1)).detach() + (policy - policy.detach())


def _clipped(policy: Tensor, log_ratio: Tensor, advantages: Tensor, options: PolicyLossOptions
             ) -> tuple[Tensor, Tensor]:
    """The clipped surrogate `[B, T]` and where it is clipped.

    The minimum over ratio and clipped ratio bounds the ratio on one side only: above where A > 0, below where A < 0,
    and there the dual clip bounds it above. Bounding the logarithm keeps an overflow out of the gradient.
    """
    wants_less = advantages < 0
    upper = torch.full_like(log_ratio, math.log1p(options.clip_high)).masked_fill(wants_less, _log(options.dual_clip))
    lower = torch.full_like(log_ratio, -math.inf).masked_fill(wants_less, _log(1 - options.clip_low))
    is_clipped = (log_ratio > upper) | (log_ratio < lower)
    bound = torch.minimum(torch.maximum(log_ratio.detach(), lower), upper)
    return -torch.exp(torch.where(is_clipped, bound, log_ratio)) * advantages, is_clipped & (advantages != 0)


def _cispo(policy: Tensor, log_ratio: Tensor, advantages: Tensor, options: PolicyLossOptions) -> tuple[Tensor, Tensor]:
    """The log-probability weighted by the clipped ratio, `[B, T]`, and where that is clipped."""
    ratio = torch.exp(log_ratio.detach())
    clipped = ratio.clamp(1 - options.clip_low, 1 + options.clip_high)
    return -clipped * advantages * policy, (clipped != ratio) & (advantages != 0)


_SURROGATES = {"clipped": _clipped, "cispo": _cispo}
_IMPORTANCE_SHARES = {"truncate": "importance_truncated_share", "mask": "importance_masked_share"}


def _importance(log_weight: Tensor, options: PolicyLossOptions) -> tuple[Tensor, Tensor]:
    """The weights proximal / rollout `[B, T]`, raw and as they are used."""
    if options.importance_level == "sequence":
        log_weight = log_weight.sum(dim=1, keepdim=True).expand_as(log_weight)      # 0 where masked out
    raw = torch.exp(log_weight)
    if options.importance == "none":
        return raw, torch.ones_like(raw)
    if options.importance == "truncate":
        return raw, raw.clamp(max=options.importance_cap)
    is_outside = (raw < options.importance_floor) | (raw > options.importance_cap)
    return raw, torch.where(is_outside, 0.0, raw)


def _log(bound: float | None) -> float:
    """Logarithm of a bound; none is infinite."""
    if bound is None:
        return math.inf
    return math.log(bound) if bound > 0 else -math.inf
