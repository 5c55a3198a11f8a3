"""Waiting for what an actor gives, as long as there is that actor."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from actors.faults.restarts import ActorLost
from rlaif.config.checks import Unavailable

PLACE_S = 10.0      # after which an actor without an answer is asked where it is
LOOK_S = 2.0        # seconds between looks at that


async def awaited(reference: Awaitable[Any]) -> Any:
    """As a coroutine, which asyncio can put a limit to: references of Ray are only awaitable."""
    return await reference


async def first_of(answer: Awaitable[Any], gone: asyncio.Future[str]) -> Any:
    """The answer, or ActorLost where the actor is gone before it."""
    task = asyncio.ensure_future(awaited(answer))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ActorLost(gone.result())
    finally:
        task.cancel()
        task.add_done_callback(look_at)


async def started(answer: Awaitable[Any], who: str, limit_s: float, lacks: Callable[[], str | None],
                  say: Callable[[str], None]) -> Any:
    """What an actor that is being started answers first. lacks: in words why it has no place to be at, as after the
    loss of a node; None where it has one. That is told once, and time without a place is none of its start.

    Raises Unavailable, one line, where it gets no place within limit_s, and TimeoutError where it has one and answers
    nothing for so long.
    """
    task, since, lack = asyncio.ensure_future(awaited(answer)), time.monotonic(), None
    wait_s = min(PLACE_S, limit_s)
    try:
        while True:
            await asyncio.wait({task}, timeout=wait_s)
            if task.done():
                return task.result()
            before, lack = lack, await asyncio.to_thread(lacks)
            if (lack is None) != (before is None):
                since = time.monotonic()
                if lack is not None:
                    say(f"{who} waits for a place in the cluster, for {limit_s:g} s at most "
                        f"(placement.ready_timeout_s): {lack}")
            if time.monotonic() - since >= limit_s:
                if lack is None:
                    raise TimeoutError
                raise Unavailable(f"{who} must get another place in the cluster within placement.ready_timeout_s = "
                                f"{limit_s:g} s, got none: {lack}; with a node for it the same command goes on")
            wait_s = min(LOOK_S, limit_s)
    finally:
        task.cancel()
        task.add_done_callback(look_at)


@contextlib.contextmanager
def interrupted_by(gone: asyncio.Future[str]) -> Iterator[None]:
    """Inside, this task is interrupted, as by asyncio.timeout, once the actor is gone: raises ActorLost."""
    task = asyncio.current_task()
    assert task is not None
    is_inside, is_interrupted, before = True, False, task.cancelling()

    def interrupt(_: asyncio.Future[str]) -> None:
        nonlocal is_interrupted
        if is_inside:
            is_interrupted = True
            task.cancel()

    gone.add_done_callback(interrupt)
    try:
        yield
    except asyncio.CancelledError:
        if is_interrupted and task.uncancel() <= before:
            raise ActorLost(gone.result()) from None
        raise
    except BaseException:
        if is_interrupted:
            task.uncancel()
        raise
    finally:
        is_inside = False
        gone.remove_done_callback(interrupt)


def look_at(answer: asyncio.Future) -> None:
    """An error is told by whoever waits for the answer. Where nobody does, after another error, it is not told at all.
    """
    if not answer.cancelled():
        answer.exception()
