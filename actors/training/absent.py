"""Learners that are not there: a run that only rolls out and judges has a place for them all the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlaif.metrics import Metric

__all__ = ["NoLearners"]


class NoLearners:
    """As actors.learners.gang.Gang where nothing is trained."""

    num_rebuilt = 0

    @property
    def handles(self) -> dict[str, Any]:
        return {}

    async def join(self) -> str:
        return ""

    async def update_policy(self, chosen: Any, kl_coefficient: float, scored: Sequence[Any]) -> dict[str, Metric]:
        return {}

    async def release(self) -> None:
        """There is no memory to give back."""

    async def save_state(self, folder: str) -> dict[str, Any]:
        return {}

    async def load_state(self, folder: str) -> None:
        """There is nothing to go on from."""
