"""The processes of a gang: asked together, lost together, made anew together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from ray.exceptions import RayError

from actors.faults.awaiting import started
from actors.faults.restarts import InputsLost, Lost, answered, cause_of, end, lost, made, told
from actors.faults.vitals import Vitals
from rlaif.config.faults import FaultsConfig
from rlaif.pipeline.board import Board
from rlaif.pipeline.budgets import Budget
from rlaif.pipeline.health import Event

__all__ = ["LearnersLost", "Ranks"]

# What a rank that lives says when another one of its group is gone, under gloo and NCCL.
_BROKEN_GROUP = ("DistBackendError", "DistNetworkError", "DistStoreError")
_BROKEN_PIPE = ("gloo", "nccl", "Connection closed by peer", "Connection reset by peer")


class LearnersLost(RuntimeError):
    """A rank is gone, and with it what the gang holds: it is to be rebuilt and brought to the last checkpoint."""


class Ranks:
    """`num_actors` actors that only work together. make(rank) gives the handle of one that is being started.

    lacks(rank): in words why it has no place to be at, None where it has: that is told, and waited for up to
    place_timeout_s.
    """

    def __init__(self, role: str, make: Callable[[int], Any], num_actors: int, faults: FaultsConfig, board: Board,
                 say: Callable[[str], None], *, lacks: Callable[[int], str | None] = lambda rank: None,
                 place_timeout_s: float = 300.0) -> None:
        self.role, self._make, self._faults, self._board, self._say = role, make, faults, board, say
        self._lacks, self._place_timeout_s = lacks, place_timeout_s
        self.actors = [make(rank) for rank in range(num_actors)]
        self.num_rebuilt = 0
        self._known: list[Vitals | None] = [None] * num_actors
        self._has_met = False
        self._why: str | None = None        # the gang is lost
        self._budget = Budget(faults.max_learner_restarts, "faults.max_learner_restarts")

    async def all(self, what: str, call: Callable[[Any], Awaitable[Any]]) -> list[Any]:
        """What call(actor) gives of every rank, in their order.

        After each hang_s without the whole answer, ranks that have met are asked whether they live. Raises LearnersLost
        where one does not, now or before; InputsLost where an object that the call reads is gone, for all of them; what
        a rank raises as it is.
        """
        if self._why is not None:
            raise LearnersLost(self._why)
        tasks = [asyncio.ensure_future(_await(call(actor))) for actor in self.actors]
        try:
            with self._board.doing(self.role, f"{len(tasks)} ranks" if len(tasks) > 1 else f"{self.role}-0", what):
                return await self._together(tasks)
        finally:
            for task in tasks:
                task.cancel()
                task.add_done_callback(_look_at)

    async def _together(self, tasks: list[asyncio.Task]) -> list[Any]:
        while True:
            done, waiting = await asyncio.wait(tasks, timeout=self._faults.hang_s,
                                               return_when=asyncio.FIRST_EXCEPTION)
            failed = [task.exception() for task in tasks if task in done and task.exception() is not None]
            if not waiting and not failed:
                return [task.result() for task in tasks]
            reasons = dict(zip(range(len(tasks)), map(_lost_rank, tasks), strict=True))
            if self._has_met:       # before that a rank may still be starting, and answers nothing
                for rank, vitals in enumerate(await self._pinged()):
                    if vitals is None and reasons[rank] is None:
                        reasons[rank] = f"no answer to a ping within {self._faults.ping_s:g} s"
            gone = {rank: reason for rank, reason in reasons.items() if reason is not None}
            if gone:
                self._lose("; ".join(f"{self.role}-{rank}: {reason}" for rank, reason in gone.items()), failed)
            if failed and _tells_of_a_broken_group(failed[0]):
                self._lose(told(failed[0]), failed)
            if failed and lost(failed[0]) is Lost.INPUTS:
                if not await self._none_has_begun(tasks):
                    self._lose(f"some cannot read what others are at work on: {told(failed[0])}", failed)
                raise InputsLost(f"{self.role}s cannot read what they are to work on: {told(failed[0])}") from failed[0]
            if failed:
                raise failed[0]

    async def _none_has_begun(self, tasks: list[asyncio.Task]) -> bool:
        """Whether no rank can read what it was given. One that can waits in the midst of the work for the others, and
        would take their next work for the rest of this."""
        await asyncio.wait(tasks, timeout=self._faults.ping_s)
        errors = [task.exception() if task.done() else None for task in tasks]
        return all(error is not None and lost(error) is Lost.INPUTS for error in errors)

    def _lose(self, why: str, failed: list[BaseException]) -> None:
        self._why = why
        raise LearnersLost(why) from (failed[0] if failed else None)

    async def _pinged(self) -> list[Vitals | None]:
        answers = await asyncio.gather(*(answered(actor, self._faults.ping_s) for actor in self.actors))
        found = [None if isinstance(answer, Event) else answer for answer in answers]
        self._known = [new or old for new, old in zip(found, self._known, strict=True)]
        return found

    async def met(self) -> None:
        """All ranks answer: from now on one that does not hangs, and its processes, which are noted, can be ended."""
        await self._pinged()
        self._has_met = True

    async def rebuild(self) -> None:
        """Ends what is left of the ranks and starts others in their places. Raises BudgetSpent where that has been done
        too often, and UserError where there is no place for one."""
        why = self._why or "it was asked to start anew"
        self._budget.spend(self.role, why)
        self._say(f"{self.role}s are lost ({why}) and start anew, all {len(self.actors)}")
        with self._board.doing(self.role, f"{len(self.actors)} ranks", "other processes in their places"):
            await asyncio.gather(*(end(actor, known) for actor, known in zip(self.actors, self._known, strict=True)))
            self._known = [None] * len(self.actors)
            self.actors = list(await asyncio.gather(*(made(self._make, rank) for rank in range(len(self.actors)))))
            await asyncio.gather(*(self._placed(rank) for rank in range(len(self.actors))))
        self.num_rebuilt += 1
        self._has_met, self._why = False, None

    async def _placed(self, rank: int) -> None:
        """Returns once the rank answers. One that cannot is told of by the first call to all."""
        with contextlib.suppress(RayError, TimeoutError):
            await started(self.actors[rank].ping.remote(), f"{self.role}-{rank}", self._place_timeout_s,
                          lambda: self._lacks(rank), self._say)


def _lost_rank(task: asyncio.Task) -> str | None:
    """Why the rank that was asked is gone; None where it has answered, raised, or not answered yet."""
    error = task.exception() if task.done() and not task.cancelled() else None
    # What a rank says of an actor that it has asked in turn is no word on the rank.
    is_own = isinstance(error, RayError) and cause_of(error) is error
    return told(error) if is_own and lost(error) is Lost.ACTOR else None


def _tells_of_a_broken_group(error: BaseException) -> bool:
    cause = cause_of(error)
    return type(cause).__name__ in _BROKEN_GROUP or (
        isinstance(cause, RuntimeError) and any(sign in str(cause) for sign in _BROKEN_PIPE))


async def _await(reference: Awaitable[Any]) -> Any:
    return await reference


def _look_at(task: asyncio.Task) -> None:
    if not task.cancelled():
        task.exception()
