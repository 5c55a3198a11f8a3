"""The pool with actors of Ray that die, hang, raise and lose what they gave."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray
from ray.exceptions import ObjectLostError, RayTaskError

from actors.cluster.connection import AUTH_MODE
from actors.faults.awaiting import awaited
from actors.faults.pool import ActorLost, InputsLost, Pool
from actors.faults.restarts import Lost, lost
from actors.faults.vitals import HEALTH, EngineLost, Vitals, vitals
from rlaif.config.faults import FaultsConfig
from rlaif.metrics import Sum
from rlaif.pipeline.budgets import Budget, BudgetSpent
from rlaif.pipeline.health import State

FAULTS = FaultsConfig(hang_s=1.0, ping_s=2.0)


@pytest.fixture(scope="module", autouse=True)
def small_ray() -> Iterator[None]:
    assert AUTH_MODE
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@ray.remote(num_cpus=0, concurrency_groups=HEALTH)
class Worker:
    """Says who it is, and can be told to fail in many ways."""

    def __init__(self, index: int) -> None:
        self._index = index

    def ready(self) -> None:
        pass

    @ray.method(concurrency_group="health")
    def ping(self, with_stacks: bool = False) -> Vitals:
        return vitals(with_stacks)

    def work(self, seconds: float = 0.0, how: str = "") -> tuple[int, dict[str, Sum]]:
        time.sleep(seconds)
        if how == "exits":
            os._exit(1)
        if how == "raises":
            raise ValueError("row 3 must be text, got 7")
        if how == "engine":
            raise EngineLost("EngineCore died")
        if how == "stops":
            os.kill(os.getpid(), signal.SIGSTOP)
        return os.getpid(), {"num_rows": Sum(1)}

    def keep(self) -> list[ray.ObjectRef]:
        return [ray.put(b"x" * (1 << 20))]


@ray.remote(num_cpus=0, concurrency_groups=HEALTH)
class Streamer:
    """Answers bit by bit from an event loop."""

    async def ready(self) -> None:
        pass

    @ray.method(concurrency_group="health")
    def ping(self, with_stacks: bool = False) -> Vitals:
        return vitals(with_stacks)

    async def count(self, up_to: int, how: str) -> Any:
        for number in range(up_to):
            yield number
            await asyncio.sleep(0.05)
        if how == "exits":
            os._exit(1)
        if how == "stops":
            os.kill(os.getpid(), signal.SIGSTOP)
            await asyncio.sleep(0.05)
        yield up_to


def pool_of(num_actors: int = 2, limit: int = 4, faults: FaultsConfig = FAULTS, kind: Any = Worker, **options: Any
            ) -> tuple[Pool, list[str]]:
    lines: list[str] = []
    name = f"worker{time.monotonic_ns()}"

    def make(index: int) -> Any:
        arguments = () if kind is Streamer else (index,)
        return kind.options(name=f"{name}-{index}").remote(*arguments)

    return Pool("worker", make, num_actors, Budget(limit), faults, say=lines.append, **options), lines


def working(seconds: float = 0.0, how: str = "") -> Callable[[Any], list]:
    return lambda actor: actor.work.options(num_returns=2).remote(seconds, how)


def once(how: str, seconds: float = 0.0) -> Callable[[Any], list]:
    """A call that fails the first time."""
    calls: list[int] = []

    def call(actor: Any) -> list:
        calls.append(1)
        return actor.work.options(num_returns=2).remote(*((seconds, how) if len(calls) == 1 else (0.0, "")))

    return call


def run(body: Callable[[Pool], Any], **options: Any) -> tuple[Any, Pool, list[str]]:
    async def go() -> tuple[Any, Pool, list[str]]:
        pool, lines = pool_of(**options)
        await pool.ready()
        try:
            return await asyncio.wait_for(body(pool), 60.0), pool, lines
        finally:
            pool.close()

    return asyncio.run(go())


async def until_ready(pool: Pool) -> None:
    while not all(health.is_ready for health in pool.health):
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("how", ["exits", "engine"])
def test_a_call_whose_actor_dies_is_made_again_and_another_takes_its_place(how: str) -> None:
    async def body(pool: Pool) -> Any:
        first = (await pool.ask(1, working(), index=0)).tables[0]
        answer = await pool.ask(1, once(how), index=0)
        return await first, await answer.tables[0], answer.metrics

    (before, after, metrics), pool, lines = run(body)
    assert before != after and metrics == {"num_rows": Sum(1)}
    assert pool.figures() == {"restarts_worker": 1, "calls_again_worker": 1, "ready_worker": 2}
    assert pool.health[0].num_restarts == 1 and pool.in_flight == [0, 0]
    assert lines[0].startswith("worker-0 is lost (") and lines[1].startswith("worker-0 serves again after ")


def test_without_an_index_another_ready_actor_answers_at_once() -> None:
    async def body(pool: Pool) -> Any:
        again = once("exits")
        began = time.perf_counter()
        answer = await pool.ask(1, again)
        seconds = time.perf_counter() - began
        await until_ready(pool)
        return seconds, time.perf_counter() - began, await answer.tables[0]

    (seconds, whole, _), pool, _ = run(body)
    assert seconds < whole and pool.health[1].num_restarts == 0 < pool.health[0].num_restarts


def test_all_calls_under_way_on_a_lost_actor_are_made_again_and_it_is_counted_once() -> None:
    async def body(pool: Pool) -> Any:
        calls = [pool.ask(1, once("exits" if number == 0 else "")) for number in range(8)]
        return [await answer.tables[0] for answer in await asyncio.gather(*calls)]

    pids, pool, _ = run(body, num_actors=1)
    assert len(pids) == 8 and pool.figures()["restarts_worker"] == 1


def test_a_hung_actor_is_ended_and_its_call_made_again() -> None:
    async def body(pool: Pool) -> Any:
        stopped = await (await pool.ask(1, working(), index=0)).tables[0]
        answer = await pool.ask(1, once("stops"), index=0)
        return stopped, await answer.tables[0]

    (stopped, after), pool, lines = run(body)
    assert stopped != after and pool.figures()["hung_worker"] == 1
    assert "no answer to a call of 1 s, nor to a ping within 2 s" in lines[0]
    with pytest.raises(ProcessLookupError):
        os.kill(stopped, 0)


def test_a_long_call_of_a_living_actor_is_waited_for() -> None:
    async def body(pool: Pool) -> Any:
        return (await pool.ask(1, working(3.0))).metrics

    metrics, pool, lines = run(body)
    assert metrics == {"num_rows": Sum(1)} and lines == [] and pool.figures() == {"ready_worker": 2}


def test_what_an_actor_raises_is_raised_and_restarts_nothing() -> None:
    async def body(pool: Pool) -> Any:
        with pytest.raises(ValueError, match="row 3 must be text, got 7") as raised:
            await pool.ask(1, working(how="raises"))
        assert isinstance(raised.value, RayTaskError) and lost(raised.value) is Lost.NOTHING

    _, pool, lines = run(body)
    assert lines == [] and pool.in_flight == [0, 0]


def test_an_actor_that_always_dies_spends_the_budget_and_everybody_is_told_in_one_line() -> None:
    async def body(pool: Pool) -> Any:
        with pytest.raises(BudgetSpent) as spent:
            await pool.ask(1, working(how="exits"))
        with pytest.raises(BudgetSpent):
            await pool.ask(1, working())
        return str(spent.value)

    line, pool, _ = run(body, num_actors=1, limit=2)
    assert line.startswith("faults.max_restarts must be at least 3 for this run to go on, got 2: worker-0 failed 3 "
                           "times, last because ") and "\n" not in line
    assert pool.health[0].state is State.DEAD


def test_a_lost_object_is_no_loss_of_the_actor() -> None:
    async def body(pool: Pool) -> Any:
        owner = Worker.remote(0)
        gone = (await owner.keep.remote())[0]
        ray.kill(owner)
        with pytest.raises(ObjectLostError):
            while True:
                await asyncio.wait_for(awaited(gone), 20.0)
                await asyncio.sleep(0.2)
        with pytest.raises(InputsLost, match=r"worker-\d cannot read its rows: "):
            await pool.ask(1, lambda actor: actor.work.options(num_returns=2).remote(gone))

    _, pool, lines = run(body)
    assert lines == [] and pool.figures() == {"ready_worker": 2}


def test_the_errors_that_mean_a_lost_object_are_told_through_a_task() -> None:
    inner = ObjectLostError("ab", None, "")
    assert lost(inner) is Lost.INPUTS
    assert lost(RayTaskError("work", "", inner)) is Lost.INPUTS
    assert lost(RayTaskError("work", "", RayTaskError("inner", "", EngineLost()))) is Lost.ACTOR
    assert lost(ValueError()) is Lost.NOTHING


@pytest.mark.parametrize("how", ["exits", "stops"])
def test_a_stream_that_breaks_off_says_so_and_what_it_gave_stays(how: str) -> None:
    async def body(pool: Pool) -> Any:
        got: list[int] = []
        with pytest.raises(ActorLost, match="worker-0"):
            async with pool.turn(3, index=0) as (actor, _):
                async for reference in actor.count.options(num_returns="streaming").remote(2, how):
                    got.append(await reference)
        async with pool.turn(3, index=0) as (actor, _):
            again = [await reference async for reference in actor.count.options(num_returns="streaming").remote(2, "")]
        return got, again

    (got, again), pool, _ = run(body, kind=Streamer)
    assert got == [0, 1] and again == [0, 1, 2]
    assert pool.figures() == {"restarts_worker": 1, "calls_again_worker": 1, "ready_worker": 2} | (
        {"hung_worker": 1} if how == "stops" else {})


def test_an_actor_with_weights_gets_no_call_until_it_has_caught_up() -> None:
    caught: list[int] = []

    async def body(pool: Pool) -> Any:
        async def catch_up(index: int) -> None:
            await asyncio.sleep(0.2)
            caught.append(index)
            pool.current(index, 7)

        pool._catch_up = catch_up
        assert [health.state for health in pool.health] == [State.STALE, State.STALE]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pool.ask(1, working()), 0.3)
        for index in (0, 1):
            pool.current(index, 7)
        await pool.ask(1, once("exits"), index=1)

    async def nothing(index: int) -> None:
        pass

    _, pool, _ = run(body, catch_up=nothing)
    assert caught == [1] and [health.version for health in pool.health] == [7, 7]
    assert [health.num_restarts for health in pool.health] == [0, 1]
