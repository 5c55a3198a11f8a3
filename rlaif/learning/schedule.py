"""The learning rate as a pure function of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math

from rlaif.config.learner import LearnerConfig


def learning_rate_factor(config: LearnerConfig, step: int, total_steps: int) -> float:
    """Share of the configured rate at optimizer step `step` (0-based) of `total_steps`, in (0, 1].

    Linear warm-up over warmup_steps, then constant, or

        linear  1 - p
        cosine  (1 + cos(pi p)) / 2,    p = (step - warmup_steps) / (total_steps - warmup_steps)

    which would be zero at step total_steps: none of the run's is. A step behind the last has the last one's rate.

    Source: cosine: Loshchilov and Hutter 2017 (arXiv 1608.03983), eq. 5, a single period.
    """
    assert step >= 0, step
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    span = max(1, total_steps - config.warmup_steps)
    progress = min(step - config.warmup_steps, span - 1) / span
    if config.schedule == "linear":
        return 1.0 - progress
    return 0.5 * (1.0 + math.cos(math.pi * progress))
