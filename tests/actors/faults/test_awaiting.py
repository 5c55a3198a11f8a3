"""Waiting for an actor that starts, with no Ray: what it has no place for the want of is told and has its limit."""

import asyncio

import pytest

from actors.faults import awaiting
from actors.faults.awaiting import started
from rlaif.config.checks import UserError

LACK = "no node has room for slot-0 (1 CPUs, 0 GPUs)"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(awaiting, "PLACE_S", 0.05)
    monkeypatch.setattr(awaiting, "LOOK_S", 0.05)


def go(answer_s, lacks, limit_s, value="here"):
    """What came of it, and the lines that were told."""
    lines = []

    async def answer():
        await asyncio.sleep(answer_s)
        if isinstance(value, Exception):
            raise value
        return value

    async def body():
        try:
            return await started(answer(), "slot-0", limit_s, lacks, lines.append)
        except Exception as error:
            return error

    return asyncio.run(asyncio.wait_for(body(), 10.0)), lines


def test_an_actor_that_answers_at_once_is_not_looked_for():
    def never():
        raise AssertionError

    assert go(0.0, never, 1.0) == ("here", [])


def test_what_the_start_raises_is_raised():
    error = ValueError("no such model")
    assert go(0.1, lambda: None, 1.0, error) == (error, [])


def test_one_without_a_place_is_told_of_once_and_then_waited_for_as_long_as_any():
    """0.3 s without a place and 0.3 s of starting, with a limit of 0.5 s for each."""
    looks = iter([LACK] * 6)
    found, lines = go(0.6, lambda: next(looks, None), 0.5)
    assert found == "here"
    assert lines == [f"slot-0 waits for a place in the cluster, for 0.5 s at most (placement.ready_timeout_s): {LACK}"]


def test_without_a_place_until_the_limit_one_line_says_what_there_is_no_room_for():
    found, lines = go(5.0, lambda: LACK, 0.3)
    assert isinstance(found, UserError) and len(lines) == 1
    assert str(found) == ("slot-0 must get another place in the cluster within placement.ready_timeout_s = 0.3 s, got "
                          f"none: {LACK}; with a node for it the same command goes on")


def test_one_with_a_place_and_no_answer_is_late():
    found, lines = go(5.0, lambda: None, 0.2)
    assert isinstance(found, TimeoutError) and not lines
