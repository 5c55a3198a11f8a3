"""What a run is waiting for: every call under way, on one board, and which of them have waited too long."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

__all__ = ["Board", "Waiting"]


@dataclass
class Waiting:
    """Something under way. stage: rollout, explain, learn, ...; who: the actor; what: it is waited for. Times are in
    seconds of the board's clock; `moved` is when it last got on."""

    stage: str
    who: str
    what: str
    since: float
    moved: float
    num_told: int = 0       # lines about it so far

    def line(self, now: float) -> str:
        """In words: stage, actor, since when, what is waited for."""
        stood = now - self.moved
        since = "" if self.moved == self.since else f", under way for {now - self.since:.0f} s"
        return f"{self.stage}: {self.who} without progress for {stood:.0f} s{since}; waits for {self.what}"


class Board:
    """Written to by whoever makes a call, read by the watchdog."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._entries, self._num_entries = clock, dict[int, Waiting](), 0
        self._bare_since = clock()

    def watched(self) -> None:
        """Somebody begins to look: that there was nothing under way before means nothing."""
        self._bare_since = self._clock()

    @contextlib.contextmanager
    def doing(self, stage: str, who: str, what: str) -> Iterator[Waiting]:
        """Inside, `who` is waited for; call `moved` with what is given whenever it gets on."""
        self._num_entries += 1
        number, now = self._num_entries, self._clock()
        self._entries[number] = Waiting(stage, who, what, now, now)
        try:
            yield self._entries[number]
        finally:
            del self._entries[number]
            self._bare_since = self._clock()

    def moved(self, waiting: Waiting) -> None:
        waiting.moved, waiting.num_told = self._clock(), 0

    @property
    def entries(self) -> list[Waiting]:
        """Everything under way, the one that has stood longest first."""
        return sorted(self._entries.values(), key=lambda entry: entry.moved)

    def warnings(self, warn_s: float) -> list[str]:
        """A line for each entry that has stood for warn_s, and again for 2, 4, 8, ... times as long; one for all
        entries that say the same."""
        now, lines = self._clock(), []
        for entry in self.entries:
            if now - entry.moved >= warn_s * 2 ** entry.num_told:
                entry.num_told += 1
                while now - entry.moved >= warn_s * 2 ** entry.num_told:
                    entry.num_told += 1
                lines.append(entry.line(now))
        return list(dict.fromkeys(lines))

    def stuck(self, stuck_s: float) -> str | None:
        """The line of the entry that has stood longest, where that is stuck_s or more; or of the driver, where nothing
        has been under way for so long: it waits for what nobody wrote down."""
        now = self._clock()
        if not self._entries and now - self._bare_since >= stuck_s:
            return f"driver: nothing under way for {now - self._bare_since:.0f} s; waits for what is not on the board"
        return next((entry.line(now) for entry in self.entries[:1] if now - entry.moved >= stuck_s), None)
