"""What the driver costs and how well the stages overlap: python benchmarks/pipeline.py [quick | full]

FAKES, all but the last figure: engines, explainers, judges and learners only play their parts (benchmarks/fakes); the
loop, feeder, buffer, ledger, walk, pools and gang that drive them are the real ones.

  driver        256 rollout actors, 64 explainers, 64 judges, 64 learner ranks, one step ahead. As objects of this
                process, fed as fast as it goes (rollouts_per_s_fake, driver_ms_per_batch_own: CPU of the driver for a
                batch of 128 rollouts); and played by two real Ray actors, every batch an object of Ray's store, every
                call Ray's (driver_ms_per_batch: CPU of the driver's own thread, which makes and awaits every call;
                driver_process_ms_per_batch: with Ray's threads in the driver, which run beside it)
  memory        many small steps: how much the driver's resident memory grows with a step
  simulated     stages that sleep, completions of skewed lengths: a step's wall time over the seconds that the slowest
                stage cannot do without (all its actors at work all the time), one step ahead; and a synchronous step,
                streamed, against the same one stage after stage. The timeline goes to results/pipeline_timeline.json
  weights       real: sync_over_memcpy of benchmarks/weight_sync.py
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))    # Ray's workers'

import ray  # noqa: E402

from actors.cluster.connection import connect  # noqa: E402
from benchmarks import weight_sync  # noqa: E402
from benchmarks.fakes.driving import Driven, drive, drive_ray, settings  # noqa: E402
from benchmarks.fakes.players import Counts, World  # noqa: E402
from benchmarks.fakes.simulated import (  # noqa: E402
    BALANCED,
    LEARNER_BOUND,
    ROLLOUT_BOUND,
    Simulated,
    chrome_trace,
    simulate,
)
from benchmarks.measuring import RESULTS, environment, num_cores, store, table_lines  # noqa: E402

# Steps of each part.
FORMS = {"quick": {"own": 8, "ray": 5, "memory": 300, "ahead": 8, "synchronous": 4},
         "full": {"own": 24, "ray": 12, "memory": 2000, "ahead": 24, "synchronous": 12}}
BATCH_GROUPS, GROUP_SIZE = 16, 8        # a batch of 128 rollouts
MEBI = 1 << 20


def main(arguments: Sequence[str]) -> int:
    form = arguments[0] if arguments else "quick"
    if form not in FORMS or len(arguments) > 1:
        print(f"usage: {Path(__file__).name} [{' | '.join(FORMS)}]", file=sys.stderr)
        return 2
    steps = FORMS[form]
    figures = driver_here(steps["own"]) | driver_memory(steps["memory"])
    figures |= simulated(steps["ahead"], steps["synchronous"])
    connect()
    try:
        figures |= driver_on_ray(steps["ray"])
    finally:
        ray.shutdown()
    connect()       # a Ray without what the fakes left in it
    try:
        measured = weight_sync.measured(form)
        figures |= {name: measured[name] for name in ("sync_over_memcpy", "sync_without_reload_over_memcpy")}
    finally:
        ray.shutdown()
    for line in table_lines(["figure", "measured", "target"], [
            {"figure": name, "measured": value, "target": TARGETS.get(name, "")} for name, value in figures.items()]):
        print(line)
    store("pipeline", {"form": form, "threads": int(os.environ["OMP_NUM_THREADS"]), "load_average": os.getloadavg()[0],
                       "cores": num_cores()} | figures | environment())
    return 0


TARGETS = {"driver_ms_per_batch": "<= 5", "rollouts_per_s_fake": ">= 20000", "async_over_slowest_stage": "<= 1.1",
           "streaming_speedup": ">= 1.3", "sync_over_memcpy": "<= 2"}


def driver_here(steps: int, counts: Counts | None = None) -> dict[str, float]:
    """With the fakes in this process; their own CPU seconds are measured and taken off."""
    counts = counts or Counts()
    world = World()
    with tempfile.TemporaryDirectory() as folder:
        config = settings(folder, steps=steps, groups_per_step=counts.rollouts * BATCH_GROUPS, group_size=GROUP_SIZE,
                          portion_groups=BATCH_GROUPS)
        driven = drive(config, counts, world)
    wall_s, cpu_s = _steady(driven, steps)
    return {"rollouts_per_s_fake": counts.rollouts * BATCH_GROUPS * GROUP_SIZE / wall_s,
            "driver_ms_per_batch_own": 1e3 * cpu_s / counts.rollouts}


def driver_on_ray(steps: int, counts: Counts | None = None) -> dict[str, float]:
    """With two real Ray actors that play all; Ray is up."""
    counts = counts or Counts()
    with tempfile.TemporaryDirectory() as folder:
        config = settings(folder, steps=steps, groups_per_step=counts.rollouts * BATCH_GROUPS, group_size=GROUP_SIZE,
                          portion_groups=BATCH_GROUPS)
        driven = drive_ray(config, counts)
    wall_s, cpu_s = _steady(driven, steps)
    return {"driver_ms_per_batch": 1e3 * driven.per_step("thread_s", 1, steps - 2) / counts.rollouts,
            "driver_process_ms_per_batch": 1e3 * cpu_s / counts.rollouts,
            "rollouts_per_s_ray": counts.rollouts * BATCH_GROUPS * GROUP_SIZE / wall_s}


def _steady(driven: Driven, steps: int) -> tuple[float, float]:
    """Wall and CPU seconds of a step, without the first and without the last two, where nothing is drawn any more."""
    return driven.per_step("wall_s", 1, steps - 2), driven.per_step("cpu_s", 1, steps - 2)


def driver_memory(steps: int) -> dict[str, float]:
    """Small steps, many of them; the slope is that of the second half, when caches are warm."""
    with tempfile.TemporaryDirectory() as folder:
        config = settings(folder, steps=steps, groups_per_step=16, group_size=GROUP_SIZE, portion_groups=4)
        driven = drive(config, Counts(4, 2, 2, 2), World())
    assert driven.trained is not None
    return {"driver_memory_growth_kb_per_step": driven.bytes_per_step(steps // 2) / 1024,
            "driver_memory_mb": driven.rss_bytes[-1] / MEBI}


def simulated(steps: int, synchronous: int) -> dict[str, float]:
    """Ahead of the learners by a step, and not; writes the timeline."""
    runs: dict[str, Simulated] = {
        "asynchronous, rollouts slowest": simulate(ROLLOUT_BOUND, steps=steps, max_staleness=1),
        "asynchronous, learners slowest": simulate(LEARNER_BOUND, steps=steps, max_staleness=1),
        "asynchronous, no slack, idle machine": simulate(BALANCED, steps=steps, max_staleness=1, virtual=True),
        "synchronous, streamed": simulate(ROLLOUT_BOUND, steps=synchronous, max_staleness=0),
        "synchronous, stage after stage": simulate(ROLLOUT_BOUND, steps=synchronous, max_staleness=0, barrier=True),
    }
    unloaded = [simulate(latency, steps=steps, max_staleness=1, virtual=True).over_slowest
                for latency in (ROLLOUT_BOUND, LEARNER_BOUND)]
    rows = [{"run (simulated)": name} | {f"{stage} s": seconds for stage, seconds in run.stages.items()} | {
        "step s": run.wall_s, "over slowest": run.over_slowest} for name, run in runs.items()]
    for line in table_lines(list(rows[0]), rows):
        print(line)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "pipeline_timeline.json").write_text(json.dumps(
        chrome_trace({name: run.some_steps(2) for name, run in runs.items()})) + "\n", encoding="utf-8")
    ahead, behind, tight, streamed, staged = runs.values()
    return {"async_over_slowest_stage": max(ahead.over_slowest, behind.over_slowest),
            "async_over_slowest_stage_rollouts": ahead.over_slowest,
            "async_over_slowest_stage_learners": behind.over_slowest,
            "async_over_slowest_stage_no_slack": tight.over_slowest,
            "async_over_slowest_stage_idle_machine": max(unloaded),
            "async_over_synchronous": streamed.wall_s / ahead.wall_s,
            "streaming_speedup": staged.wall_s / streamed.wall_s}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
