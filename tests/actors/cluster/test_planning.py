"""The machine as planned with, and the launcher's own --plan, as a user calls it."""

import subprocess
import sys
from pathlib import Path

import pytest

from actors.cluster import planning
from rlaif.planning.cluster import GPU_KINDS

ROOT = Path(__file__).resolve().parents[3]
NVIDIA = "#!/bin/bash\nprintf 'NVIDIA H100 80GB HBM3, 81559\\nNVIDIA H100 80GB HBM3, 81559\\nMystery, 1024\\n'\n"


def plan(*arguments):
    return subprocess.run([sys.executable, "launch/train.py", *arguments], cwd=ROOT, text=True, capture_output=True,
                          timeout=200, check=False)


def test_the_launcher_prints_the_plan_of_a_described_cluster_and_starts_nothing():
    done = plan("configs/four_nodes.yaml", "--plan", "configs/clusters/four_nodes.yaml")
    assert (done.returncode, done.stderr) == (0, "")
    first, *_, last = done.stdout.splitlines()
    assert first == "plan of configs/four_nodes.yaml on configs/clusters/four_nodes.yaml, described" and last == "fits"


def test_the_launcher_refuses_what_does_not_fit_with_the_sum_and_code_2():
    done = plan("configs/one_node.yaml", "--plan", "configs/clusters/one_node.yaml", "learner.zero_stage=0")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "weights 14.2 + gradients 14.2 + optimizer 85.1 + reference 14.2) = 127.7 of 79.6 GiB; try" in done.stderr
    assert "does not fit: GPU of node:4" in done.stdout


def test_gpus_are_counted_as_the_driver_tells_them(tmp_path, monkeypatch):
    (tmp_path / "nvidia-smi").write_text(NVIDIA)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    first, second, odd = planning._gpus_here()
    assert first == second and (first.name, first.memory) == ("H100", 81559 << 20)
    assert first.flops == GPU_KINDS["H100"].flops and (odd.name, odd.memory) == ("Mystery", 1024 << 20)
    for shown, count in (("0", 1), ("", 0), ("0,1,2", 3)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
        assert len(planning._gpus_here()) == count


def test_a_container_has_what_its_limits_leave(monkeypatch):
    files = {"/sys/fs/cgroup/cpu.max": "150000 100000", "/sys/fs/cgroup/memory.max": "1000000\n"}
    monkeypatch.setattr(planning, "_read", lambda path, otherwise: files.get(path, otherwise))
    monkeypatch.setattr(planning.os, "cpu_count", lambda: 64)
    assert (planning._num_cpus(), planning._memory()) == (1.0, 1e6)
    files.clear()
    assert planning._num_cpus() == 64 and planning._memory() > 1e8


def test_a_model_whose_size_is_unknown_does_not_stop_a_run(monkeypatch):
    from rlaif.config.checks import UserError

    def unknown(*_):
        raise UserError("policy.model must be a model on this machine")

    monkeypatch.setattr(planning, "make_plan", unknown)
    monkeypatch.setattr(planning, "_ray_cluster", lambda: None)
    assert planning.refuse_what_cannot_fit(None) == [
        "memory is not checked: policy.model must be a model on this machine"]
    with pytest.raises(UserError):
        planning.make_plan()
