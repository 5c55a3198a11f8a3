"""Trainings whose folder lies on a disk that is soon full: one line each, and the same command goes on."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.helpers.disks import small_disk
from tests.real.conftest import SHORT, launch

pytestmark = pytest.mark.chaos

CHEAP = ("reward.model=gold:scenes", "explainer.source=none", "report.samples_every=0")


@pytest.mark.parametrize(("megabytes", "overrides", "refused"), [
    (1, ("checkpoint.every=0",), "every folder that is written to must take it, got 'No space left on device'"),
    (4, ("checkpoint.every=1",), "output_dir must take what the run writes, got 'No space left on device"),
    (1, ("checkpoint.every=0", "evaluation.every=1", "evaluation.select_by=reward"),
     "every folder that is written to must take it, got 'No space left on device'"),
])
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(tmp_path: Path, megabytes: int,
                                                              overrides: tuple[str, ...], refused: str) -> None:
    """The policy's folder, a checkpoint, the best weights; the policy has 2.9 MB."""
    with small_disk(tmp_path / "disk", megabytes) as disk:
        command = ("launch/train.py", "configs/quickstart.yaml", f"output_dir={disk}/run", *SHORT, *CHEAP, *overrides)
        done = launch(*command)
        assert done.returncode == 2, done.stdout[-3000:] + done.stderr[-3000:]
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith(f"error: {refused}"), done.stderr[-3000:]
        assert "Traceback" not in done.stdout + done.stderr
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        done = launch(*command)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert (disk / "run" / "summary.json").is_file()
