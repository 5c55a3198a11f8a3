"""Equal actors that share work."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from rlaif.metrics import Metric


@dataclass(frozen=True)
class Asked:
    """A call that is under way: references to the tables it will give, and its metrics, which come with them."""

    tables: list[ray.ObjectRef]
    metrics: Awaitable[dict[str, Metric]]


class Pool:
    """Equal actors that share work: each call goes to the one with the least in flight, counted in rows."""

    def __init__(self, actors: Sequence[Any]) -> None:
        self.actors = list(actors)
        self._in_flight = [0] * len(self.actors)

    def ask(self, num_rows: int, call: Callable[[Any], list[ray.ObjectRef]]) -> Asked:
        """Makes the call, whose last result is its metrics, on the actor that has least to do."""
        index = min(range(len(self.actors)), key=self._in_flight.__getitem__)
        *tables, metrics = call(self.actors[index])
        self._in_flight[index] += num_rows
        answer = asyncio.ensure_future(self._finish(metrics, index, num_rows))
        answer.add_done_callback(look_at)
        return Asked(tables, answer)

    async def _finish(self, answer: Awaitable[Any], index: int, num_rows: int) -> Any:
        try:
            return await answer
        finally:
            self._in_flight[index] -= num_rows


def look_at(answer: asyncio.Future) -> None:
    """An error is told by whoever waits for the answer. Where nobody does, after another error, it is not told at all.
    """
    if not answer.cancelled():
        answer.exception()
