"""Ranks of Ray that die, hang and speak of each other's death."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import ray
from ray.exceptions import ObjectLostError, RayActorError

from actors.faults.awaiting import awaited
from actors.faults.restarts import InputsLost
from actors.faults.vitals import HEALTH, Vitals, vitals
from actors.learners.ranks import LearnersLost, Ranks
from rlaif.config.faults import FaultsConfig
from rlaif.pipeline.board import Board
from rlaif.pipeline.budgets import BudgetSpent


@pytest.fixture(scope="module", autouse=True)
def small_ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@ray.remote(num_cpus=0, concurrency_groups=HEALTH)
class Rank:
    def __init__(self, rank: int) -> None:
        self._rank = rank

    @ray.method(concurrency_group="health")
    def ping(self, with_stacks: bool = False) -> Vitals:
        return vitals(with_stacks)

    def step(self, how: str = "", seconds: float = 0.0) -> int:
        if self._rank == 1 and how == "exits":
            os._exit(1)
        if self._rank == 1 and how == "stops":
            os.kill(os.getpid(), signal.SIGSTOP)
        if self._rank == 0 and how in ("exits", "stops"):
            time.sleep(1.0)
            if how == "exits":
                raise RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer [127.0.0.1]")
            time.sleep(60.0)
        if how == "raises":
            raise ValueError("loss must be finite, got nan")
        if how == "asked":
            raise RayActorError(error_msg="The engine that was asked is dead")
        time.sleep(seconds)
        return os.getpid()


def run(body: Callable[[Ranks], Awaitable[Any]], limit: int = 2) -> tuple[Any, Ranks, list[str]]:
    lines, name = list[str](), f"rank{time.monotonic_ns()}"
    faults = FaultsConfig(hang_s=2.0, ping_s=2.0, max_learner_restarts=limit)

    async def go() -> tuple[Any, Ranks, list[str]]:
        ranks = Ranks("learner", lambda rank: Rank.options(name=f"{name}-{rank}").remote(rank), 2, faults, Board(),
                      lines.append)
        await ranks.all("pids", lambda actor: actor.step.remote())
        await ranks.met()
        return await asyncio.wait_for(body(ranks), 90.0), ranks, lines

    return asyncio.run(go())


async def pids(ranks: Ranks) -> list[int]:
    return await ranks.all("pids", lambda actor: actor.step.remote())


@pytest.mark.parametrize("how", ["exits", "stops"])
def test_a_lost_rank_is_told_apart_and_the_gang_is_made_anew(how: str) -> None:
    async def body(ranks: Ranks) -> Any:
        before = await pids(ranks)
        with pytest.raises(LearnersLost, match="learner-1: ") as lost:
            await ranks.all("a step", lambda actor: actor.step.remote(how))
        with pytest.raises(LearnersLost):       # until it is rebuilt
            await pids(ranks)
        await ranks.rebuild()
        return before, str(lost.value), await pids(ranks)       # which waits for them however long they take

    (before, why, after), ranks, lines = run(body)
    assert not set(before) & set(after) and ranks.num_rebuilt == 1
    assert "learner-0" not in why and lines == [f"learners are lost ({why}) and start anew, all 2"]
    for pid in before:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_long_step_of_living_ranks_is_waited_for() -> None:
    async def body(ranks: Ranks) -> Any:
        return await ranks.all("a step", lambda actor: actor.step.remote("", 5.0))

    found, ranks, lines = run(body)
    assert len(set(found)) == 2 and ranks.num_rebuilt == 0 and lines == []


def test_what_all_ranks_raise_is_raised_and_an_engine_that_is_gone_is_no_rank_that_is_gone() -> None:
    async def body(ranks: Ranks) -> Any:
        with pytest.raises(ValueError, match="loss must be finite, got nan"):
            await ranks.all("a step", lambda actor: actor.step.remote("raises"))
        with pytest.raises(RayActorError, match="The engine that was asked is dead"):
            await ranks.all("a step", lambda actor: actor.step.remote("asked"))
        return await pids(ranks)

    found, ranks, _ = run(body)
    assert len(found) == 2 and ranks.num_rebuilt == 0


def test_a_lost_batch_is_no_loss_of_a_rank() -> None:
    async def body(ranks: Ranks) -> Any:
        @ray.remote(num_cpus=0)
        class Owner:
            def keep(self) -> list[ray.ObjectRef]:
                return [ray.put("x" * (1 << 20))]

        owner = Owner.remote()
        gone = (await owner.keep.remote())[0]
        ray.kill(owner)
        with pytest.raises(ObjectLostError):
            while True:
                await asyncio.wait_for(awaited(gone), 20.0)
                await asyncio.sleep(0.2)
        with pytest.raises(InputsLost, match="learners cannot read what they are to work on"):
            await ranks.all("a step", lambda actor: actor.step.remote(gone))

    _, ranks, _ = run(body)
    assert ranks.num_rebuilt == 0


def test_too_many_losses_spend_the_budget() -> None:
    async def body(ranks: Ranks) -> Any:
        with pytest.raises(LearnersLost):
            await ranks.all("a step", lambda actor: actor.step.remote("exits"))
        with pytest.raises(BudgetSpent, match=r"max_learner_restarts must be at least 1") as spent:
            await ranks.rebuild()
        return str(spent.value)

    line, _, _ = run(body, limit=0)
    assert "learner failed 1 times, last because learner-1: " in line and "\n" not in line
