"""When a run is asked to end from outside."""

import asyncio
import os
import signal
import time

import pytest

from actors.faults import ending as module
from actors.faults.ending import Ended, Ending, draining_nodes, ended_line


def test_work_is_given_up_when_the_run_is_asked_to_end_and_only_then(monkeypatch):
    monkeypatch.setattr(module, "POLL_S", 60.0)
    given_up = []

    async def long():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            given_up.append(True)
            raise

    async def short():
        return 7

    async def go():
        ending = Ending()
        with ending.watching():
            assert await ending.unless(short()) == 7
            asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), signal.SIGTERM)
            with pytest.raises(Ended) as ended:
                await ending.unless(long())
            assert ended.value.why == ending.why == "SIGTERM" and given_up == [True]
            with pytest.raises(Ended):      # and whatever comes after
                await ending.unless(long())

    before = signal.getsignal(signal.SIGTERM)
    started = time.monotonic()
    asyncio.run(go())
    assert time.monotonic() - started < 5 and signal.getsignal(signal.SIGTERM) is before


def test_an_error_of_the_work_is_told_as_it_is():
    async def fails():
        raise KeyError("a")

    with pytest.raises(KeyError):
        asyncio.run(Ending().unless(fails()))


def test_a_node_that_is_about_to_go_asks_the_run_to_end(monkeypatch):
    monkeypatch.setattr(module, "POLL_S", 0.01)
    monkeypatch.setattr(module, "draining_nodes", lambda: ["0123456789abcdef" * 3])

    async def go():
        ending = Ending()
        with ending.watching(), pytest.raises(Ended, match="node 0123456789ab is about to be taken away"):
            await ending.unless(asyncio.sleep(30))

    asyncio.run(go())


def test_a_run_that_is_over_is_not_disturbed_by_being_asked_to_end():
    ending = Ending()
    with ending.watching():
        asyncio.run(ending.unless(asyncio.sleep(0)))
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
    assert ending.why == "SIGTERM"


def test_without_ray_no_node_is_about_to_go():
    assert draining_nodes() == []


def test_the_last_line_says_how_to_go_on():
    assert ended_line(Ended("SIGTERM", 12), 8) == (
        "ended by SIGTERM after step 12; the same command goes on from there")
    assert ended_line(Ended("SIGTERM"), 8) == "ended by SIGTERM after step 8; the same command goes on from there"
    assert ended_line(Ended("SIGTERM"), None) == "ended by SIGTERM before its first step; the same command begins it"
