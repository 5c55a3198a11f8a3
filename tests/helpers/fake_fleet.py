"""A fleet without Ray: actors that answer as the real ones do, from plain functions, for the tests of walk and loop.

What is under test is the driver: which call waits for which, what is combined, counted and trained on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from actors.pool import Pool, look_at
from rlaif.batch import EXPLAINED, ROLLOUT, SCORED, SUMMARY_COLUMNS, from_rows, with_columns
from rlaif.metrics import Max, Mean, Sum
from rlaif.pipeline.budgets import Budget
from rlaif.rewards.plan import JudgePart, RewardPlan
from rlaif.rewards.scored_batch import combine_scored, parts_table, without_explanations

Reward = Callable[[dict[str, Any]], float | None]       # of a ROLLOUT row


class Verb:
    """A method as Ray offers it: arguments may be under way, results are."""

    def __init__(self, function: Callable[..., Any], num_returns: int = 1) -> None:
        self._function, self._num_returns = function, num_returns

    def options(self, num_returns: Any) -> Any:
        return Stream(self._function) if num_returns == "streaming" else Verb(self._function, num_returns)

    def remote(self, *arguments: Any) -> Any:
        async def run() -> Any:
            return self._function(*[await each if isinstance(each, asyncio.Future) else each for each in arguments])

        whole = asyncio.ensure_future(run())

        async def part(number: int) -> Any:
            return (await whole)[number]

        if self._num_returns == 1:
            return whole
        parts = [asyncio.ensure_future(part(number)) for number in range(self._num_returns)]
        for future in parts:
            future.add_done_callback(look_at)      # nobody is told that a reference he did not read holds an error
        return parts


class Stream:
    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    async def remote(self, *arguments: Any) -> Any:
        for item in self._function(*arguments):
            await asyncio.sleep(0)
            ready = asyncio.get_running_loop().create_future()
            ready.set_result(item)
            yield ready


class Handle:
    """An actor's handle."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> Verb:
        if name in ("ready", "ping"):
            return Verb(lambda *arguments: None)
        return Verb(getattr(self._actor, name))


class Rollout:
    """Completions whose tokens are the sample's number, one more of them in each sample; a batch a call is told of."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, bool]] = []       # prompts, completions a prompt, is_greedy

    def generate(self, prompts: pa.Table, group_size: int, seed: int, groups_per_batch: int, is_greedy: bool) -> Any:
        self.asked.append((prompts.num_rows, group_size, is_greedy))
        rows = prompts.to_pylist()
        for start in range(0, len(rows), groups_per_batch):
            yield from_rows([row | {
                "sample": sample, "completion": f"{row['prompt']} {sample}", "completion_ids": [sample] * (sample + 1),
                "rollout_logprobs": [-0.5] * (sample + 1), "finish_reason": "stop", "policy_version": 0}
                for row in rows[start : start + groups_per_batch] for sample in range(group_size)], ROLLOUT)


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
        return scored, small_columns(scored), {"slot_inputs_cut": Sum(0)}


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

    async def update_policy(self, chosen: pa.Table, kl_coefficient: float, scored: list) -> dict:
        self.trained.append((chosen["group_id"].unique().to_pylist(), kl_coefficient))
        return {name: Mean(value, 1) for name, value in self.metrics.items()}

    async def drift(self, scored: list) -> dict:
        return {"max_logprob_gap": Max(1e-6), "kl": Mean(self.metrics.get("kl", 0.0), 1)}

    async def save(self, folder: str) -> None:
        from pathlib import Path

        Path(folder).mkdir()
        (Path(folder) / "version").write_text(str(len(self.trained)))
        self.saved.append(folder)


def small_columns(scored: pa.Table) -> pa.Table:
    return scored.select(list(SUMMARY_COLUMNS)).append_column(
        "num_completion_tokens", pc.list_value_length(scored["completion_ids"]))


def fake_fleet(plan: RewardPlan, judges: Mapping[str, FakeJudge], functions: Mapping[str, Reward], *,
               learners: Learners | None = None, has_explainer: bool = False) -> Any:
    """As actors.fleet.Fleet, with one rollout actor."""
    rollout, combining = Rollout(), Functions(plan, functions)

    async def sync(version: int) -> str:
        return f"{version:016x}"

    return SimpleNamespace(
        plan=plan, learners=learners or Learners(), rollout=rollout, combining=combining, sync=sync,
        explainers=Pool("explainer", lambda index: Handle(Explainer()), int(has_explainer), Budget(0)),
        judges=[Pool("slot", lambda index, part=part: Handle(judges[part.name]), 1, Budget(0)) for part in plan.judges],
        functions=Pool("functions", lambda index: Handle(combining), int(not plan.is_plain), Budget(0)),
        rollouts=Pool("rollout", lambda index: Handle(rollout), 1, Budget(0)),
        split=lambda prompts: [(Handle(rollout), prompts)])


def judge_part(name: str) -> JudgePart:
    from rlaif.config.train import RewardConfig

    return JudgePart(name, RewardConfig("judge"), None)
