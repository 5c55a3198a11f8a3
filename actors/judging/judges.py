"""Judges behind one door: whatever `reward.model` names, actors that score texts and batches alike.

    find_judge (pure: is it there, does it fit) -> start_judges (actors) -> judge.score_texts | judge.score
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

import pyarrow as pa
import ray

from actors.cluster.placement import Placement, within
from actors.faults.vitals import HEALTH, Vitals, vitals
from actors.judging.generative_judge import GenerativeJudgeActor
from actors.judging.slot_scorer import SlotActor
from rlaif.batch import EXPLAINED, ROLLOUT, check
from rlaif.config.train import EngineConfig, RewardConfig, RoleConfig
from rlaif.esfp.gold import GOLD
from rlaif.esfp.judges import Judge, gold_scored, gold_version
from rlaif.esfp.reward_model import Scored, Texts
from rlaif.metrics import Metric
from rlaif.rewards.scored_batch import scored_batch, texts_to_judge, without_explanations

Scores = tuple[pa.Table, pa.Table, dict[str, Metric]]


class JudgeActor(Protocol):
    """What every judge's actor answers; called as `actor.<verb>.remote(...)`."""

    def ready(self) -> None:
        """Returns once the judge can judge."""

    def ping(self, with_stacks: bool = False) -> Vitals:
        """Of its processes, while it judges."""

    def version(self) -> str:
        """16 hex digits that follow what decides a score."""

    def score_texts(self, texts: Texts, in_order: bool = False) -> tuple[Scored, dict[str, Metric]]:
        """What the judge says of `texts`, and what else was counted. `in_order`: pairs that a pairwise judge reads are
        read in the order they are given, instead of both."""

    def score(self, batch: pa.Table) -> Scores:
        """The SCORED batch of EXPLAINED or ROLLOUT rows, its small columns for the driver, and what was counted."""


def start_judges(judge: Judge, config: RewardConfig, engine: EngineConfig, placement: Placement, name: str,
                 role: RoleConfig, **options: Any) -> list[Any]:
    """Handles of role.num_actors JudgeActors, as `start_judge` starts each."""
    return [start_judge(judge, config, engine, placement, name, index, role, **options)
            for index in range(role.num_actors)]


def start_judge(judge: Judge, config: RewardConfig, engine: EngineConfig, placement: Placement, name: str, index: int,
                role: RoleConfig, *, part: str = "esfp", gold: str | None = None, on_unusable: str = "without",
                seed: int = 0, reproducible: bool = False) -> Any:
    """The handle of JudgeActor `index` in its bundle of role `name`; it may not be ready yet.

    engine: of a generative judge. What only `score` asks for: part, the name of what it says in reward_parts; gold, the
    judge that only watches beside the reward; on_unusable, what becomes of a row none of whose explanations is usable.
    """
    options = placement.options(name, index)
    if judge.kind == "gold":
        return GoldJudgeActor.options(**options).remote(judge, part, gold)
    if judge.kind == "generative":
        asked = GenerativeJudgeActor.options(**options).remote(judge.generative, engine, role.num_gpus, seed,
                                                                reproducible)
        beside = options | {"name": f"{name}-{index}-batches", "num_cpus": 0, "num_gpus": 0}
        return GenerativeRewardActor.options(**beside).remote(asked, judge, part, gold, on_unusable)
    return SlotActor.options(**options).remote(config, gold, on_unusable, judge, part)


async def all_ready(handles: Sequence[Any], timeout_s: float) -> str:
    """The version that all judges agree on, once they are ready; TimeoutError where one is not in time."""
    await within(asyncio.gather(*(_ready(actor) for actor in handles)), timeout_s, "judges")
    versions = await asyncio.gather(*(_version(actor) for actor in handles))
    assert len(set(versions)) == 1, f"judges must be of one version, got {versions}"
    return versions[0]


async def _ready(actor: Any) -> None:
    await actor.ready.remote()


async def _version(actor: Any) -> str:
    return await actor.version.remote()


class _Batches:
    """From a batch to what a judge reads, and from what it said to a scored batch."""

    def __init__(self, judge: Judge, part: str, gold: str | None, on_unusable: str) -> None:
        self._judge, self._part, self._on_unusable = judge, part, on_unusable
        self._gold = GOLD[gold] if gold else None

    def texts(self, batch: pa.Table) -> tuple[pa.Table, Texts]:
        """The EXPLAINED batch and its texts, a pairwise judge's against their references."""
        if "explanations" not in batch.schema.names:
            batch = without_explanations(check(batch, ROLLOUT))
        check(batch, EXPLAINED)
        return batch, texts_to_judge(batch, self._on_unusable, with_references=self._judge.template.is_pairwise)

    def scored(self, batch: pa.Table, texts: Texts, scored: Scored, version: str) -> Scores:
        verdicts = self._gold(texts.prompts, texts.completions) if self._gold is not None else {}
        return scored_batch(batch, scored, self._judge.template, verdicts, self._part, version)


@ray.remote(allow_out_of_order_execution=True, concurrency_groups=HEALTH)
class GoldJudgeActor:
    """A JudgeActor: the exact judge of rlaif.esfp.gold as the reward. Learns nothing, sees no explanations."""

    def __init__(self, judge: Judge, part: str, gold: str | None) -> None:
        self._name, self._batches = judge.model, _Batches(judge, part, gold, "without")

    @ray.method(concurrency_group="health")
    def ping(self, with_stacks: bool = False) -> Vitals:
        return vitals(with_stacks)

    def ready(self) -> None:
        pass

    def version(self) -> str:
        return gold_version(self._name)

    def score_texts(self, texts: Texts, in_order: bool = False) -> tuple[Scored, dict[str, Metric]]:
        assert not in_order, "a gold judge reads one side at a time"
        return gold_scored(self._name, texts), {}

    def score(self, batch: pa.Table) -> Scores:
        batch, texts = self._batches.texts(batch)
        return self._batches.scored(batch, texts, gold_scored(self._name, texts), gold_version(self._name))


@ray.remote(concurrency_groups=HEALTH)
class GenerativeRewardActor:
    """A JudgeActor that asks a GenerativeJudgeActor, which has no verb for batches. Takes no CPU of its own.

    A pairwise judge compares a batch's completions with the prompts' references.
    """

    def __init__(self, asked: Any, judge: Judge, part: str, gold: str | None, on_unusable: str) -> None:
        self._asked, self._batches = asked, _Batches(judge, part, gold, on_unusable)
        self._version: str | None = None

    @ray.method(concurrency_group="health")
    async def ping(self, with_stacks: bool = False) -> Vitals:
        """Of both actors, which share a place."""
        own, asked = vitals(with_stacks), await self._asked.ping.remote(with_stacks)
        return Vitals(own.node_id, own.pids + asked.pids, own.stacks + asked.stacks)

    async def ready(self) -> None:
        await self._asked.ready.remote()

    async def version(self) -> str:
        if self._version is None:
            self._version = await self._asked.version.remote()
        return self._version

    async def score_texts(self, texts: Texts, in_order: bool = False) -> tuple[Scored, dict[str, Metric]]:
        return await self._asked.score_texts.remote(texts, in_order)

    async def score(self, batch: pa.Table) -> Scores:
        batch, texts = self._batches.texts(batch)
        scored, metrics = await self.score_texts(texts)
        table, summary, counted = self._batches.scored(batch, texts, scored, await self.version())
        return table, summary, counted | metrics
