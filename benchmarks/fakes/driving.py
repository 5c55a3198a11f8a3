"""The real loop over a fleet of fakes: what it took of the clock, of this process and of its memory, step by step."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import psutil

from actors.training import loop
from actors.training.unmeasured import Unmeasured
from benchmarks.fakes.players import Counts, World, played_by_ray, played_fleet
from benchmarks.fakes.rows import prompts
from benchmarks.fakes.virtual import VirtualLoop
from rlaif.config.pipeline import PipelineConfig
from rlaif.config.prompts import PromptsConfig
from rlaif.config.train import EngineConfig, ReportConfig, RewardConfig, RolloutConfig, TrainConfig
from rlaif.data.prompts import PromptStream
from rlaif.running.report import Report, Stopwatch

__all__ = ["Driven", "drive", "drive_ray", "settings"]


@dataclass
class Driven:
    """Marks at the end of every learner step, in their order: the first at version 0, before all."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)        # of this process, less what fakes in it took
    thread_s: list[float] = field(default_factory=list)     # CPU of the thread of the event loop; fakes in it included
    rss_bytes: list[int] = field(default_factory=list)
    trained: loop.Trained | None = None

    def per_step(self, name: str, first: int, last: int) -> float:
        """Of wall_s, cpu_s or thread_s, a step between the ends of the steps `first` and `last`."""
        marks = getattr(self, name)
        return (marks[last] - marks[first]) / (last - first)

    def bytes_per_step(self, first: int) -> float:
        """The slope of the resident memory from the end of step `first` on, by least squares."""
        found = self.rss_bytes[first:]
        return float(np.polyfit(np.arange(len(found)), found, 1)[0])


def settings(folder: str, *, steps: int, groups_per_step: int, group_size: int = 8, max_staleness: int = 1,
             portion_groups: int | None = None, num_slots: int = 128) -> TrainConfig:
    """The configuration of a run with fakes, whose portions are explained side by side; what names models and data is
    never read."""
    return TrainConfig(
        output_dir=folder, steps=steps, prompts=PromptsConfig("fake", "fake"), reward=RewardConfig("fake"),
        rollout=RolloutConfig(groups_per_step=groups_per_step, group_size=group_size,
                              engine=EngineConfig(max_num_seqs=num_slots)),
        pipeline=PipelineConfig(max_staleness=max_staleness, reproducible=False, portion_groups=portion_groups,
                                max_buffered_mb=1 << 20),
        report=ReportConfig(samples_every=0))


def drive(config: TrainConfig, counts: Counts, world: World, *, virtual: bool = False) -> Driven:
    """A run whose actors are objects of this process. virtual: wall_s is of a clock that only sleeps move."""

    def clock() -> float:
        return time.process_time() - world.cpu_s

    # The loop's own two calls of Ray: a reference to what is here is the thing itself.
    here = SimpleNamespace(put=lambda value: value, get=lambda future: future.result())
    with mock.patch.object(loop, "ray", here), asyncio.Runner(loop_factory=VirtualLoop if virtual else None) as runner:
        return runner.run(_run(config, lambda: played_fleet(config, counts, world), clock))


def drive_ray(config: TrainConfig, counts: Counts, num_hosts: int = 2) -> Driven:
    """A run whose actors are played by a few actors of the Ray that is joined; batches go through its object store."""
    return asyncio.run(_run(config, lambda: played_by_ray(config, counts, num_hosts), time.process_time))


async def _run(config: TrainConfig, make: Callable[[], Any], clock: Callable[[], float]) -> Driven:
    fleet, driven, process = make(), Driven(), psutil.Process()
    inner = fleet.sync

    async def sync(version: int) -> str:
        checksum = await inner(version)
        driven.wall_s.append(asyncio.get_running_loop().time())
        driven.cpu_s.append(clock())
        driven.thread_s.append(time.thread_time())
        driven.rss_bytes.append(process.memory_info().rss)
        return checksum

    fleet.sync = sync
    await asyncio.gather(*(pool.ready() for pool in fleet.pools))
    Path(config.output_dir).mkdir(parents=True, exist_ok=True)
    stream = PromptStream(prompts(4096), config.seed)
    gc.collect()
    with open(os.devnull, "w", encoding="utf-8") as console:
        report = Report(config.output_dir, console)
        try:
            driven.trained = await loop.train(config, fleet, stream, Unmeasured(), [], report, Stopwatch(), clock)
        finally:
            report.close()
            for pool in fleet.pools:
                pool.close()
    return driven
