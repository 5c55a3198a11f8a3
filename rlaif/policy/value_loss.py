"""The critic's loss: squared errors of the values, clipped as PPO clips the ratio."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlaif.metrics import Metric, Sum
from rlaif.policy.masked import measure, only

__all__ = ["ValueBatch", "value_loss"]


@dataclass(frozen=True)
class ValueBatch:
    """Rows of one micro-batch: B completions, T tokens; where `loss_mask` is False anything may stand."""

    values: Tensor              # [B, T] reward, under the critic being trained, before each token; carries the gradient
    old_values: Tensor          # [B, T] reward, under the critic at the step's start
    returns: Tensor             # [B, T] reward, what the values should be: rlaif.policy.gae
    loss_mask: Tensor           # [B, T] bool, True at the tokens to learn
    token_weights: Tensor       # [B] float, of each token of a row: rlaif.policy.token_weights

    def __post_init__(self) -> None:
        shape = self.values.shape
        assert len(shape) == 2, shape
        for name in ("old_values", "returns", "loss_mask"):
            assert getattr(self, name).shape == shape, (name, getattr(self, name).shape, shape)
        assert self.loss_mask.dtype == torch.bool, self.loss_mask.dtype
        assert self.token_weights.shape == shape[:1], (self.token_weights.shape, shape)


def value_loss(batch: ValueBatch, *, value_clip: float | None) -> tuple[Tensor, dict[str, Metric]]:
    """The value loss (scalar, float32 at least) of a micro-batch, and its metrics.

        near = old + clip(V - old, -value_clip, value_clip)
        loss = sum over masked tokens of w_b max((V - R)^2, (near - R)^2) / 2

    value_clip: reward, > 0; None leaves the plain squared error. A value that has moved further than value_clip away
    from where it was, and towards its return, has no gradient. Metrics: `value_loss`, to be added; `value_clip_share`
    of tokens without a gradient, `value_error`, |V - R|, both a mean over tokens.

    Source: the PPO of OpenAI baselines, as described in Engstrom et al. 2020 (arXiv 2005.12729), section 3.
    """
    assert value_clip is None or value_clip > 0, f"value_clip must be > 0 or null, got {value_clip}"
    mask = batch.loss_mask
    values = only(batch.values, mask)
    old, returns = only(batch.old_values, mask).detach(), only(batch.returns, mask).detach()
    error = (values - returns) ** 2
    is_clipped = torch.zeros_like(mask)
    if value_clip is not None:
        held = (old + (values - old).clamp(-value_clip, value_clip) - returns).detach() ** 2
        # Within reach, `held` is the plain error up to rounding. Worded for a NaN to count, and so to be seen.
        is_clipped = ~(held <= error) & ~((values - old).abs() <= value_clip)
        error = torch.where(is_clipped, held, error)
    weights = batch.token_weights.detach().to(error.dtype).unsqueeze(1)
    loss = 0.5 * torch.where(mask, error * weights, 0.0).sum()
    means = {"value_clip_share": is_clipped, "value_error": (values - returns).abs()}
    return loss, {"value_loss": Sum(float(loss.detach())), **measure(mask, means, {})}
