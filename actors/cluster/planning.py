"""What there is to plan with: this machine, the running Ray cluster or a described one; and the check of a run."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import psutil
import ray

from actors.cluster.connection import join, running_address
from rlaif.config.checks import UserError
from rlaif.config.train import TrainConfig
from rlaif.planning.cluster import Cluster, GpuKind, Node, gpu_kind, read_cluster
from rlaif.planning.plan import make_plan
from rlaif.planning.table import table
from rlaif.running.preflight import check_devices

# Of a GPU whose kind is not known: products and bytes a second, for the estimate of time alone.
_UNKNOWN = 1e14, 1e12


def show_plan(config: TrainConfig, name: str, cluster_file: str | None) -> None:
    """Prints the plan of the configuration called `name`. Raises UserError, one line, where it does not fit: what must
    not be, and what estimates leave no room for."""
    check_devices(config)
    cluster = read_cluster(cluster_file) if cluster_file is not None else surroundings()
    plan = make_plan(config, cluster)
    print("\n".join(table(plan, name)), flush=True)
    plan.refuse(estimates=True)


def refuse_what_cannot_fit(config: TrainConfig) -> list[str]:
    """Raises UserError for what surely does not fit into the Ray cluster that is joined; returns warnings of what may
    not by estimates, each a line."""
    try:
        plan = make_plan(config, _ray_cluster())
    except UserError as error:      # everything else was found to be there: only sizes are not known
        return [f"memory is not checked: {error}"]
    plan.refuse(estimates=False)
    return plan.warnings + [lack.told for lack in plan.shortages if not lack.is_known]


def surroundings() -> Cluster:
    """The running Ray cluster that a run would join, else this machine, where it would start one."""
    address = running_address()
    if address is None:
        return Cluster((_this_machine(),), f"this machine, {socket.gethostname()}")
    join(address)
    try:
        return _ray_cluster()
    finally:
        ray.shutdown()


def _ray_cluster() -> Cluster:
    """The alive nodes of the cluster that is joined, as large as they are when nothing else runs."""
    nodes = tuple(_node(found) for found in sorted(ray.nodes(), key=lambda found: found["NodeID"]) if found["Alive"])
    return Cluster(nodes, f"the Ray cluster at {ray.get_runtime_context().gcs_address}")


def _node(found: dict[str, Any]) -> Node:
    resources, labels = found["Resources"], found.get("Labels") or {}
    kinds = [gpu_kind(name.removeprefix("accelerator_type:")) for name in resources
             if name.startswith("accelerator_type:")]
    gpus = _gpus_here() if found["NodeManagerAddress"] == ray.util.get_node_ip_address() else []
    # Ray's own figure is what it leaves to actors; beside it lies the object store.
    memory = resources.get("memory", float("inf")) + resources.get("object_store_memory", 0.0)
    return Node(found["NodeName"], resources.get("CPU", 0.0), int(resources.get("GPU", 0)), memory,
                gpus[0] if gpus else next(iter(kinds), None), labels.get("pool"))


def _this_machine() -> Node:
    gpus = _gpus_here()
    return Node(socket.gethostname(), _num_cpus(), len(gpus), _memory(), gpus[0] if gpus else None)


def _gpus_here() -> list[GpuKind]:
    """The GPUs of this machine that the environment lets be seen; none where no driver answers."""
    try:
        told = subprocess.run(["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"],
                              capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.rpartition(",") for line in told.splitlines() if "," in line]
    found = []
    for name, _, mib in rows:
        kind = gpu_kind(name)
        rates = (kind.flops, kind.bandwidth) if kind is not None else _UNKNOWN
        found.append(GpuKind(kind.name if kind else name.strip(), float(mib) * (1 << 20), *rates))
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    return found if shown is None else found[: len([part for part in shown.split(",") if part.strip()])]


def _num_cpus() -> float:
    """As Ray counts them: the machine's, or what a container may use of them."""
    quota, period = _read("/sys/fs/cgroup/cpu.max", "max 100000").split()[:2]
    there = float(os.cpu_count() or 1)
    return there if quota == "max" else min(there, max(1.0, float(int(quota) // int(period))))


def _memory() -> float:
    limit = _read("/sys/fs/cgroup/memory.max", "max").strip()
    there = float(psutil.virtual_memory().total)
    return there if limit == "max" else min(there, float(limit))


def _read(path: str, otherwise: str) -> str:
    try:
        return Path(path).read_text() or otherwise
    except OSError:
        return otherwise
