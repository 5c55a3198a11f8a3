"""Real Ray, vLLM and DeepSpeed on the models that the project ships. Nothing here is faked."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from actors.cluster import connect

ROOT = Path(__file__).resolve().parents[2]
START = ROOT / "rlaif" / "scenes" / "start"

# A short run of the quickstart's own configuration.
SHORT = ("steps=3", "rollout.groups_per_step=4", "rollout.group_size=4", "evaluation.num_prompts=24",
         "prompts.num_test=24", "report.samples_every=2")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)


def launch(*arguments: str, timeout_s: float = 400.0) -> subprocess.CompletedProcess[str]:
    """`python <arguments>` in the project's folder, as a user would run it."""
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, text=True, capture_output=True, timeout=timeout_s)


class Run:
    """A finished run: what it printed, what it left behind."""

    def __init__(self, output_dir: Path, printed: str) -> None:
        self.output_dir, self.printed = output_dir, printed
        self.summary = json.loads((output_dir / "summary.json").read_text())
        self.steps = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One short training from the quickstart's configuration."""
    return run_short(tmp_path_factory.mktemp("short") / "run")


def run_short(output_dir: Path, *overrides: str) -> Run:
    done = launch("launch/train.py", "configs/quickstart.yaml", f"output_dir={output_dir}", *SHORT, *overrides)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return Run(output_dir, done.stdout + done.stderr)


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    connect()
    yield
    ray.shutdown()
