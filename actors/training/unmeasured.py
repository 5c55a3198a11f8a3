"""A run without evaluations: nobody is there who could write or judge held-out completions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlaif.running.stopping import Evaluated

__all__ = ["Unmeasured"]


class Unmeasured:
    """As actors.training.held_out.HeldOut, with no figures."""

    def __init__(self) -> None:
        self.known, self.step, self.stop = Evaluated(), -1, None
        self.figures: dict[str, float] = {}

    def begin(self) -> None:
        """Nothing was kept."""

    def state(self) -> dict[str, Any]:
        return {"known": {"best_step": None}}

    def restore(self, state: Mapping[str, Any], best: Path) -> None:
        """Nothing was written down."""

    def is_due(self, step: int) -> bool:
        return False

    async def evaluate(self, step: int) -> None:
        """Measures nothing."""
