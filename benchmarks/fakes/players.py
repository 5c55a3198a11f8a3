"""FAKE: what plays rollout engines, explainers, judges and learners. The loop, the feeder, the buffer, the ledger, the
walk, the pools and the gang that drive them are the real ones.

    played_fleet(config, Counts(), World(...))      every actor an object of this process, its calls tasks
    played_by_ray(config, Counts(), num_hosts)      every actor one of a few real Ray actors, its calls Ray's
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import ray

from actors.engines.generation import Leaving
from actors.faults.awaiting import awaited
from actors.faults.pool import Pool
from actors.learners.gang import Gang
from actors.learners.ranks import Ranks
from benchmarks.fakes import rows
from benchmarks.fakes.handles import Handle
from benchmarks.fakes.latency import Barrier, Latency, Span, Units, skewed_lengths, stage_seconds
from rlaif.config.faults import FaultsConfig
from rlaif.config.reward_parts import RewardPartConfig
from rlaif.config.train import RewardConfig, TrainConfig
from rlaif.metrics import Max, Mean, Metric, Sum
from rlaif.pipeline.board import Board
from rlaif.pipeline.budgets import Budget
from rlaif.rewards.plan import JudgePart, RewardPlan
from rlaif.rewards.scored_batch import size_of, small_columns

PLAN = RewardPlan((RewardPartConfig(kind="judge", name="esfp"),), (JudgePart("esfp", RewardConfig("fake"), None),))
LEARNED: dict[str, Metric] = {"loss": Mean(0.5, 1), "grad_norm": Mean(1.0, 1), "max_logprob_gap": Max(0.0),
                              "kl": Mean(0.1, 1), "kl_per_token": Mean(0.01, 1)}


def _now() -> float:
    return asyncio.get_running_loop().time()


@dataclass(frozen=True)
class Counts:
    """Actors of each role."""

    rollouts: int = 256
    explainers: int = 64
    judges: int = 64
    learners: int = 64


@dataclass
class World:
    """What the players share: their pace, the weights' version, how long the engines have stood still, who was at work
    when, and the CPU seconds that playing took, which are none of the driver's."""

    latency: Latency = field(default_factory=Latency)
    rows_per_step: int = 1
    seed: int = 0
    version: int = 0
    paused_s: float = 0.0
    cpu_s: float = 0.0
    started: float = 0.0        # of the event loop's clock
    spans: list[Span] = field(default_factory=list)
    units: dict[str, list[Units]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rolled_out, self.explained = Barrier(self.rows_per_step), Barrier(self.rows_per_step)

    def units_of(self, stage: str, num: int) -> Units:
        """The places of one more actor of `stage`."""
        self.units.setdefault(stage, []).append(Units(num, lambda: self.paused_s if stage == "rollout" else 0.0))
        return self.units[stage][-1]

    @contextlib.contextmanager
    def playing(self) -> Any:
        """Inside nothing is awaited: the seconds are those of a fake."""
        started = time.thread_time()
        yield
        self.cpu_s += time.thread_time() - started

    @contextlib.contextmanager
    def span(self, stage: str, who: int, num_rows: int) -> Any:
        started = _now()
        yield
        self.spans.append(Span(stage, who, started - self.started, _now() - self.started, num_rows))

    def stage_seconds(self, num_steps: int) -> dict[str, float]:
        return stage_seconds(self.units, num_steps)


class Player:
    """One actor of `stage`, or of any stage where nothing takes time."""

    def __init__(self, world: World | None = None, stage: str = "", who: int = 0) -> None:
        self._world, self._who = world or World(), who
        self._latency = self._world.latency
        self._is_timed = self._latency != Latency()
        if self._is_timed:
            self._units = self._world.units_of(stage, self._latency.num_slots if stage == "rollout" else 1)

    async def ready(self) -> None:
        """Returns once it plays."""

    async def ping(self, with_stacks: bool = False) -> None:
        """Answers."""

    async def generate(self, prompts: pa.Table, group_size: int, seed: int, groups_per_batch: int, is_greedy: bool,
                       together: bool) -> AsyncIterator[pa.Table | Leaving]:
        """As actors.engines.rollout.RolloutActor: whole groups as they finish."""
        at = {group: row for row, group in enumerate(prompts["group_id"].to_pylist())}
        started, finished = _now(), list[int]()
        tasks = [asyncio.ensure_future(self._group(group, group_size)) for group in at] if self._is_timed else []
        order = asyncio.as_completed(tasks) if tasks else at
        try:
            for count, done in enumerate(order, 1):
                finished.append(await done if tasks else done)
                if count % groups_per_batch and count != len(at):
                    continue
                with self._world.playing():
                    batch = rows.rollouts(prompts.take([at[group] for group in finished]), group_size,
                                          self._world.version)
                    leaving = Leaving(finished, batch.num_rows, batch.nbytes)
                self._world.rolled_out.came(batch.num_rows)
                if self._is_timed:
                    self._world.spans.append(Span("rollout", self._who, started - self._world.started,
                                                  _now() - self._world.started, batch.num_rows))
                finished = []
                yield batch
                yield leaving
        finally:
            for task in tasks:
                task.cancel()

    async def _group(self, group: int, group_size: int) -> int:
        lengths = skewed_lengths(self._world.seed, group, group_size)
        await asyncio.gather(*(self._units.work(float(length) * self._latency.token_s) for length in lengths))
        return group

    async def explain(self, batch: pa.Table) -> tuple[pa.Table, dict[str, Metric]]:
        if self._latency.barrier:
            await self._world.rolled_out.step()
        if self._is_timed:
            with self._world.span("explain", self._who, batch.num_rows):
                await self._units.work(self._latency.explain_row_s * batch.num_rows)
            self._world.explained.came(batch.num_rows)
        with self._world.playing():
            return rows.explained(batch), {"num_explanations": Sum(batch.num_rows)}

    async def score(self, batch: pa.Table) -> tuple[pa.Table, pa.Table, dict[str, Metric]]:
        if self._latency.barrier:
            await self._world.explained.step()
        if self._is_timed:
            with self._world.span("score", self._who, batch.num_rows):
                await self._units.work(self._latency.score_row_s * batch.num_rows)
        with self._world.playing():
            table = rows.scored(batch)
            return table, small_columns(table), size_of(table) | {"slot_inputs_cut": Sum(0)}

    async def update_policy(self, chosen: pa.Table, kl_coefficient: float, *scored: Any) -> dict[str, Metric]:
        """Reads nothing; `scored` has arrived by now."""
        if self._is_timed:
            with self._world.span("learn", self._who, chosen.num_rows):
                await self._units.work(self._latency.learn_s)
        return LEARNED

    async def publish(self, version: int) -> str:
        """The weights of `version` are everywhere; engines stand still meanwhile."""
        if self._is_timed and self._who == 0:
            started = _now()
            await asyncio.sleep(self._latency.sync_s)
            self._world.paused_s += _now() - started
            self._world.spans.append(Span("sync", self._who, started - self._world.started,
                                          _now() - self._world.started, 0))
        self._world.version = version
        return f"{version:016x}"


class PlayedGang(Gang):
    """The real gang, of learners that make(rank) gives."""

    def __init__(self, make: Callable[[int], Any], num_learners: int, board: Board, by_ray: bool) -> None:
        if not by_ray:      # nothing is named to another process
            self._fewer = list
        self._ranks = Ranks("learner", make, num_learners, FaultsConfig(), board, print)

    async def publish(self, version: int) -> str:       # what a fleet's sync asks of it
        return (await self._ranks.all("the weights to be sent", lambda actor: actor.publish.remote(version)))[0]


def played_fleet(config: TrainConfig, counts: Counts, world: World) -> Any:
    """As actors.training.fleet.Fleet, its actors objects of this process."""
    return _fleet(config, counts, lambda role, index: Handle(Player(world, role, index)), by_ray=False)


def played_by_ray(config: TrainConfig, counts: Counts, num_hosts: int = 2) -> Any:
    """As actors.training.fleet.Fleet, its actors played by `num_hosts` actors of the Ray that is joined."""
    hosts = [ray.remote(Player).options(num_cpus=0, max_concurrency=1000).remote() for _ in range(num_hosts)]
    fleet = _fleet(config, counts, lambda role, index: hosts[index % num_hosts], by_ray=True)
    inner = fleet.sync

    async def sync(version: int) -> str:
        await asyncio.gather(*(awaited(host.publish.remote(version)) for host in hosts))
        return await inner(version)

    fleet.sync = sync
    return fleet


def _fleet(config: TrainConfig, counts: Counts, make: Callable[[str, int], Any], *, by_ray: bool) -> Any:
    board, budget = Board(), Budget(0)

    def pool(role: str, stage: str, num_actors: int) -> Pool:
        return Pool(role, lambda index: make(stage, index), num_actors, budget, config.faults, board=board)

    pools = [pool("rollout", "rollout", counts.rollouts), pool("explainer", "explain", counts.explainers),
             pool("slot", "score", counts.judges), pool("functions", "score", 0)]
    learners = PlayedGang(lambda rank: make("learn", rank), counts.learners, board, by_ray)
    return SimpleNamespace(
        config=config, plan=PLAN, board=board, budget=budget, pools=pools, rollouts=pools[0], explainers=pools[1],
        judges=[pools[2]], functions=pools[3], learners=learners, sync=learners.publish,
        learning=contextlib.nullcontext,
        figures=lambda: {name: value for one in pools for name, value in one.figures().items()})
