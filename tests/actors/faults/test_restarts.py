"""Which processes are ended with an actor, told apart without the time of day."""

import asyncio
import subprocess
import time
from types import SimpleNamespace

import psutil
import pytest
from ray.exceptions import ActorDiedError, NodeDiedError, RayTaskError, WorkerCrashedError

from actors.faults.restarts import answered, end_processes, last_words
from actors.faults.vitals import EngineLost, birth
from rlaif.pipeline.health import Event


def pinged(error):
    async def ping(with_stacks):
        raise error

    return asyncio.run(answered(SimpleNamespace(ping=SimpleNamespace(remote=ping)), 1.0))


@pytest.mark.parametrize("error", [
    ActorDiedError(), NodeDiedError("gone"), WorkerCrashedError(), EngineLost("dead"),
    RayTaskError("ping", "", EngineLost("dead"))])
def test_a_ping_that_finds_no_process_tells_of_a_death_wherever_it_was(error):
    """A guard that raised would guard no more, and a call that hangs would be waited for without end."""
    assert pinged(error) is Event.DIED


def test_another_error_of_a_ping_is_told():
    with pytest.raises(ValueError, match="odd"):
        pinged(ValueError("odd"))


def test_the_processes_of_an_actor_are_ended_although_the_clock_was_set(monkeypatch):
    with subprocess.Popen(["sleep", "60"]) as process:
        known = ((process.pid, birth(process.pid)),)
        boot = psutil.boot_time()
        monkeypatch.setattr("psutil._pslinux.boot_time", lambda: boot + 3600.0)
        assert end_processes(known) == 1
        assert process.wait(10) == -9
    assert end_processes(known) == 0


def test_another_process_of_the_same_number_is_left_alone():
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            assert end_processes(((process.pid, birth(process.pid) - 0.5),)) == 0
            time.sleep(0.1)
            assert process.poll() is None
        finally:
            process.kill()


def test_the_last_words_of_an_actor_are_those_of_the_error_that_ended_it():
    told = ("The actor died because of an error raised in its creation task\n  File x.py, line 3\n"
            "ValueError: no available memory for the cache blocks\n")
    assert last_words(RuntimeError(told)) == "ValueError: no available memory for the cache blocks"
    told = "The actor died.\n\tclass_name: RolloutActor\n\tname: rollout-1\nThe node is dead.\n\n"
    assert last_words(RuntimeError(told)) == "rollout-1: The node is dead."
    assert last_words(RuntimeError()) == "RuntimeError"
