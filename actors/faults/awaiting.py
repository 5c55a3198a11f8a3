"""Waiting for what an actor gives, as long as there is that actor."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Iterator
from typing import Any

from actors.faults.restarts import ActorLost


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
