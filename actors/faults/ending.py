"""When a run is asked to end from outside: SIGTERM, or a node that will be taken away."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Awaitable, Iterator
from typing import TypeVar

import ray
from ray._private.state import state as cluster_state  # ray.train watches for preemption in the same way
from ray._private.worker import global_worker

POLL_S = 5.0        # seconds between looks at the nodes
T = TypeVar("T")


class Ended(Exception):
    """The run ends as it was asked to. why: by what; step: of the checkpoint that was written, None before it."""

    def __init__(self, why: str, step: int | None = None) -> None:
        super().__init__(why)
        self.why, self.step = why, step


def ended_line(ended: Ended, begun_at: int | None = None) -> str:
    """What is said of a run that ended as it was asked to; begun_at: the step that it had gone on from."""
    step = begun_at if ended.step is None else ended.step
    how = "the same command begins it" if step is None else f"after step {step}; the same command goes on from there"
    return f"ended by {ended.why} {'before its first step; ' if step is None else ''}{how}"


class Ending:
    """Why the run is to end, in words; None as long as nobody asks."""

    def __init__(self) -> None:
        self.why: str | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._event = asyncio.Event()

    def ask(self, why: str) -> None:
        """Asks the run to end. From any thread, or a signal's handler; the first reason is told."""
        self.why = self.why or why
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):     # it is closed: the run is over, and only tidies up
                self._loop.call_soon_threadsafe(self._event.set)

    async def unless(self, work: Awaitable[T]) -> T:
        """What `work` gives. Where the run is asked to end before, `work` is dropped and Ended raised."""
        self._loop = asyncio.get_running_loop()
        task, asked = asyncio.ensure_future(work), asyncio.ensure_future(self._event.wait())
        try:
            if self.why is None:
                await asyncio.wait({task, asked}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            assert self.why is not None
            raise Ended(self.why)
        finally:
            for each in (task, asked):
                if not each.done():
                    each.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await each

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, SIGTERM and the preemption of a node ask the run to end. After ray.init, which has a handler of its
        own; in the main thread."""
        before = signal.signal(signal.SIGTERM, lambda *_: self.ask("SIGTERM"))
        stopped = threading.Event()
        thread = threading.Thread(target=self._watch_nodes, args=(stopped,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()
            signal.signal(signal.SIGTERM, before)

    def _watch_nodes(self, stopped: threading.Event) -> None:
        while not stopped.wait(POLL_S):
            for node in draining_nodes():
                self.ask(f"node {node[:12]} is about to be taken away")
                return


def draining_nodes() -> list[str]:
    """Nodes that this run is on and whose end has been announced to Ray; none where Ray does not answer."""
    if not ray.is_initialized():
        return []
    try:
        draining = set(cluster_state.get_draining_nodes())
        return sorted(draining & _own_nodes()) if draining else []
    except Exception:       # an outage of the head node is told by the calls that wait for it
        return []


def _own_nodes() -> set[str]:
    """Nodes of this driver and its actors. Others may come and go, as idle ones do under an autoscaler."""
    actors = cluster_state.actor_table(None, job_id=global_worker.current_job_id, actor_state_name="ALIVE")
    return {global_worker.current_node_id.hex()} | {actor["Address"]["NodeID"] for actor in actors.values()}
