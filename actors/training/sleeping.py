"""Rollout engines that lend their GPUs to the learners: told to sleep and to wake, and found out where they hang."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from actors.faults.awaiting import awaited, look_at
from actors.faults.pool import Pool
from actors.faults.restarts import Lost, answered, lost, told
from rlaif.config.faults import FaultsConfig
from rlaif.pipeline.board import Board
from rlaif.pipeline.health import Event

__all__ = ["Sleepers"]


class Sleepers:
    """The engines of `pool`, all told together. Who is gone, or hangs, is replaced, and the others go on."""

    def __init__(self, pool: Pool, board: Board, faults: FaultsConfig) -> None:
        self._pool, self._board, self._faults = pool, board, faults
        self.are_asleep = False

    async def sleep(self) -> None:
        """Their GPUs are the learners'. Raises what an engine that lives refuses with."""
        await self._tell("its sleep", lambda actor: actor.sleep.remote())
        self.are_asleep = True

    async def wake(self) -> None:
        """Their GPUs are theirs again."""
        await self._tell("its waking", lambda actor: actor.wake.remote())
        self.are_asleep = False

    async def _tell(self, what: str, call: Callable[[Any], Awaitable[None]]) -> None:
        actors = list(self._pool.actors)
        answers = await asyncio.gather(*(self._told(index, actor, what, call(actor))
                                         for index, actor in enumerate(actors)), return_exceptions=True)
        for index, answer in enumerate(answers):
            if isinstance(answer, Exception):
                if lost(answer) is not Lost.ACTOR:
                    raise answer
                self._pool.lose(index, actors[index], told(answer))

    async def _told(self, index: int, actor: Any, what: str, answer: Awaitable[None]) -> None:
        """Returns once the engine has done it, or is lost; one that is only starting does it afterwards."""
        task, faults = asyncio.ensure_future(awaited(answer)), self._faults
        task.add_done_callback(look_at)
        with self._board.doing("rollout", f"rollout-{index}", what):
            while True:
                await asyncio.wait({task}, timeout=faults.hang_s)
                if task.done():
                    return task.result()
                if self._pool.failure is not None:      # such as: there is no place for one
                    raise self._pool.failure
                if self._pool.health[index].is_alive:
                    found = await answered(actor, faults.ping_s)
                    if isinstance(found, Event):
                        self._pool.lose(index, actor, f"no answer for {faults.hang_s:g} s, nor to a ping within "
                                        f"{faults.ping_s:g} s", found)
                        return None
