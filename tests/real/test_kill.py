"""A training whose driver dies, at any moment, ends with the same bytes as one that was left alone."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.real.conftest import ROOT, SHARED_GPU, launch

STEPS = 4
# Everything that a training has: an explainer, a judge, evaluations between, the best weights.
TINY = (f"steps={STEPS}", "rollout.groups_per_step=3", "rollout.group_size=2", "rollout.max_tokens=12",
        "evaluation.num_prompts=4", "prompts.num_test=4", "evaluation.every=2", "evaluation.select_by=reward",
        "report.samples_every=0", "explainer.max_tokens=12", "placement.learner.num_actors=1",
        "checkpoint.every=1", "learner.warmup_steps=0", *SHARED_GPU)
WALL_CLOCK = ("wall_s", "samples_per_s", "peak_rss_gb")


def command(folder: Path, *overrides: str) -> list[str]:
    return ["launch/train.py", "configs/quickstart.yaml", f"output_dir={folder}", *TINY, *overrides]


class Attempt:
    """The run as a process of its own, which prints into a file beside its folder."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        self._log = folder.with_suffix(".log")
        with self._log.open("w") as log:
            self.process = subprocess.Popen([sys.executable, *command(folder, *overrides)], cwd=ROOT, stdout=log,
                                            stderr=subprocess.STDOUT, start_new_session=True)

    @property
    def printed(self) -> str:
        return self._log.read_text()

    def wait_for(self, is_time: Callable[[], bool], limit_s: float = 240.0) -> None:
        deadline = time.monotonic() + limit_s
        while not is_time():
            assert self.process.poll() is None and time.monotonic() < deadline, self.printed[-3000:]
            time.sleep(0.01)

    def ends_within(self, seconds: float) -> bool:
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        assert self.process.returncode == 0, self.printed[-3000:]
        return True


@contextmanager
def started(folder: Path, *overrides: str) -> Iterator[Attempt]:
    """An attempt that is ended, with all that it started, on the way out."""
    attempt = Attempt(folder, *overrides)
    try:
        yield attempt
    finally:
        if attempt.process.poll() is None:
            os.killpg(attempt.process.pid, signal.SIGKILL)
            attempt.process.wait()


def num_steps(folder: Path) -> int:
    """Steps that are told of; the last may be cut short."""
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def left_by(folder: Path) -> dict[str, object]:
    """What must not depend on how often a run was killed: numbers, weights, ledger."""
    summary = {name: value for name, value in json.loads((folder / "summary.json").read_text()).items()
               if name not in WALL_CLOCK}
    return {"metrics": (folder / "metrics.jsonl").read_bytes(), "summary": summary,
            "evaluations": (folder / "evaluations.jsonl").read_bytes(),
            "policy": (folder / "policy" / "model.safetensors").read_bytes(),
            "best": (folder / "best" / "model.safetensors").read_bytes()}


def differences(mine: Path, whole: Path) -> list[str]:
    """In words: which number of which step first differs, and by how much."""
    found = []
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        for one, other in zip(*((folder / name).read_text().splitlines() for folder in (mine, whole)), strict=False):
            one, other = json.loads(one), json.loads(other)
            found += [f"{name} step {one['step']}: {key} is {one.get(key)} in place of {other.get(key)}"
                      for key in {**one, **other} if one.get(key) != other.get(key)]
    return found[:12] + [key for key, value in left_by(mine).items() if value != left_by(whole)[key]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    done = launch(*command(folder))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert not (folder / "checkpoints").exists() and not (folder / "lock").exists()
    return folder


def kill_at_random(folder: Path, chance: random.Random, num_kills: int) -> int:
    """kill -9 of the driver, and of nothing else, so many times, each at a random moment after its actors are there;
    then lets the run end. Returns how many kills there were: the run may end before."""
    for number in range(num_kills):
        if (folder / "done").is_file():     # the last kill came after the end of the run
            return number
        aim = min(num_steps(folder) + chance.randint(0, 2), STEPS)
        with started(folder) as attempt:
            # A kill before anything happens proves little: mostly some way into a step, a sync or a checkpoint.
            attempt.wait_for(lambda: "all actors ready" in attempt.printed)
            attempt.wait_for(lambda aim=aim: num_steps(folder) >= aim)
            if attempt.ends_within(chance.uniform(0.0, 1.0)):       # a step takes some 0.4 s
                return number
            attempt.process.kill()
            attempt.process.wait()
    done = launch(*command(folder))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return num_kills


def test_a_killed_run_ends_with_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    assert kill_at_random(folder, random.Random(1), 2) >= 1
    assert left_by(folder) == left_by(whole), differences(folder, whole)


@pytest.mark.chaos
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(4))
def test_twenty_kills_at_random_moments_leave_the_same_bytes(whole: Path, tmp_path: Path, part: int) -> None:
    """Five in each part, which can be run alone."""
    chance, num_kills = random.Random(20 + part), 0
    while num_kills < 5:
        folder = tmp_path / f"killed-{num_kills}"
        num_kills += kill_at_random(folder, chance, 5 - num_kills)
        assert left_by(folder) == left_by(whole), differences(folder, whole)


def test_sigterm_writes_a_checkpoint_and_the_same_command_goes_on(whole: Path, tmp_path: Path) -> None:
    """A second process is refused meanwhile; and then the newest of two checkpoints has a byte that flipped."""
    folder = tmp_path / "asked"
    with started(folder) as attempt:
        attempt.wait_for(lambda: (folder / "lock").is_file())
        refused = launch(*command(folder))
        assert refused.returncode == 2
        holder = f"process {attempt.process.pid} on {os.uname().nodename} is using"
        assert holder in refused.stderr, refused.stderr[-2000:]
        attempt.wait_for(lambda: num_steps(folder) >= 2)
        attempt.process.send_signal(signal.SIGTERM)
        assert attempt.ends_within(120), attempt.printed[-3000:]
        last = attempt.printed.splitlines()[-1]
    assert re.fullmatch(r"ended by SIGTERM after step [23]; the same command goes on from there", last), last
    before, newest = sorted((folder / "checkpoints").iterdir())
    (damaged,) = (newest / "learner" / "state").glob("*model_states.pt")
    with damaged.open("r+b") as file:
        file.seek(damaged.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 4]))
    done = launch(*command(folder))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    refusal = f"checkpoint {newest} is refused: learner/state/{damaged.name} is not the file that was written"
    assert refusal in done.stdout, done.stdout[-3000:]
    assert f"goes on after step {int(before.name[5:])}\n" in done.stdout
    assert left_by(folder) == left_by(whole), differences(folder, whole)
