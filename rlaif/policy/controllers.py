"""What the policy update remembers from step to step: small frozen records that a checkpoint can hold as JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["KlController", "MovingBaseline"]


@dataclass(frozen=True)
class KlController:
    """The coefficient of the KL: fixed, or adapted so that the KL comes to its target.

        beta <- beta exp(clip(kl / target - 1, -0.2, 0.2) * n / horizon)

    Source: Ziegler et al. 2019 (arXiv 1909.08593), section 2.2. Departs from it in the exponential, which cannot cross
    zero and does not depend on how completions are dealt out to steps; theirs is its first order.
    """

    coefficient: float                  # reward per nat, >= 0
    target: float | None = None         # nats a completion, > 0; None: fixed
    horizon: float = 1000.0             # completions, > 0

    def after(self, kl: float, num_completions: int) -> KlController:
        """The controller after a step.

        kl: mean over its completions of KL(policy || reference) in nats a completion; estimates may be negative.
        num_completions: completions of the step.
        """
        if self.target is None:
            return self
        if not math.isfinite(kl):
            raise ValueError(f"kl must be finite, got {kl}; the policy has left the reference, lower learning_rate or "
                             "raise kl_coefficient")
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        factor = math.exp(error * num_completions / self.horizon)
        return KlController(self.coefficient * factor, self.target, self.horizon)


@dataclass(frozen=True)
class MovingBaseline:
    """An exponential mean of the rewards of past steps, without the pull to zero of a first value.

        total  <- decay total + (1 - decay) mean reward
        weight <- decay weight + (1 - decay)
        value  =  total / weight

    Source: Williams 1992, Simple Statistical Gradient-Following Algorithms, reinforcement comparison; the correction:
    Kingma and Ba 2015 (arXiv 1412.6980), section 3.
    """

    total: float = 0.0
    weight: float = 0.0

    @property
    def value(self) -> float | None:
        """Reward; None before the first step."""
        return self.total / self.weight if self.weight else None

    def after(self, mean_reward: float, decay: float) -> MovingBaseline:
        """The baseline after a step whose rewards have the mean `mean_reward`; decay: [0, 1)."""
        return MovingBaseline(decay * self.total + (1 - decay) * mean_reward, decay * self.weight + 1 - decay)
