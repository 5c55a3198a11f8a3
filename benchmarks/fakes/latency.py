"""FAKE: how long the stages take, in sleeps. Units of a stage work side by side; what each has worked is added up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["Latency", "Span", "Units", "skewed_lengths"]


@dataclass(frozen=True)
class Span:
    """A stage's actor at work. Seconds since the start of the timeline."""

    stage: str
    who: int
    start_s: float
    end_s: float
    num_rows: int


@dataclass(frozen=True)
class Latency:
    """What a stage takes. A rollout engine decodes `num_slots` completions at once, token after token, whoever came
    first; explainers and judges read a batch at a time.

    barrier: nothing is explained before all rollouts of a step are there, nothing scored before all is explained.
    """

    token_s: float = 0.0                # of a completion's token
    num_slots: int = 32                 # completions an engine decodes at once
    explain_row_s: float = 0.0
    score_row_s: float = 0.0
    learn_s: float = 0.0                # of a step
    sync_s: float = 0.0                 # of a step; engines stand still meanwhile
    barrier: bool = False


def skewed_lengths(seed: int, group_id: int, group_size: int, *, median: int = 48, spread: float = 0.7,
                   longest: int = 256) -> np.ndarray:
    """Tokens of a group's completions, log-normal and cut at `longest`: the same for the same seed and group."""
    drawn = np.random.default_rng([seed, group_id]).lognormal(np.log(median), spread, group_size)
    return np.clip(drawn, 1, longest).astype(int)


@dataclass
class Units:
    """`num` equal places; `busy_s` adds up the seconds that were asked for, whatever the machine made of the sleeps."""

    num: int
    is_paused: Callable[[], float] = lambda: 0.0       # seconds of standing still so far
    busy_s: float = 0.0
    _free: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self._free = asyncio.Semaphore(self.num)

    async def work(self, seconds: float) -> None:
        async with self._free:
            self.busy_s += seconds
            loop = asyncio.get_running_loop()
            paused, end = self.is_paused(), loop.time() + seconds
            while (left := end + self.is_paused() - paused - loop.time()) > 1e-9:
                await asyncio.sleep(left)


class Barrier:
    """Rows of a stage that have come through, and who waits for a step's worth of them."""

    def __init__(self, rows_per_step: int) -> None:
        self._rows_per_step, self._num_rows, self._changed = rows_per_step, 0, asyncio.Event()

    def came(self, num_rows: int) -> None:
        self._num_rows += num_rows
        self._changed.set()
        self._changed = asyncio.Event()

    async def step(self) -> None:
        """Returns once the step that is under way has all its rows."""
        whole = -(-self._num_rows // self._rows_per_step) * self._rows_per_step
        while self._num_rows < whole:
            await self._changed.wait()


def stage_seconds(units: dict[str, list[Any]], num_steps: int) -> dict[str, float]:
    """Seconds a step that a stage cannot do without, were all its units at work all the time."""
    return {stage: sum(unit.busy_s for unit in found) / sum(unit.num for unit in found) / num_steps
            for stage, found in units.items()}
