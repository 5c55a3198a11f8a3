"""Where a run stands between two steps: what is written down, and what a run that is taken up again goes on from."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from actors.training.held_out import HeldOut
from rlaif.data.prompts import PromptStream
from rlaif.pipeline.ledger import Ledger
from rlaif.pipeline.portions import ScoredPortion
from rlaif.policy.controllers import KlController

__all__ = ["Progress", "Saves", "Tally", "Unsaved"]

T = TypeVar("T")


@dataclass
class Tally:
    """What adds up over the steps of a run."""

    loop_s: float = 0.0             # seconds
    num_rollouts: int = 0
    max_logprob_gap: float = 0.0    # nats

    def add(self, step_values: Mapping[str, Any]) -> None:
        self.loop_s += step_values["step_s"]
        self.num_rollouts += step_values["num_rollouts"]
        self.max_logprob_gap = max(self.max_logprob_gap, step_values.get("max_logprob_gap", 0.0))


@dataclass
class Progress:
    """After `step` learner steps, whose weights the learners hold. What the ledger has in flight is rolled out anew
    by a run that goes on from here; what it has as scored is in `buffered`, in order."""

    step: int
    stream: PromptStream
    ledger: Ledger
    controller: KlController
    held_out: HeldOut
    tally: Tally
    buffered: list[ScoredPortion] = field(default_factory=list)
    before: dict[str, float] | None = None      # figures of the first evaluation; None until there was one


class Saves(Protocol):
    """Who writes a run down: actors.training.saving.Saver."""

    async def restore(self, fresh: Progress) -> Progress | None:
        """Where the run goes on, its learners brought there; None where it begins, as `fresh` says."""

    async def save(self, progress: Progress) -> None:
        """After every step; writes it down where that is due."""

    async def unless_ended(self, work: Awaitable[T]) -> T:
        """What `work` gives; drops it and raises Ended where the run is asked to end meanwhile."""

    @property
    def ends(self) -> str | None:
        """Why the run is to end now, as it was asked to from outside; it is written down."""


class Unsaved:
    """Of a run that nobody writes down."""

    ends = None

    async def restore(self, fresh: Progress) -> Progress | None:
        return None

    async def save(self, progress: Progress) -> None:
        pass

    async def unless_ended(self, work: Awaitable[T]) -> T:
        return await work
