"""The watchdog with a clock of its own, no Ray."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from actors.faults.vitals import Vitals
from actors.faults.watchdog import Backstop as Backstopped
from actors.faults.watchdog import Stuck, Watchdog
from rlaif.config.faults import FaultsConfig
from rlaif.pipeline.board import Board

ROOT = Path(__file__).resolve().parents[3]
FAULTS = FaultsConfig(warn_s=10.0, stuck_s=100.0, ping_s=0.05)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now

    async def sleep(self, seconds):
        self.now += seconds
        await asyncio.sleep(0)


class Ping:
    def __init__(self, stacks):
        self._stacks = stacks

    @property
    def ping(self):
        return self

    async def remote(self, with_stacks):
        assert with_stacks
        if self._stacks is None:
            await asyncio.sleep(60)
        return Vitals("node", ((1, 0.0),), self._stacks)


class Backstop:
    """Notes how long it is put off, and how often it was lifted."""

    def __init__(self):
        self.seconds, self.num_lifted = [], 0

    def put_off(self, seconds):
        self.seconds.append(seconds)

    def lift(self):
        self.num_lifted += 1


def watch(tmp_path, work, actors=None):
    clock, lines = Clock(), []
    board = Board(clock)
    dog = Watchdog(board, FAULTS, str(tmp_path), lines.append, lambda: actors or {}, sleep=clock.sleep,
                   backstop=Backstop())
    return asyncio.run(dog.over(work(board, clock))), lines, clock


def test_work_that_gets_on_is_left_alone(tmp_path):
    async def work(board, clock):
        for _ in range(200):
            with board.doing("learn", "learner-0", "the update"):
                began = clock.now
                while clock.now < began + 9:
                    await asyncio.sleep(0)
        return "done"

    result, lines, clock = watch(tmp_path, work)
    assert result == "done" and lines == [] and clock.now > 1000 and list(tmp_path.iterdir()) == []


def test_what_work_raises_is_raised(tmp_path):
    async def work(board, clock):
        raise KeyError("row")

    with pytest.raises(KeyError):
        watch(tmp_path, work)


def test_a_run_that_stands_is_told_of_and_ended_with_the_stacks_of_everybody_who_answers(tmp_path):
    cancelled = []

    async def work(board, clock):
        with board.doing("score", "slot-0", "its answer to 32 rows"):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(True)
                raise

    lines = []
    clock = Clock()
    board = Board(clock)
    actors = {"slot-0": Ping(None), "rollout-0": Ping("thread main\n  in generate\n")}
    backstop = Backstop()
    dog = Watchdog(board, FAULTS, str(tmp_path), lines.append, lambda: actors, sleep=clock.sleep, backstop=backstop)
    with pytest.raises(Stuck) as stuck:
        asyncio.run(dog.over(work(board, clock)))
    assert cancelled == [True]
    assert set(backstop.seconds[:-1]) == {220.0} and backstop.seconds[-1] == 120.0 and backstop.num_lifted == 0
    assert lines == [f"score: slot-0 without progress for {seconds} s; waits for its answer to 32 rows"
                     for seconds in (10, 20, 40, 80)]
    path, = tmp_path.glob("stacks-*.txt")
    told = path.read_text()
    assert "do not answer: slot-0\n" in told and "rollout-0\nthread main\n  in generate" in told
    assert "test_watchdog.py" in told and "Current thread" in told, "the driver's own stacks"
    assert str(stuck.value) == (
        "the run must make progress within faults.stuck_s = 100 s, got none: score: slot-0 without progress for 100 s; "
        f"waits for its answer to 32 rows; stacks are in {path}; raise faults.stuck_s for work that takes longer")


BLOCKED = """
import asyncio, sys, time
from pathlib import Path
from actors.faults.watchdog import Backstop
backstop = Backstop(Path(sys.argv[1]))
backstop.put_off(60.0)
backstop.put_off(0.5)
time.sleep(60.0)
"""


def test_a_driver_that_stands_still_is_ended_with_its_stacks(tmp_path):
    done = subprocess.run([sys.executable, "-c", BLOCKED, str(tmp_path / "stacks")], timeout=60, cwd=ROOT)
    assert done.returncode == 1
    assert "<string>" in (tmp_path / "stacks").read_text() and "Timeout" in (tmp_path / "stacks").read_text()


def test_a_backstop_that_is_lifted_leaves_nothing(tmp_path):
    backstop = Backstopped(tmp_path / "stacks")
    backstop.put_off(60.0)
    assert (tmp_path / "stacks").is_file()
    backstop.lift()
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_waits_for_what_nobody_wrote_down_is_ended_too(tmp_path):
    async def work(board, clock):
        with board.doing("learn", "learner-0", "the update"):
            await asyncio.sleep(0)
        await asyncio.Event().wait()

    with pytest.raises(Stuck, match=r"driver: nothing under way for 1\d\d s; waits for what is not on the board"):
        watch(tmp_path, work)
