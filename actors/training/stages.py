"""What the stages of a pipeline are doing: how long each was busy, what had to be done again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

STAGES = ("rollout", "explain", "score", "learn", "sync")


class BusyClock:
    """Seconds in which a stage had a call under way, however many at once."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._num_open, self._since, self._seconds, self._told = 0, 0.0, 0.0, 0.0
        self.started: float | None = None       # when the first call began
        self.ended = 0.0                        # when the last call that has ended did

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        if self._num_open == 0:
            self._since = self._clock()
            self.started = self._since if self.started is None else self.started
        self._num_open += 1
        try:
            yield
        finally:
            self._num_open -= 1
            self.ended = self._clock()
            if self._num_open == 0:
                self._seconds += self.ended - self._since

    @property
    def seconds(self) -> float:
        """Until now."""
        return self._seconds + (self._clock() - self._since if self._num_open else 0.0)

    def lap(self) -> float:
        """Busy seconds since the last lap."""
        before, self._told = self._told, self.seconds
        return self._told - before


class Stages:
    """The clocks of all stages, and how many portions were walked again."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clocks = {stage: BusyClock(clock) for stage in STAGES}
        self.num_retried = 0

    def busy(self, stage: str) -> contextlib.AbstractContextManager[None]:
        return self.clocks[stage].busy()

    def lap(self) -> dict[str, float]:
        """<stage>_s since the last lap, and portions_retried."""
        retried, self.num_retried = self.num_retried, 0
        return {f"{stage}_s": clock.lap() for stage, clock in self.clocks.items()} | {"portions_retried": retried}
