"""A short training whose actors are killed from outside, each kind once, while it goes on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.real.conftest import ROOT, SHORT

NUM_STEPS, NUM_GROUPS, GROUP_SIZE = 6, 4, 4
SERVES_AGAIN_S = 30.0       # seconds until a killed rollout actor serves again


class Training:
    """launch/train.py under way: its lines as they come, its actors as processes."""

    def __init__(self, output_dir: Path, *overrides: str) -> None:
        self.output_dir, self.lines = output_dir, list[tuple[float, str]]()
        self.process = subprocess.Popen(
            [sys.executable, "launch/train.py", "configs/quickstart.yaml", f"output_dir={output_dir}", *SHORT,
             f"steps={NUM_STEPS}", *overrides], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), line.rstrip("\n")))

    @property
    def printed(self) -> str:
        return "\n".join(line for _, line in self.lines)

    def until(self, pattern: str, limit_s: float = 240.0) -> float:
        """When a line that `pattern` is found in was printed."""
        ends = time.monotonic() + limit_s
        while time.monotonic() < ends:
            for when, line in list(self.lines):
                if re.search(pattern, line):
                    return when
            assert self.process.poll() is None, self.printed[-4000:]
            time.sleep(0.1)
        raise AssertionError(f"no line with {pattern!r} in {limit_s:g} s:\n{self.printed[-4000:]}")

    def actor(self, kind: str) -> psutil.Process:
        """The process of the last actor of class `kind`; Ray calls it ray::<kind>, with or without a method."""
        return [process for process in psutil.Process(self.process.pid).children(recursive=True)
                if re.match(rf"ray::{kind}\b", " ".join(process.cmdline()))][-1]

    def end(self) -> int:
        return self.process.wait(240.0)

    @property
    def steps(self) -> list[dict]:
        return [json.loads(line) for line in (self.output_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def survived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Training, dict[str, float]]]:
    training = Training(tmp_path_factory.mktemp("faults") / "run", "faults.hang_s=20", "faults.ping_s=10",
                        "checkpoint.every=2")
    seconds = {}
    try:
        for step, (kind, name) in enumerate((("RolloutActor", "rollout-0"), ("ExplainerActor", "explainer-0"),
                                             ("SlotActor", "slot-0")), start=1):
            training.until(rf"^step {step}/{NUM_STEPS}\b")
            began = time.monotonic()
            os.kill(training.actor(kind).pid, signal.SIGKILL)
            seconds[name] = training.until(rf"{name} serves again after") - began
        # A living actor whose engine dies is of no more use.
        training.until(rf"^step 4/{NUM_STEPS}\b")
        for child in training.actor("RolloutActor").children(recursive=True):
            if "EngineCore" in " ".join(child.cmdline()):
                os.kill(child.pid, signal.SIGKILL)
        # A learner that dies takes what the gang has learnt since the last checkpoint with it.
        training.until(rf"^step 5/{NUM_STEPS}\b")
        os.kill(training.actor("LearnerActor").pid, signal.SIGKILL)
        training.end()
        yield training, seconds
    finally:
        if training.process.poll() is None:
            training.process.kill()


def test_a_run_whose_actors_are_killed_ends_as_if_nothing_had_been(survived) -> None:
    training, _ = survived
    assert training.process.returncode == 0, training.printed[-4000:]
    steps = training.steps
    assert [step["step"] for step in steps] == list(range(1, NUM_STEPS + 1))
    assert all(step["num_trained"] == NUM_GROUPS * GROUP_SIZE for step in steps), "every prompt once"
    assert steps[-1]["groups_skipped"] == 0 and all(step["num_rollouts"] == step["num_trained"] for step in steps)


def test_every_restart_is_counted_and_told(survived) -> None:
    training, _ = survived
    last = training.steps[-1]
    assert (last["restarts_rollout"], last["restarts_explainer"], last["restarts_slot"]) == (2, 1, 1)
    for name in ("rollout-0", "explainer-0", "slot-0"):
        assert f"{name} is lost (" in training.printed and f"{name} serves again after" in training.printed


def test_learners_that_are_lost_start_anew_from_the_last_checkpoint(survived) -> None:
    training, _ = survived
    assert training.steps[-1]["restarts_learner"] == 1
    assert "learners are lost (learner-1: ActorDiedError" in training.printed
    assert "goes on after step 4" in training.printed


def test_a_killed_rollout_actor_serves_again_in_time(survived) -> None:
    _, seconds = survived
    print(seconds)
    assert seconds["rollout-0"] <= SERVES_AGAIN_S
