"""The learning rate as a pure function of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math

from rlaif.config.learner import LearnerConfig


def learning_rate_factor(config: LearnerConfig, step: int, total_steps: int) -> float:
    """Share of the configured rate at optimizer step `step` (0-based) of `total_steps`, in (0, 1].

    Linear warm-up over warmup_steps, then constant, or linear / half-cosine decay that would reach zero at total_steps.
    """
    assert step >= 0, step
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    span = max(1, total_steps - config.warmup_steps)
    progress = min(1.0, (step - config.warmup_steps) / span)
    if config.schedule == "linear":
        return max(1.0 - progress, 1.0 / span)
    return max(0.5 * (1.0 + math.cos(math.pi * progress)), 1.0 / span)
