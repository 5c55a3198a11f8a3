"""Equal actors that share work: who is asked, what becomes of a call whose actor is lost, who takes its place."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError

from actors.faults.awaiting import first_of, interrupted_by, look_at, started
from actors.faults.restarts import ActorLost, InputsLost, Lost, answered, end, lost, made, told
from actors.faults.vitals import Vitals
from rlaif.config.checks import UserError
from rlaif.config.faults import FaultsConfig
from rlaif.metrics import Metric
from rlaif.pipeline.board import Board, Waiting
from rlaif.pipeline.budgets import Budget, BudgetSpent
from rlaif.pipeline.health import TRANSITIONS, Event, Health, State, after

__all__ = ["ActorLost", "Answer", "InputsLost", "Pool", "look_at"]


@dataclass(frozen=True)
class Answer:
    """What a call came to: references to the tables it gave, and its metrics."""

    tables: list[ray.ObjectRef]
    metrics: dict[str, Metric]


@dataclass
class _Place:
    """One of a pool's actors, and those that take its place after it."""

    index: int
    actor: Any
    health: Health = field(default_factory=Health)
    in_flight: int = 0                          # rows
    known: Vitals | None = None                 # of the actor's processes
    gone: asyncio.Future[str] | None = None     # done once this actor is lost, with the reason
    lost_at: float | None = None                # of time.monotonic, until it is READY again
    opening: asyncio.Task | None = None


class Pool:
    """Equal actors that share work: each call goes to the READY one with the fewest rows in flight.

    make(index) gives the handle of an actor that is being started; the same call makes the one that takes its place.
    catch_up: of actors with weights of their own: brings those of now to actor `index`, which has started, and tells
    the pool by `current`; None where actors hold nothing. lacks: in words why actor `index` has no place to be at; None
    where it has. say: gets one line for every loss and every return.
    """

    def __init__(self, role: str, make: Callable[[int], Any], num_actors: int, budget: Budget,
                 faults: FaultsConfig | None = None, *, ready_timeout_s: float = 300.0, board: Board | None = None,
                 catch_up: Callable[[int], Awaitable[None]] | None = None,
                 lacks: Callable[[int], str | None] = lambda index: None,
                 say: Callable[[str], None] = lambda line: None) -> None:
        self.role, self._make, self._budget = role, make, budget
        self._faults, self._ready_timeout_s = faults or FaultsConfig(), ready_timeout_s
        self._board, self._catch_up, self._lacks, self._say = board or Board(), catch_up, lacks, say
        self._places = [_Place(index, make(index)) for index in range(num_actors)]
        self._counts: Counter[str] = Counter()
        self._waiting: list[asyncio.Future] = []
        self._failed: Exception | None = None

    @property
    def actors(self) -> list[Any]:
        """The handles of now, dead ones included until another takes their place."""
        return [place.actor for place in self._places]

    @property
    def handles(self) -> dict[str, Any]:
        """The same by name."""
        return {self._name(place): place.actor for place in self._places}

    @property
    def health(self) -> list[Health]:
        return [place.health for place in self._places]

    @property
    def in_flight(self) -> list[int]:
        """Rows that each actor has been asked about and has not answered."""
        return [place.in_flight for place in self._places]

    @property
    def starting(self) -> list[str]:
        """The names of those that have not answered yet."""
        return [self._name(place) for place in self._places if place.health.state is State.STARTING]

    @property
    def failure(self) -> Exception | None:
        """What whoever asks for an actor is told; None as long as nothing has gone wrong for good."""
        return self._failed

    def figures(self) -> dict[str, float]:
        """Counts since the start: <count>_<role>; and how many are ready now. Nothing of a role without actors."""
        if not self._places:
            return {}
        names = ("restarts", "hung", "calls_again", "missed_syncs")
        return {f"{name}_{self.role}": self._counts[name] for name in names if self._counts[name]} | {
            f"ready_{self.role}": sum(health.is_ready for health in self.health)}

    async def ready(self) -> None:
        """Returns once every actor answers. What the first start of one raises is raised here."""
        self._open()
        await asyncio.gather(*(place.opening for place in self._places if place.opening is not None))

    async def ask(self, num_rows: int, call: Callable[[Any], list[ray.ObjectRef]], *, index: int | None = None
                  ) -> Answer:
        """What `call(actor)` gives: a list of references, the last one to its metrics, which are awaited.

        index: asks actor `index % num_actors`, whoever has less to do. A call whose actor is lost is made again.
        Raises InputsLost where an object that the call reads is gone, and what the actor raises as it is.
        """
        while True:
            place = await self._chosen(index)
            try:
                with self._serving(place, num_rows) as (gone, _):
                    *tables, metrics = call(place.actor)
                    return Answer(tables, await first_of(metrics, gone))
            except ActorLost:
                self._counts["calls_again"] += 1

    @contextlib.asynccontextmanager
    async def turn(self, num_rows: int, *, index: int | None = None
                   ) -> AsyncIterator[tuple[Any, Callable[[], None]]]:
        """An actor for a call that answers bit by bit, and what to call at each bit: it is progress. Raises ActorLost
        where the actor is lost inside: the caller asks again for what it did not get."""
        place = await self._chosen(index)
        try:
            with self._serving(place, num_rows) as (gone, waiting), interrupted_by(gone):
                yield place.actor, lambda: self._board.moved(waiting)
        except ActorLost:
            self._counts["calls_again"] += 1
            raise

    def current(self, index: int, version: int) -> None:
        """Actor `index` holds the weights of now, which are of `version`."""
        self._is_current(self._places[index], version)

    async def any_ready(self) -> None:
        """Returns once an actor is READY."""
        await self._chosen(None)

    async def late(self, index: int, actor: Any, reason: str) -> None:
        """Actor `index` has not taken the weights of now in time: it is lost if it does not answer a ping either."""
        found = await answered(actor, self._faults.ping_s)
        if isinstance(found, Event):
            self.lose(index, actor, f"{reason}, and no answer to a ping", found)
        else:
            self.missed(index, actor, reason)

    def missed(self, index: int, actor: Any, reason: str) -> None:
        """Actor `index`, if it still is `actor`, has not taken the weights of now: it gets no work until it has."""
        place = self._places[index]
        if place.actor is actor and place.health.is_alive:
            place.health = after(place.health, Event.MISSED)
            self._counts["missed_syncs"] += 1
            self._say(f"{self._name(place)} has not taken the new weights: {reason}")

    def rewind(self) -> None:
        """The learners went back to older weights: whoever has started is STALE until he holds those. What had failed
        with the learners before is of no more consequence; a budget that is spent, or a place that nobody has, is."""
        if not isinstance(self._failed, UserError):
            self._failed = None
        for place in self._places:
            if place.health.is_alive:
                place.health = after(place.health, Event.REWOUND)

    def lose(self, index: int, actor: Any, reason: str, event: Event = Event.DIED) -> None:
        """Actor `index`, if it still is `actor`, is lost: it is ended, and another one is started in its place.

        Raises BudgetSpent where that has happened too often in this run.
        """
        place = self._places[index]
        if place.actor is not actor or (place.health.state, event) not in TRANSITIONS:
            return      # told of already
        place.health = after(place.health, event)
        if place.gone is not None and not place.gone.done():
            place.gone.set_result(f"{self._name(place)} is lost: {reason}")
        self._counts["restarts"] += 1
        self._counts["hung"] += event is Event.HUNG
        try:
            self._budget.spend(self._name(place), reason)
        except BudgetSpent as error:
            self._failed = error
            self._wake()
            raise
        place.lost_at = place.lost_at or time.monotonic()
        self._say(f"{self._name(place)} is lost ({reason}) and starts anew")
        place.opening = self._in_background(self._revive(place))

    def close(self) -> None:
        """No other actor takes the place of one that is lost any more."""
        for place in self._places:
            if place.opening is not None:
                place.opening.cancel()

    def _open(self) -> None:
        for place in self._places:
            if place.opening is None:
                place.opening = self._in_background(self._opened(place))

    def _in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task:
        """What goes wrong there is raised by whoever asks for an actor next."""
        async def guarded() -> None:
            try:
                await work
            except Exception as error:
                self._failed = self._failed or error
                self._wake()
                raise

        task = asyncio.ensure_future(guarded())
        task.add_done_callback(look_at)
        return task

    async def _opened(self, place: _Place) -> None:
        """Returns once the actor answers; then it is READY, unless it needs weights first."""
        actor = place.actor
        place.gone = asyncio.get_running_loop().create_future()
        await started(actor.ready.remote(), self._name(place), self._ready_timeout_s,
                      lambda: self._lacks(place.index), self._say)
        found = await answered(actor, self._faults.ping_s)
        place.known = None if isinstance(found, Event) else found
        place.health = after(place.health, Event.STARTED)
        if self._catch_up is None:
            self._is_current(place, None)

    async def _revive(self, place: _Place) -> None:
        """Starts another actor in the place of one that is lost."""
        former, known = place.actor, place.known
        with self._board.doing(self.role, self._name(place), "another actor in its place"):
            await end(former, known)
            place.actor, place.known = await made(self._make, place.index), None
            place.health = after(place.health, Event.RESTARTED)
            actor = place.actor
            try:
                await self._opened(place)
                if self._catch_up is not None:
                    await self._catch_up(place.index)
            except (RayActorError, TimeoutError) as error:
                late = f"must be ready within placement.ready_timeout_s = {self._ready_timeout_s:g} s, got no answer"
                self.lose(place.index, actor, late if isinstance(error, TimeoutError) else told(error))
                return

    def _is_current(self, place: _Place, version: int | None) -> None:
        place.health = after(place.health, Event.CURRENT, version)
        if place.lost_at is not None:
            self._say(f"{self._name(place)} serves again after {time.monotonic() - place.lost_at:.1f} s")
            place.lost_at = None
        self._wake()

    async def _chosen(self, index: int | None) -> _Place:
        """The READY actor with the fewest rows in flight, or actor `index % num_actors` once it is READY."""
        assert self._places, f"there are no {self.role} actors to ask"
        places = self._places if index is None else [self._places[index % len(self._places)]]
        self._open()
        while True:
            if self._failed is not None:
                raise self._failed
            ready = [place for place in places if place.health.is_ready]
            if ready:
                return min(ready, key=lambda place: place.in_flight)
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            who = self.role if index is None else self._name(places[0])
            with self._board.doing(self.role, who, "a READY actor, none is"):
                await waiter

    def _wake(self) -> None:
        """Everybody who waits for an actor looks again."""
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)
        self._waiting.clear()

    @contextlib.contextmanager
    def _serving(self, place: _Place, num_rows: int) -> Iterator[tuple[asyncio.Future[str], Waiting]]:
        """Inside, the actor is at work on `num_rows`, and is asked after each hang_s whether it lives. Gives what tells
        of its loss, and its entry on the board; raises ActorLost or InputsLost for errors that mean it."""
        actor, gone = place.actor, place.gone
        assert gone is not None
        place.in_flight += num_rows
        guard = asyncio.ensure_future(self._guard(place, actor))
        try:
            with self._board.doing(self.role, self._name(place), f"its answer to {num_rows} rows") as waiting:
                yield gone, waiting
        except Exception as error:
            what = lost(error)
            if what is Lost.ACTOR:
                self.lose(place.index, actor, told(error))
                raise ActorLost(f"{self._name(place)} is lost: {told(error)}") from error
            if what is Lost.INPUTS:
                raise InputsLost(f"{self._name(place)} cannot read its rows: {told(error)}") from error
            raise
        finally:
            guard.cancel()
            place.in_flight -= num_rows

    async def _guard(self, place: _Place, actor: Any) -> None:
        limits = self._faults
        while True:
            await asyncio.sleep(limits.hang_s)
            found = await answered(actor, limits.ping_s)
            if isinstance(found, Event):
                with contextlib.suppress(BudgetSpent):      # whoever asks next is told
                    self.lose(place.index, actor, f"no answer to a call of {limits.hang_s:g} s, nor to a ping within "
                                                  f"{limits.ping_s:g} s", found)
                return
            place.known = found

    def _name(self, place: _Place) -> str:
        return f"{self.role}-{place.index}"
