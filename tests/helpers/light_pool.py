"""A pool of actors that do nothing but answer, for what befalls their nodes.

`python -m tests.helpers.light_pool` joins the cluster of RAY_ADDRESS and prints what it sees, for who cuts it off.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import ray

from actors.cluster.connection import connect
from actors.cluster.placement import Placement
from actors.faults.pool import Pool
from actors.faults.vitals import HEALTH, Vitals, vitals
from rlaif.config.faults import FaultsConfig
from rlaif.config.train import RoleConfig
from rlaif.metrics import Sum
from rlaif.pipeline.budgets import Budget

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


def pool_on_two_nodes(limit_s: float, say: Callable[[str], None]) -> tuple[Pool, Placement]:
    """worker-0 and worker-1, a CPU each, on different nodes. limit_s: for a place elsewhere."""
    placement = Placement({"worker": RoleConfig(num_actors=2, strategy="STRICT_SPREAD")}, "PACK", 30.0)
    pool = Pool("worker", lambda index: Worker.options(**placement.options("worker", index)).remote(), 2, Budget(8),
                FAULTS, say=say, ready_timeout_s=limit_s, lacks=lambda index: placement.lacks("worker", index))
    return pool, placement


async def answers(pool: Pool, after_the_first: Callable[[], Awaitable[Any]]) -> list[int]:
    """Of NUM_CALLS calls made all at once, to whoever is free."""
    calls = [asyncio.ensure_future(pool.ask(1, lambda actor, number=number: actor.work.options(num_returns=2).remote(
        number))) for number in range(NUM_CALLS)]
    await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    await after_the_first()
    return [await answer.tables[0] for answer in await asyncio.gather(*calls)]


async def _seen() -> None:
    def say(line: str) -> None:
        print(line, flush=True)

    async def told() -> None:
        say("first answer")

    pool, placement = pool_on_two_nodes(60.0, say)
    try:
        await pool.ready()
        say(json.dumps({"answers": await answers(pool, told), "figures": pool.figures()}))
    finally:
        pool.close()
        placement.remove()


if __name__ == "__main__":
    connect()
    asyncio.run(_seen())
