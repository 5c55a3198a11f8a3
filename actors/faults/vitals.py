"""What an actor tells of itself while it works, and what it raises when the engine behind it is dead.

Light: imported by every actor and by the driver. An actor answers `ping` in a concurrency group of its own:

    @ray.remote(concurrency_groups=HEALTH)
    class SomeActor:
        @ray.method(concurrency_group="health")
        def ping(self, with_stacks: bool = False) -> Vitals:
            return vitals(with_stacks)
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import ray

HEALTH = {"health": 4}      # concurrency_groups of an actor: who answers pings while others hang


class EngineLost(RuntimeError):
    """The engine behind an actor that lives is dead: the actor is of no more use."""


@dataclass(frozen=True)
class Vitals:
    """pids: of the actor's process and its descendants, each with its `birth`: no other process is taken for it.
    stacks: of every thread, where they were asked for."""

    node_id: str
    pids: tuple[tuple[int, float], ...]
    stacks: str = ""


def vitals(with_stacks: bool = False) -> Vitals:
    """Of this process."""
    own = psutil.Process()
    pids = []
    for process in (own, *own.children(recursive=True)):
        try:
            pids.append((process.pid, birth(process.pid)))
        except OSError:         # it ended meanwhile
            continue
    return Vitals(ray.get_runtime_context().get_node_id(), tuple(pids), stacks() if with_stacks else "")


def birth(pid: int) -> float:
    """How long the machine had been up when process `pid` began, in seconds; psutil tells the time of day instead,
    which is another one after the clock was set. Raises OSError where there is no such process."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


async def vitals_with(pulse: Callable[[], Awaitable[None]], with_stacks: bool) -> Vitals:
    """Of this process, once what it works with has answered `pulse`. For stacks nothing is asked: they are wanted where
    things stand still."""
    if not with_stacks:
        await pulse()
    return vitals(with_stacks)


def stacks() -> str:
    """Where every thread of this process is, as Python sees it."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = [f"process {os.getpid()}"]
    for ident, frame in sys._current_frames().items():
        parts.append(f"thread {names.get(ident, ident)}\n" + "".join(traceback.format_stack(frame)))
    return "\n".join(parts)
