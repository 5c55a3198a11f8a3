"""A clock that only sleeps move: what a simulation comes to on a machine that takes no time to run it."""

from __future__ import annotations

import asyncio
import selectors
from typing import Any

__all__ = ["VirtualLoop"]


class _Selector(selectors.SelectSelector):
    """Never waits: where the loop would, its clock is put on."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("the simulation must have something to wait for, got nothing: it would stand still")
        self._loop.now += max(0.0, timeout)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose `time` stands still while anything is done, and jumps to the next sleep's end. No thread may
    be awaited."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(_Selector(self))

    def time(self) -> float:
        return self.now
