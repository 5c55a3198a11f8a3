"""What an error of a call means for the actor that was asked, and how an actor is ended for good."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Awaitable
from enum import Enum
from typing import Any

import ray
from ray.exceptions import (
    ActorAlreadyExistsError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.faults.vitals import EngineLost, Vitals, birth
from rlaif.pipeline.health import Event

NAME_FREE_S = 60.0      # in which Ray gives the name of an ended actor free
_LOST_ACTOR = (RayActorError, WorkerCrashedError, NodeDiedError, OutOfMemoryError, EngineLost)
_ENGINE_DEAD = "EngineDeadError"    # vLLM's, told by its name: the driver has no vLLM


class ActorLost(RuntimeError):
    """The actor that served a call is gone; another one takes its place. What it has not answered is to be asked again.
    """


class InputsLost(RuntimeError):
    """An object that a call reads is gone with its node: the work begins anew where the object came from."""


class Lost(Enum):
    """What an error says is gone."""

    ACTOR = "actor"
    INPUTS = "inputs"
    NOTHING = "nothing"     # the actor lives and says that something is wrong


def lost(error: BaseException) -> Lost:
    """What is gone when a call raises `error`, which may come from an actor that asked another one in turn."""
    error = cause_of(error)
    if isinstance(error, _LOST_ACTOR) or type(error).__name__ == _ENGINE_DEAD:
        return Lost.ACTOR
    return Lost.INPUTS if isinstance(error, ObjectLostError) else Lost.NOTHING


def cause_of(error: BaseException) -> BaseException:
    """What was raised first, in the actor that was asked or in one that it asked; `error` itself where Ray raised it.
    """
    while isinstance(error, RayTaskError) and isinstance(error.cause, Exception):
        error = error.cause
    return error


def told(error: BaseException) -> str:
    """An error in one short line, without the traceback of the actor it comes from."""
    error = cause_of(error)
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def last_words(error: BaseException) -> str:
    """The actor and the last line of an error that Ray tells in many: of an actor that could not be made, its own."""
    text = str(cause_of(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    name = re.search(r"^\s*name: (\S+)", text, re.MULTILINE)
    return f"{name[1]}: {lines[-1][:300]}" if name else lines[-1][:300]


async def answered(actor: Any, limit_s: float, with_stacks: bool = False) -> Vitals | Event:
    """What a living actor answers to a ping; HUNG where nothing comes in `limit_s`, from it or from the engine behind
    it; DIED where one of them is gone."""
    try:
        return await asyncio.wait_for(_await(actor.ping.remote(with_stacks)), limit_s)
    except TimeoutError:
        return Event.HUNG
    except Exception as error:
        if lost(error) is Lost.ACTOR:
            return Event.DIED
        raise


async def _await(reference: Awaitable[Any]) -> Any:
    return await reference


async def end(actor: Any, known: Vitals | None) -> None:
    """Ends `actor`, whatever it is doing, and its processes where they are `known` and outlive it."""
    with contextlib.suppress(ValueError, RayActorError):    # no actor that Ray knows (any more)
        ray.kill(actor, no_restart=True)
    if known is None:
        return
    if known.node_id == ray.get_runtime_context().get_node_id():
        end_processes(known.pids)
        return
    with contextlib.suppress(Exception):        # the node is gone, and with it what ran there
        await asyncio.wait_for(_await(_reap(known)), NAME_FREE_S)


def _reap(known: Vitals) -> Awaitable[Any]:
    where = NodeAffinitySchedulingStrategy(known.node_id, soft=False)
    return _end_processes.options(scheduling_strategy=where).remote(known.pids)


@ray.remote(num_cpus=0, max_retries=0)
def _end_processes(pids: tuple[tuple[int, float], ...]) -> int:
    return end_processes(pids)


def end_processes(pids: tuple[tuple[int, float], ...]) -> int:
    """Kills those of `pids`, (number, birth), that still run; returns how many. A number that another
    process has by now is left alone."""
    num_ended = 0
    for pid, created in pids:
        with contextlib.suppress(OSError):
            if birth(pid) == created:
                os.kill(pid, signal.SIGKILL)
                num_ended += 1
    return num_ended


async def made(make: Any, *arguments: Any) -> Any:
    """What make(*arguments) gives, as soon as the name of the actor that it replaces is free."""
    waited_s = 0.0
    while True:
        try:
            return make(*arguments)
        except ActorAlreadyExistsError:
            if waited_s >= NAME_FREE_S:
                raise
            waited_s += 0.2
            await asyncio.sleep(0.2)
