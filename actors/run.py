"""What launchers call: a run from checks to summary, with Ray around it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from actors.cluster import connect
from actors.fleet import Fleet, roles
from actors.gang import Gang
from actors.loop import export_folder, train
from actors.placement import refuse_too_large
from rlaif.cli import working
from rlaif.config import TrainConfig
from rlaif.memory import PeakMemory
from rlaif.models import absolute
from rlaif.preflight import Checked, check_train
from rlaif.report import Report, Stopwatch, write_json
from rlaif.run_folder import claim, finish, refuse_other_run
from rlaif.versions import versions


def run_training(config: TrainConfig) -> None:
    """launch/train.py: trains, evaluates, exports; everything lands in config.output_dir."""
    if refuse_other_run(config.output_dir, config):
        print(f"{config.output_dir} is complete; nothing to do", flush=True)
        return
    watch = Stopwatch()
    checked = check_train(config)
    asked, config = config, with_absolute_paths(config)     # actors may run in another folder
    where = connect()
    try:
        refuse_too_large(roles(config, checked.explainer), ray.cluster_resources())
        claim(config.output_dir, asked)
        with contextlib.closing(Report(config.output_dir)) as report:
            report.say(f"{where}; results go to {config.output_dir}")
            with working(), PeakMemory() as memory:
                figures = asyncio.run(_train(
                    config, checked, report, watch, lambda: time.process_time() - memory.cpu_s))
            summary = _summary(config, figures, watch, memory.peak_gb)
            write_json(Path(config.output_dir) / "summary.json", summary)
            report.say(f"policy: {export_folder(config.output_dir)}   summary: {config.output_dir}/summary.json   "
                       f"{watch.total:.0f} s in all, {memory.peak_gb:.1f} GB at the peak")
        finish(config.output_dir)
    finally:
        ray.shutdown()


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """`config` with its local folders seen from anywhere; names on a hub stay names."""
    return dataclasses.replace(
        config, output_dir=str(Path(config.output_dir).resolve()),
        policy=dataclasses.replace(config.policy, model=absolute(config.policy.model)),
        reward=dataclasses.replace(config.reward, model=absolute(config.reward.model)))


async def _train(config: TrainConfig, checked: Checked, report: Report, watch: Stopwatch,
                 driver_clock: Callable[[], float]) -> dict[str, Any]:
    started = time.perf_counter()
    fleet = Fleet(config, checked.explainer, checked.judge)
    try:
        await fleet.ready()
        watch.add("start", time.perf_counter() - started)
        counts = ", ".join(f"{role.num_actors} {name}" for name, role in roles(config, checked.explainer).items())
        report.say(f"all actors ready in {watch.seconds['start']:.1f} s: {counts}")
        figures = await train(config, fleet, checked.train_rows, checked.test_rows, checked.judge.template, report,
                              watch, driver_clock)
        await export(fleet.learners, export_folder(config.output_dir))
        return figures
    finally:
        fleet.stop()


async def export(learners: Gang, folder: str) -> None:
    """Saves a model folder anew, in place of what an unfinished run may have left."""
    for leftover in (folder, folder + ".partial"):
        shutil.rmtree(leftover, ignore_errors=True)
    await learners.save(folder)


def _summary(config: TrainConfig, figures: dict[str, Any], watch: Stopwatch, peak_gb: float) -> dict[str, Any]:
    before, after = figures["before"], figures["after"]
    sides = {f"{name}_{when}": found[name] for when, found in (("before", before), ("after", after))
             for name in ("reward", "gold", "fluent", "completion_tokens", "identical_share") if name in found}
    return {
        "steps": config.steps, "seed": config.seed, **sides, "kl": after.get("kl"),
        "wall_s": {**watch.seconds, "loop": figures["loop_s"], "total": watch.total},
        "samples_per_s": figures["samples_per_s"], "peak_rss_gb": peak_gb,
        "max_logprob_gap": figures["max_logprob_gap"], "num_test_prompts": figures["num_test_prompts"],
        "weights_checksum": figures["weights_checksum"], "versions": versions(),
    }
