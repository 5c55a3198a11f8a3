"""FAKE: actor handles without Ray. A call is a task of this process, a reference is its future."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from typing import Any

from actors.faults.awaiting import look_at

__all__ = ["Handle", "Stream", "Verb"]


class Verb:
    """A method as Ray offers it: arguments may be under way, results are. delay: awaited before it answers."""

    def __init__(self, function: Callable[..., Any], num_returns: int = 1,
                 delay: Callable[[], Any] | None = None) -> None:
        self._function, self._num_returns, self._delay = function, num_returns, delay

    def options(self, num_returns: Any) -> Any:
        return Stream(self._function) if num_returns == "streaming" else Verb(self._function, num_returns, self._delay)

    def remote(self, *arguments: Any) -> Any:
        """A future, or one of each result."""
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in range(self._num_returns)]
        for future in futures:
            future.add_done_callback(look_at)      # nobody is told that a reference he did not read holds an error
        task = loop.create_task(self._run(arguments, futures))
        futures[0].add_done_callback(lambda done: task.cancel() if done.cancelled() else None)
        return futures[0] if self._num_returns == 1 else futures

    async def _run(self, arguments: tuple[Any, ...], futures: list[asyncio.Future]) -> None:
        try:
            if self._delay is not None:
                await self._delay()
            found = self._function(*[await each if isinstance(each, asyncio.Future) else each for each in arguments])
            if inspect.isawaitable(found):
                found = await found
        except Exception as error:
            for future in futures:
                if not future.done():
                    future.set_exception(error)
            return
        for future, value in zip(futures, (found,) if self._num_returns == 1 else found, strict=True):
            if not future.done():
                future.set_result(value)


class Stream:
    """A method that answers bit by bit; what goes wrong comes as the last reference, as with Ray."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    async def remote(self, *arguments: Any) -> AsyncIterator[asyncio.Future]:
        loop = asyncio.get_running_loop()
        try:
            async for item in self._function(*arguments):
                await asyncio.sleep(0)
                ready = loop.create_future()
                ready.set_result(item)
                yield ready
        except Exception as error:
            failed = loop.create_future()
            failed.set_exception(error)
            failed.add_done_callback(look_at)
            yield failed


class Handle:
    """The handle of `actor`, a plain object. delay: awaited, with `stage`, before a verb other than a stream answers.
    """

    def __init__(self, actor: Any, stage: str = "", delay: Callable[[str], Any] | None = None) -> None:
        self._actor, self._stage, self._delay = actor, stage, delay

    def __getattr__(self, name: str) -> Verb:
        if name in ("ready", "ping"):
            return Verb(lambda *arguments: None)
        delay = self._delay
        return Verb(getattr(self._actor, name), delay=None if delay is None else lambda: delay(self._stage))
