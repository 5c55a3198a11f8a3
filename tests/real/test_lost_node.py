"""A node of Ray that is lost under a pool: the short form of test_nodes.py, with actors that do nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
import ray

from actors.cluster.placement import Placement
from actors.faults import awaiting
from actors.faults.pool import Pool
from actors.faults.vitals import HEALTH, Vitals, vitals
from rlaif.config.checks import UserError
from rlaif.config.faults import FaultsConfig
from rlaif.config.train import RoleConfig
from rlaif.metrics import Sum
from rlaif.pipeline.budgets import Budget
from tests.helpers.nodes import Nodes

FAULTS = FaultsConfig(hang_s=2.0, ping_s=2.0)
NUM_CALLS = 24


@ray.remote(concurrency_groups=HEALTH)
class Worker:
    """Answers each call with its number, a while later."""

    def ready(self) -> None:
        pass

    @ray.method(concurrency_group="health")
    def ping(self, with_stacks: bool = False) -> Vitals:
        return vitals(with_stacks)

    def work(self, number: int) -> tuple[int, dict[str, Sum]]:
        time.sleep(0.25)
        return number, {"num_rows": Sum(1)}


def pool_on(limit_s: float, lines: list[str]) -> tuple[Pool, Placement]:
    """Two workers on different nodes of one CPU."""
    placement = Placement({"worker": RoleConfig(num_actors=2, strategy="STRICT_SPREAD")}, "PACK", 30.0)
    pool = Pool("worker", lambda index: Worker.options(**placement.options("worker", index)).remote(), 2, Budget(8),
                FAULTS, say=lines.append, ready_timeout_s=limit_s, lacks=lambda index: placement.lacks("worker", index))
    return pool, placement


async def answers(pool: Pool, beside: Callable[[], Any]) -> list[int]:
    """Of calls made all at once to any worker, while `beside` is done in a thread after the first of them."""
    calls = [asyncio.ensure_future(pool.ask(1, lambda actor, number=number: actor.work.options(num_returns=2).remote(
        number))) for number in range(NUM_CALLS)]
    await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.to_thread(beside)
    return [await answer.tables[0] for answer in await asyncio.gather(*calls)]


async def until(is_so: Callable[[], bool], limit_s: float = 40.0) -> None:
    async with asyncio.timeout(limit_s):
        while not is_so():
            await asyncio.sleep(0.1)


def lose_a_node(nodes: Nodes) -> None:
    nodes.lose(next(node for node, names in nodes.actors().items() if names == ["worker-1"]))


def test_calls_on_a_lost_node_are_answered_elsewhere_and_its_actor_waits_for_a_node_and_no_longer_than_it_may(
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(awaiting, "PLACE_S", 2.0)
    nodes, lines = Nodes([{"num_cpus": 1}, {"num_cpus": 1}]), list[str]()

    async def go() -> None:
        pool, placement = pool_on(8.0, lines)
        try:
            await pool.ready()
            assert sorted(await answers(pool, lambda: lose_a_node(nodes))) == list(range(NUM_CALLS))
            figures = pool.figures()
            assert figures["restarts_worker"] == 1 and figures["calls_again_worker"] >= 1
            await until(lambda: any("worker-1 waits for a place in the cluster, for 8 s at most" in line
                                    for line in lines))
            nodes.add(num_cpus=1)
            await until(lambda: all(health.is_ready for health in pool.health))
            assert lines[-1].startswith("worker-1 serves again after ")
            lose_a_node(nodes)
            with pytest.raises(UserError, match=r"worker-1 must get another place in the cluster within "
                                                r"placement.ready_timeout_s = 8 s, got none: no node has room for"):
                while True:
                    await answers(pool, lambda: None)
        finally:
            pool.close()
            placement.remove()

    try:
        asyncio.run(go())
    finally:
        print("\n".join(lines))
        nodes.close()
