"""Prompts by their difficulty: the running mean of the rewards that the policy earns with them.

A prompt that the policy always or never answers well gives a group of equal rewards, and with it no gradient.
"""

from __future__ import annotations

import math
from typing import Any

from rlaif.config.prompts import CurriculumConfig


def probability(mean: float | None, config: CurriculumConfig) -> float:
    """How likely a prompt of that mean reward is taken when its turn comes; 1 for one that has none yet.

    bounds: 1 where low < mean < high, else `outside`.
    middle: max(outside, 4 t (1 - t)), t = (mean - low) / (high - low) cut to 0..1: of rewards 0 and 1 the variance in
        the prompt's group, which is what the advantages are made of, as a share of the largest.
    """
    if mean is None or config.prefer == "none":
        return 1.0
    if config.prefer == "bounds":
        return 1.0 if config.low < mean < config.high else config.outside
    t = min(1.0, max(0.0, (mean - config.low) / (config.high - config.low)))
    return max(config.outside, 4 * t * (1 - t))


class Curriculum:
    """The mean reward of every prompt that has been tried, as new = decay old + (1 - decay) reward of its group."""

    def __init__(self, config: CurriculumConfig) -> None:
        self._config = config
        self._means: dict[int, float] = {}
        self._num_hard = self._num_easy = 0

    @property
    def is_on(self) -> bool:
        return self._config.prefer != "none"

    def probability(self, prompt_id: int) -> float:
        """How likely the prompt is taken when its turn comes."""
        return probability(self._means.get(prompt_id), self._config)

    def observe(self, prompt_id: int, reward: float) -> None:
        """Takes in the mean reward of one group of the prompt. Raises ValueError if it is not finite."""
        if not math.isfinite(reward):
            raise ValueError(f"reward must be finite, got {reward} for prompt {prompt_id}")
        old, decay = self._means.get(prompt_id), self._config.decay
        self._count(old, -1)
        self._means[prompt_id] = reward if old is None else decay * old + (1 - decay) * reward
        self._count(self._means[prompt_id], 1)

    def _count(self, mean: float | None, change: int) -> None:
        if mean is not None:
            self._num_hard += change * (mean <= self._config.low)
            self._num_easy += change * (mean >= self._config.high)

    def figures(self) -> dict[str, int]:
        """prompts_tried, prompts_hard (mean <= low) and prompts_easy (mean >= high)."""
        return {"prompts_tried": len(self._means), "prompts_hard": self._num_hard, "prompts_easy": self._num_easy}

    def state(self) -> dict[str, Any]:
        """What `restore` takes, as JSON can write it without loss."""
        return {"prompt_ids": list(self._means), "means": list(self._means.values())}

    def restore(self, state: dict[str, Any]) -> None:
        self._means, self._num_hard, self._num_easy = {}, 0, 0
        for prompt_id, mean in zip(state["prompt_ids"], state["means"], strict=True):
            self._means[int(prompt_id)] = float(mean)
            self._count(float(mean), 1)
