"""Hundreds of steps: no process and no object store takes more and more memory."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from unittest.mock import patch

import numpy as np
import psutil
import pytest
from ray._private.internal_api import get_memory_info_reply, get_state_from_address

from tests.helpers.live_training import LiveTraining
from tests.helpers.nodes import Nodes
from tests.real.conftest import SHARED_GPU

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]

STEPS, GROUPS, GROUP_SIZE = 1000, 2, 2
SETTINGS = (
    f"steps={STEPS}", f"rollout.groups_per_step={GROUPS}", f"rollout.group_size={GROUP_SIZE}", "rollout.max_tokens=8",
    "explainer.max_tokens=8", f"prompts.num_train={STEPS * GROUPS}", "prompts.num_test=8", "evaluation.every=0",
    "report.samples_every=0", "pipeline.max_staleness=1", *SHARED_GPU)
LOOK_S = 2.0
PROCESS_MB, STORE_MB = 2.0, 1.0       # in 100 steps, over the second half: allocators still settle in the first
# Ray's head remembers the last 100,000 tasks for its dashboard, some 2 KB each, and grows until then.
TASKS_REMEMBERED = {"RAY_task_events_max_num_task_in_gcs": "1000"}


@dataclass
class Memory:
    """By process, (step, MB of its own) at each look; of the object store, (step, MB) and (step, objects)."""

    processes: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    store: list[tuple[int, float]] = field(default_factory=list)
    objects: list[tuple[int, float]] = field(default_factory=list)


def slope(seen: list[tuple[int, float]]) -> float:
    """In 100 steps, over the second half of the run; by Theil and Sen, whom single high values do not move."""
    late = np.array([(step, value) for step, value in seen if step >= STEPS // 2], dtype=float)
    steps, values = late[:, 0], late[:, 1]
    apart = steps[:, None] - steps[None, :]
    is_pair = apart >= STEPS // 20
    return 100 * float(np.median((values[:, None] - values[None, :])[is_pair] / apart[is_pair]))


def name_of(process: psutil.Process, training: LiveTraining) -> str | None:
    words = " ".join(process.cmdline())
    if process.pid == training.process.pid:
        return "driver"
    if words.startswith("ray::IDLE"):
        return None
    found = re.match(r"(?:ray|VLLM)::(\w+)", words) or re.search(
        r"(raylet|gcs_server|\w*Agent|\w*monitor\.py)\b", words)
    return f"{found[1] if found else process.name()} {process.pid}"


@pytest.fixture(scope="module")
def soaked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LiveTraining, Memory]]:
    """A cluster of one node, which this process has begun and may ask about its object store."""
    with patch.dict(os.environ, TASKS_REMEMBERED):
        nodes = Nodes([{"num_cpus": 3}])
    memory, training = Memory(), None
    try:
        cluster = get_state_from_address(nodes.address)
        training = LiveTraining(tmp_path_factory.mktemp("soak") / "run", *SETTINGS, cluster=nodes.address)
        training.until("all actors ready")
        while training.process.poll() is None:
            step = training.num_steps
            look(training, memory, step)
            stored = get_memory_info_reply(cluster).store_stats
            memory.store.append((step, stored.object_store_bytes_used / 1e6))
            memory.objects.append((step, stored.num_local_objects))
            time.sleep(LOOK_S)
        yield training, memory
    finally:
        if training is not None:
            training.stop()
        nodes.close()


def look(training: LiveTraining, memory: Memory, step: int) -> None:
    for process in psutil.Process().children(recursive=True):
        try:
            name = name_of(process, training)
            if name is not None:
                memory.processes.setdefault(name, []).append((step, process.memory_full_info().uss / 1e6))
        except psutil.Error:
            continue


def test_the_run_ends_with_every_prompt_trained_on_once(soaked: tuple[LiveTraining, Memory]) -> None:
    training, _ = soaked
    assert training.process.returncode == 0, training.printed[-4000:]
    assert training.summary["ledger"]["totals"] == {"trained": STEPS * GROUPS, "discarded": 0, "skipped": 0}


def test_no_process_grows(soaked: tuple[LiveTraining, Memory]) -> None:
    _, memory = soaked
    grown = {name: slope(seen) for name, seen in memory.processes.items()
             if min(step for step, _ in seen) <= STEPS // 2 and max(step for step, _ in seen) >= STEPS * 0.9}
    for name, value in grown.items():
        print(f"{name}: {memory.processes[name][-1][1]:.0f} MB at the end, {value:+.2f} MB in 100 steps")
    kinds = {name.split()[0] for name in grown}
    assert {"driver", "RolloutActor", "EngineCore", "ExplainerActor", "SlotActor", "LearnerActor", "raylet",
            "gcs_server"} <= kinds, kinds
    assert all(value <= PROCESS_MB for value in grown.values()), grown


def test_the_object_store_does_not_fill(soaked: tuple[LiveTraining, Memory]) -> None:
    _, memory = soaked
    print(f"object store: {max(value for _, value in memory.store):.1f} MB and "
          f"{max(value for _, value in memory.objects):.0f} objects at most, {slope(memory.store):+.3f} MB and "
          f"{slope(memory.objects):+.2f} objects in 100 steps")
    assert abs(slope(memory.store)) <= STORE_MB and abs(slope(memory.objects)) <= 20
