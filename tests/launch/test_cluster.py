"""The files of launch/cluster: they parse, and what they name is there. No cluster is asked."""

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml

from rlaif.config.files import load
from rlaif.config.train import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "launch" / "cluster"
POOLS = {"learn": 2, "rollout": 1, "reward": 1}


def read(name):
    return yaml.safe_load((FOLDER / name).read_text())


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.name)
def test_every_path_that_is_named_is_in_the_repository(path):
    named = set(re.findall(r"\b(?:launch|configs)/[\w./-]+\.(?:py|yaml|sh)\b", path.read_text()))
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def test_pools_are_those_of_the_configuration():
    config = load(TrainConfig, ROOT / "configs" / "four_nodes.yaml")
    roles = (config.placement.rollout, config.placement.explainer, config.placement.slot, config.placement.learner)
    assert {role.pool for role in roles} == set(POOLS)


def test_the_launchers_yaml_follows_rays_schema():
    content = read("ray-cluster.yaml")
    jsonschema.validate(content, json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text()))
    types = content["available_node_types"]
    assert {name: kind["min_workers"] for name, kind in types.items() if name != "head"} == POOLS
    assert all(kind["labels"] == {"pool": name} and kind["max_workers"] == POOLS[name]
               for name, kind in types.items() if name != "head")
    assert content["max_workers"] == sum(POOLS.values()) and types["head"]["resources"] == {"CPU": 0}


def test_the_rayjob_has_the_fields_that_kuberay_reads():
    job = read("rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    assert set(spec) <= {"entrypoint", "runtimeEnvYAML", "backoffLimit", "shutdownAfterJobFinishes",
                         "ttlSecondsAfterFinished", "rayClusterSpec"}
    assert "env_vars" in yaml.safe_load(spec["runtimeEnvYAML"])
    cluster = spec["rayClusterSpec"]
    assert cluster["rayVersion"] == ray.__version__ and cluster["authOptions"] == {"mode": "token"}
    groups = cluster["workerGroupSpecs"]
    assert {group["groupName"]: group["replicas"] for group in groups} == POOLS
    for group in groups:
        assert group["labels"] == {"pool": group["groupName"]}
        assert group["replicas"] == group["minReplicas"] == group["maxReplicas"]
        container, = group["template"]["spec"]["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"
        volumes = {volume["name"] for volume in group["template"]["spec"]["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_the_job_of_kuberay_takes_what_the_launcher_takes():
    entry = read("rayjob.yaml")["spec"]["entrypoint"].split()
    assert entry[:2] == ["python", "launch/train.py"]
    load(TrainConfig, [ROOT / name for name in entry[2:]])


def test_the_runtime_environment_ships_the_project_and_nothing_large():
    content = read("runtime_env.yaml")
    assert set(content) == {"excludes", "env_vars"}
    assert all(isinstance(value, str) for value in content["env_vars"].values())
    top = {pattern.strip("/") for pattern in content["excludes"] if pattern.startswith("/")}
    assert top.isdisjoint({"rlaif", "actors", "configs", "launch", "pyproject.toml"})
    shipped = [path for path in ROOT.rglob("*") if path.is_file() and path.relative_to(ROOT).parts[0] not in top
               and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in shipped) < 100e6         # Ray refuses 512 MiB


@pytest.mark.parametrize("name", ["slurm.sh", "submit.sh"])
def test_a_script_is_one_that_bash_understands(name):
    assert subprocess.run(["bash", "-n", str(FOLDER / name)], capture_output=True, check=False).stderr == b""


@pytest.fixture
def slurm(tmp_path):
    """Runs slurm.sh where `srun`, `scontrol`, `ray` and `python` only note how they are called."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").write_text("")
    answers = {
        "scontrol": "printf 'n0\\nn1\\nn2\\nn3\\n'", "ray": "true", "srun": "sleep 30",
        "python": 'case "$*" in *token_hex*) echo secret;; *num_nodes*|*nodes*) echo 4;; *) '
                  'trap "echo saved >> $NOTES; exit 0" TERM; echo started >> $NOTES; '
                  'for i in $(seq "${RUN_TENTHS:-1}"); do sleep 0.1; done; exit "${RUN_CODE:-0}";; esac'}
    for name, answer in answers.items():
        (tools / name).write_text(f'#!/bin/bash\necho "{name} $*" >> "$NOTES"\n{answer}\n')
        (tools / name).chmod(0o755)
    notes = tmp_path / "notes"
    notes.touch()

    def start(**more):
        env = {"PATH": f"{tools}:{os.environ['PATH']}", "NOTES": str(notes), "SLURM_SUBMIT_DIR": str(tmp_path),
               "SLURM_JOB_NUM_NODES": "4", "SLURM_JOB_ID": "12345", "SLURM_JOB_NODELIST": "n[0-3]",
               "SLURM_CPUS_PER_TASK": "96", **more}
        return subprocess.Popen(["bash", str(FOLDER / "slurm.sh"), "a.yaml", "seed=1"], env=env, text=True,
                                stderr=subprocess.PIPE, start_new_session=True)

    started = []
    yield lambda **more: (started.append(start(**more)), started[-1], notes)[1:]
    for process in started:     # what stands for Ray on the nodes
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_the_slurm_script_starts_ray_on_each_node_in_its_pool_and_then_the_run(slurm):
    process, notes = slurm()
    assert process.wait(60) == 0
    lines = notes.read_text().splitlines()
    starts = sorted(line for line in lines if line.startswith("srun "))     # they are started side by side
    assert [re.search(r"--nodelist=(\w+) .*--labels=pool=(\w+)", line).groups() for line in starts] == [
        ("n0", "learn"), ("n1", "learn"), ("n2", "rollout"), ("n3", "reward")]
    assert "--head --node-ip-address=n0 --port=22345" in starts[0]
    assert all("--address=n0:22345" in line for line in starts[1:])
    assert "python launch/train.py a.yaml seed=1" in lines


def test_the_slurm_script_ends_as_the_run_does_and_hands_on_the_signal(slurm):
    process, _ = slurm(RUN_CODE="2")
    assert process.wait(60) == 2
    process, notes = slurm(RUN_TENTHS="300")
    deadline = time.monotonic() + 30
    while notes.read_text().count("started") < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0 and "saved" in notes.read_text()


def test_the_slurm_script_refuses_pools_that_are_not_one_a_node(slurm):
    process, _ = slurm(RLAIF_POOLS="learn reward")
    assert process.wait(60) == 2
    assert "RLAIF_POOLS must name a pool for each of the 4 nodes, got learn reward" in process.stderr.read()
