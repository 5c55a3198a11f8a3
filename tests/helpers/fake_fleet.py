"""A fleet without Ray: actors that answer as the real ones do, from plain functions, for the tests of walk and loop.

What is under test is the driver: which call waits for which, what is combined, counted and trained on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pyarrow as pa

from actors.engines.generation import Leaving
from actors.faults.pool import Pool
from benchmarks.fakes.handles import Handle
from rlaif.batch import EXPLAINED, ROLLOUT, SCORED, from_rows, with_columns
from rlaif.metrics import Max, Mean, Sum
from rlaif.pipeline.budgets import Budget
from rlaif.rewards.plan import JudgePart, RewardPlan
from rlaif.rewards.scored_batch import combine_scored, parts_table, size_of, small_columns, without_explanations

Reward = Callable[[dict[str, Any]], float | None]       # of a ROLLOUT row
Delay = Callable[[str], Awaitable[None]]                # of a stage


async def at_once(stage: str) -> None:
    """The delay of actors that answer at once."""


class Rollout:
    """Completions whose tokens are the sample's number, one more of them in each sample; a batch a call is told of.

    `version` is what a sync brought last; of a completion that one came into, the first half of the tokens is older.
    """

    def __init__(self, delay: Delay = at_once) -> None:
        self.asked: list[tuple[int, int, bool]] = []       # prompts, completions a prompt, is_greedy
        self.groups: list[int] = []                         # in the order they were asked for
        self.version, self._delay = 0, delay

    async def generate(self, prompts: pa.Table, group_size: int, seed: int, groups_per_batch: int, is_greedy: bool,
                       together: bool) -> Any:
        self.asked.append((prompts.num_rows, group_size, is_greedy))
        self.groups += prompts["group_id"].to_pylist()
        rows, before = prompts.to_pylist(), self.version
        for start in range(0, len(rows), groups_per_batch):
            await self._delay("rollout")
            batch = from_rows([row | {
                "sample": sample, "completion": f"{row['prompt']} {sample}", "completion_ids": [sample] * (sample + 1),
                "rollout_logprobs": [-0.5] * (sample + 1), "finish_reason": "stop", "policy_version": before,
                "policy_versions": [before] * (sample // 2 + 1) + [self.version] * (sample - sample // 2)}
                for row in rows[start : start + groups_per_batch] for sample in range(group_size)], ROLLOUT)
            yield batch
            yield Leaving(batch["group_id"].unique().to_pylist(), batch.num_rows, batch.nbytes)


class Explainer:
    def explain(self, rollouts: pa.Table) -> tuple[pa.Table, dict]:
        num_rows = rollouts.num_rows
        return with_columns(rollouts, EXPLAINED, {
            "explanations": [["so"]] * num_rows, "explanation_finish_reasons": [["stop"]] * num_rows,
            "num_explanation_tokens": [1] * num_rows}), {"num_explanations": Sum(num_rows)}


class FakeJudge:
    """What `part` of the reward says is `reward` of a row; gold watches where it is given."""

    def __init__(self, part: str, reward: Reward, gold: Reward | None = None) -> None:
        self._part, self._reward, self._gold = part, reward, gold
        self.num_explained = 0

    def score(self, batch: pa.Table) -> tuple[pa.Table, pa.Table, dict]:
        if "explanations" in batch.schema.names:
            self.num_explained += batch.num_rows
        else:
            batch = without_explanations(batch)
        rows = batch.to_pylist()
        parts = [[(self._part, self._reward(row))] for row in rows]
        scored = with_columns(batch, SCORED, {
            "slot_probabilities": [[]] * len(rows), "slot_scores": [[]] * len(rows), "slot_entropy": [[]] * len(rows),
            "reward_parts": parts, "reward_terms": parts, "reward": [self._reward(row) for row in rows],
            "judge_verdicts": [[("gold", self._gold(row))] if self._gold else [] for row in rows],
            "reward_version": ["abcd"] * len(rows)})
        return scored, small_columns(scored), size_of(scored) | {"slot_inputs_cut": Sum(0)}


class Functions:
    """The function parts of `plan`, by name."""

    def __init__(self, plan: RewardPlan, parts: Mapping[str, Reward]) -> None:
        self._plan, self._parts = plan, parts
        self.combined: list[tuple[bool, int, int]] = []         # compares, batches, tables of a call

    def values(self, rollouts: pa.Table) -> tuple[pa.Table, dict]:
        rows = rollouts.to_pylist()
        return parts_table(rollouts, {name: [part(row) for row in rows] for name, part in self._parts.items()}, "v"), {}

    def combine(self, compares: bool, num_batches: int, *tables: pa.Table) -> tuple[pa.Table, pa.Table, dict]:
        self.combined.append((compares, num_batches, len(tables)))
        plan = self._plan if compares else self._plan.without_comparison()
        return combine_scored(tables[:num_batches], tables[num_batches:], plan)


class Learners:
    """Notes what it is to train on; `metrics` is what an update says of itself."""

    def __init__(self, **metrics: float) -> None:
        self.metrics = {"loss": 0.5, "grad_norm": 1.0, "max_logprob_gap": 0.0} | metrics
        self.trained: list[tuple[list[int], float]] = []        # groups, KL coefficient
        self.saved: list[str] = []
        self.delay: Delay = at_once

    async def update_policy(self, chosen: pa.Table, kl_coefficient: float, scored: list) -> dict:
        await self.delay("learn")
        self.trained.append((chosen["group_id"].unique().to_pylist(), kl_coefficient))
        return {name: Mean(value, 1) for name, value in self.metrics.items()}

    async def drift(self, scored: list) -> dict:
        return {"max_logprob_gap": Max(1e-6), "kl": Mean(self.metrics.get("kl", 0.0), 1)}

    async def save(self, folder: str) -> None:
        from pathlib import Path

        Path(folder).mkdir()
        (Path(folder) / "version").write_text(str(len(self.trained)))
        self.saved.append(folder)


def fake_fleet(plan: RewardPlan, judges: Mapping[str, FakeJudge], functions: Mapping[str, Reward], *,
               learners: Learners | None = None, has_explainer: bool = False, num_rollouts: int = 1,
               delay: Delay = at_once) -> Any:
    """As actors.training.fleet.Fleet. delay: of a stage (rollout, explain, score, learn, sync), awaited before it
    answers."""
    rollouts, combining = [Rollout(delay) for _ in range(num_rollouts)], Functions(plan, functions)
    learners = learners or Learners()
    learners.delay = delay

    async def sync(version: int) -> str:
        await delay("sync")
        for rollout in rollouts:
            rollout.version = version
        return f"{version:016x}"

    def pool(role: str, stage: str, actors: list[Any]) -> Pool:
        return Pool(role, lambda index: Handle(actors[index], stage, delay), len(actors), Budget(0))

    return SimpleNamespace(
        plan=plan, learners=learners, rollout=rollouts[0], combining=combining, sync=sync, figures=dict,
        budget=Budget(2), learning=contextlib.nullcontext,
        rollouts=pool("rollout", "rollout", rollouts),
        explainers=pool("explainer", "explain", [Explainer()] * has_explainer),
        judges=[pool("slot", "score", [judges[part.name]]) for part in plan.judges],
        functions=pool("functions", "score", [combining] * (not plan.is_plain)))


def judge_part(name: str) -> JudgePart:
    from rlaif.config.train import RewardConfig

    return JudgePart(name, RewardConfig("judge"), None)
