"""A training that is killed goes on where it was, and ends with the same bytes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.real.conftest import GPUS, ROOT, START, launch

ON_GPU = ("placement.learner.num_actors=1", "placement.learner.num_gpus=1") if GPUS else ()
DATA = ("data.train=[{path: 'scenes:judged-train', num_rows: 256}]",
        "data.dev=[{path: 'scenes:judged-dev', num_rows: 64}]")
PLAIN = ("explainer.source=none", "template.text='{prompt} {completion} The answer is [verdict].'")
STEPS = ("steps=40", "batch_size=32", "log_every=5", "dev_every=10", "checkpoint_every=10",
         "loss.consistency_weight=0.5",
         "loss.masked_lm_weight=0.1")


def command(folder: Path, *overrides: str) -> list[str]:
    return ["launch/train_reward.py", "configs/scenes_reward.yaml", f"output_dir={folder}", *DATA, *PLAIN, *STEPS,
            *ON_GPU, *overrides]


def kill_when(arguments: list[str], is_time) -> None:
    """Starts a launcher and kills it and all it started, with SIGKILL, once `is_time()`."""
    with subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                          start_new_session=True) as process:
        deadline = time.monotonic() + 300
        while not is_time():
            assert process.poll() is None and time.monotonic() < deadline, "it must be killed half way"
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("zero_stage", [pytest.param(0, marks=pytest.mark.chaos), 2])
def test_a_killed_reward_training_ends_with_the_same_bytes(tmp_path: Path, zero_stage: int) -> None:
    stage = f"learner.zero_stage={zero_stage}"
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = launch(*command(whole, stage))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    checkpoints = killed / "checkpoints"
    kill_when(command(killed, stage), lambda: (checkpoints / "step-000000010").is_dir())
    kill_when(command(killed, stage), lambda: (checkpoints / "step-000000030").is_dir())
    done = launch(*command(killed, stage))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "goes on after step" in done.stdout
    assert (killed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    for name in ("metrics.jsonl", "reward.yaml"):       # but for the configuration's hash, which holds the folder
        lines = [[line for line in (folder / name).read_text().splitlines() if "config:" not in line]
                 for folder in (whole, killed)]
        assert lines[0] == lines[1]
    assert not checkpoints.exists() and not (killed / "best").exists()


def test_the_best_weights_on_dev_are_kept(tmp_path: Path) -> None:
    """A learning rate that ruins the model after a good start: the last weights are not the ones to keep."""
    folder = tmp_path / "reward"
    done = launch(*command(folder, "steps=30", "learner.schedule=constant", "learner.learning_rate=2.0",
                           "learner.warmup_steps=25", "dev_every=5"))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    summary = json.loads((folder / "summary.json").read_text())
    measured = [float(line.split("loss ")[1].split()[0]) for line in done.stdout.splitlines()
                if line.startswith("dev at step")]
    assert len(measured) == 6
    assert summary["dev"]["loss"] == pytest.approx(min(measured), abs=1e-4)
    assert summary["best_step"] == 5 * (measured.index(min(measured)) + 1)


def supervised(folder: Path) -> list[str]:
    on_gpu = ("placement.num_actors=1", "placement.num_gpus=1") if GPUS else ()
    return ["launch/sft.py", "configs/scenes_policy.yaml", f"output_dir={folder}", "steps=20", "log_every=5",
            "learner.warmup_steps=10", "checkpoint_every=5", "data.num_train=500", "data.num_dev=32",
            f"policy.model={START / 'policy'}", *on_gpu]


@pytest.fixture(scope="module")
def whole_supervised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert launch(*supervised(folder)).returncode == 0
    return folder


def test_a_killed_supervised_training_ends_with_the_same_bytes(whole_supervised: Path, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    kill_when(supervised(killed), lambda: (killed / "checkpoints" / "step-000000005").is_dir())
    done = launch(*supervised(killed))
    assert done.returncode == 0 and "goes on after step" in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (killed / name).read_bytes() == (whole_supervised / name).read_bytes(), name


def test_a_training_that_is_asked_to_end_writes_a_checkpoint_and_exits_with_0(whole_supervised: Path, tmp_path: Path
                                                                              ) -> None:
    folder, log = tmp_path / "asked", tmp_path / "log"
    with log.open("w") as file, subprocess.Popen([sys.executable, *supervised(folder), "checkpoint_every=0"], cwd=ROOT,
                                                 stdout=file, stderr=subprocess.STDOUT) as process:
        deadline = time.monotonic() + 300
        while "step 5/20" not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0, log.read_text()[-2000:]
    told = log.read_text().splitlines()[-1]
    assert re.fullmatch(r"ended by SIGTERM after step \d+; the same command goes on from there", told), told
    done = launch(*supervised(folder), "checkpoint_every=0")
    step = re.search(r"\d+", told)[0]
    assert done.returncode == 0 and f"goes on after step {step}\n" in done.stdout, done.stdout[-2000:] + done.stderr
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (folder / name).read_bytes() == (whole_supervised / name).read_bytes(), name
