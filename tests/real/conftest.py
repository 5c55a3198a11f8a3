"""Real Ray, vLLM and DeepSpeed on the models that the project ships. Nothing here is faked."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch

from actors.cluster.connection import connect
from rlaif.config.train import RoleConfig

ROOT = Path(__file__).resolve().parents[2]
START = ROOT / "rlaif" / "scenes" / "start"

# On a machine with a GPU the roles share it, as launch/quickstart.sh shares it.
GPUS = {"rollout": 0.25, "explainer": 0.25, "slot": 0.2, "learner": 0.3} if torch.cuda.is_available() else {}
SHARED_GPU = [f"placement.{role}.num_gpus={share}" for role, share in GPUS.items()] + (
    ["placement.learner.num_actors=1", "rollout.engine.gpu_memory_utilization=0.2",
     "explainer.engine.gpu_memory_utilization=0.2"] if GPUS else [])

# A short run of the quickstart's own configuration.
SHORT = ("steps=3", "rollout.groups_per_step=4", "rollout.group_size=4", "evaluation.num_prompts=24",
         "prompts.num_test=24", "report.samples_every=2", "learner.warmup_steps=0", *SHARED_GPU)
KEPT = ("stored.write=true",)       # what `short_run` has beside SHORT


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)


def launch(*arguments: str, timeout_s: float = 400.0) -> subprocess.CompletedProcess[str]:
    """`python <arguments>` in the project's folder, as a user would run it."""
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, text=True, capture_output=True, timeout=timeout_s)


def role(name: str, num_cpus: float = 0.5, num_actors: int = 1) -> RoleConfig:
    return RoleConfig(num_actors=num_actors, num_cpus=num_cpus, num_gpus=GPUS.get(name, 0.0))


class Run:
    """A finished run: what it printed, what it left behind."""

    def __init__(self, output_dir: Path, printed: str) -> None:
        self.output_dir, self.printed = output_dir, printed
        self.summary = json.loads((output_dir / "summary.json").read_text())
        self.steps = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One short training from the quickstart's configuration, which keeps its rollouts."""
    return run_short(tmp_path_factory.mktemp("short") / "run", *KEPT)


def run_short(output_dir: Path, *overrides: str) -> Run:
    done = launch("launch/train.py", "configs/quickstart.yaml", f"output_dir={output_dir}", *SHORT, *overrides)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return Run(output_dir, done.stdout + done.stderr)


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    connect()
    yield
    ray.shutdown()


@pytest.fixture
def distributed(monkeypatch):
    """One rank of its own; what ZeRO 3 puts in the place of torch's linear layer is taken back."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "127.0.0.1"),
                        ("MASTER_PORT", str(port)), ("DS_ACCELERATOR", "cpu")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.nn.functional, "linear", torch.nn.functional.linear)
    from actors.learners.zero import init_distributed

    init_distributed("gloo")
