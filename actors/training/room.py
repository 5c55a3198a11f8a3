"""Room in the engines: rows are sent to them when they can soon be served, in the order in which they are asked for."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator

__all__ = ["Room"]


class Room:
    """At most `num_rows` rows are under way inside `taken`, or one call of any size; None: as many as there are.

    What waits outside goes to whichever engine has less to do once it is its turn. Sent at once it would be bound to
    an engine whose rows may turn out to be the longest, while others stand still.
    """

    def __init__(self, num_rows: int | None = None) -> None:
        self._num_rows, self._under_way = num_rows, 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @contextlib.asynccontextmanager
    async def taken(self, num_rows: int) -> AsyncIterator[None]:
        """Returns, first come first served, once there is room for `num_rows`; gives it back at the end."""
        if self._num_rows is None:
            yield
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((num_rows, turn))
        self._admit()
        try:
            await turn
            yield
        finally:
            if turn.done() and not turn.cancelled():
                self._under_way -= num_rows
            else:       # given up: `_admit` leaves it out, if it has not done so already
                turn.cancel()
            self._admit()

    def _admit(self) -> None:
        assert self._num_rows is not None
        while self._waiting:
            num_rows, turn = self._waiting[0]
            if turn.cancelled():
                self._waiting.popleft()
                continue
            if self._under_way and self._under_way + num_rows > self._num_rows:
                return
            self._waiting.popleft()
            self._under_way += num_rows
            turn.set_result(None)
