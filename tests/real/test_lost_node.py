"""A node that is lost, or cut off, under a pool: the short forms of test_nodes.py and test_network.py."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable

import pytest

from actors.faults import awaiting
from rlaif.config.checks import UserError
from tests.helpers.light_pool import NUM_CALLS, answers, pool_on_two_nodes
from tests.helpers.networks import two_hosts
from tests.helpers.nodes import Nodes


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

    async def lose() -> None:
        await asyncio.to_thread(lose_a_node, nodes)

    async def nothing() -> None:
        pass

    async def go() -> None:
        pool, placement = pool_on_two_nodes(8.0, lines.append)
        try:
            await pool.ready()
            assert sorted(await answers(pool, lose)) == list(range(NUM_CALLS))
            figures = pool.figures()
            assert figures["restarts_worker"] == 1 and figures["calls_again_worker"] >= 1
            await until(lambda: any("worker-1 waits for a place in the cluster, for 8 s at most" in line
                                    for line in lines))
            nodes.add(num_cpus=1)
            await until(lambda: all(health.is_ready for health in pool.health))
            assert lines[-1].startswith("worker-1 serves again after ")
            await lose()
            with pytest.raises(UserError, match=r"worker-1 must get another place in the cluster within "
                                                r"placement.ready_timeout_s = 8 s, got none: no node has room for"):
                while True:
                    await answers(pool, nothing)
        finally:
            pool.close()
            placement.remove()

    try:
        asyncio.run(go())
    finally:
        print("\n".join(lines))
        nodes.close()


def test_calls_on_a_node_that_is_cut_off_are_answered_on_this_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """5 % of the packets are lost; from the first answer on all of them, and nobody is told."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    with two_hosts(1, 1) as hosts:
        hosts.lose_packets(5)
        asking = subprocess.Popen([*hosts.first.within, sys.executable, "-m", "tests.helpers.light_pool"], text=True,
                                  env=os.environ | {"RAY_ADDRESS": hosts.address}, stdout=subprocess.PIPE)
        try:
            lines = []
            for line in asking.stdout:
                lines.append(line)
                if line == "first answer\n":
                    hosts.lose_packets(100)
            assert asking.wait(60) == 0, lines
        finally:
            asking.kill()
            print("".join(lines))
    seen = json.loads(lines[-1])
    assert sorted(seen["answers"]) == list(range(NUM_CALLS))
    assert seen["figures"]["restarts_worker"] == 1 and seen["figures"]["calls_again_worker"] >= 1
