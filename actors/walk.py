"""The walk of a batch from prompts to scored rollouts: what has finished moves on while the rest still decodes.

The driver holds references and small columns; completions and explanations stay in the object store.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray

from actors.fleet import Fleet, Pool
from rlaif.metrics import Metric, merge

BATCHES_PER_STEP = 4    # a rollout actor sends its groups in about so many batches


@dataclass
class StageClock:
    """From the first batch that entered a stage to the last that left it, in seconds of the driver's clock."""

    started: float | None = None
    ended: float = 0.0
    num_rows: int = 0

    def enter(self) -> None:
        self.started = self.started if self.started is not None else time.perf_counter()

    def leave(self, num_rows: int) -> None:
        self.ended = time.perf_counter()
        self.num_rows += num_rows

    @property
    def seconds(self) -> float:
        return 0.0 if self.started is None else self.ended - self.started


@dataclass
class Walk:
    """What came of a PROMPT batch: references to SCORED batches, their small columns, and what each stage took."""

    scored: list[ray.ObjectRef] = field(default_factory=list)
    summaries: list[pa.Table] = field(default_factory=list)
    parts: list[dict[str, Metric]] = field(default_factory=list)
    clocks: dict[str, StageClock] = field(default_factory=lambda: {
        "rollout": StageClock(), "explain": StageClock(), "score": StageClock()})

    @property
    def summary(self) -> pa.Table:
        return pa.concat_tables(self.summaries).combine_chunks()

    @property
    def metrics(self) -> dict[str, Metric]:
        return merge(self.parts)


async def walk(fleet: Fleet, prompts: pa.Table, *, group_size: int, seed: int) -> Walk:
    """Rollouts, explanations and slot scores of `prompts`; every row comes out once or an error does."""
    done = Walk()
    followers: list[asyncio.Task] = []
    done.clocks["rollout"].enter()
    try:
        await asyncio.gather(*(_roll_out(fleet, actor, part, group_size, seed, done, followers)
                               for actor, part in fleet.split(prompts)))
        await asyncio.gather(*followers)
    finally:
        for follower in followers:
            follower.cancel()       # after an error; a finished one takes no notice
    expected = prompts.num_rows * group_size
    if done.summary.num_rows != expected:
        raise RuntimeError(f"a step must score {expected} rollouts, got {done.summary.num_rows}")
    return done


async def _roll_out(fleet: Fleet, actor: Any, prompts: pa.Table, group_size: int, seed: int, done: Walk,
                    followers: list[asyncio.Task]) -> None:
    groups_per_batch = max(1, prompts.num_rows // BATCHES_PER_STEP)
    stream = actor.generate.options(num_returns="streaming").remote(prompts, group_size, seed, groups_per_batch)
    left = prompts.num_rows
    async for rollouts in stream:
        num_rows = min(groups_per_batch, left) * group_size
        left -= groups_per_batch
        done.clocks["rollout"].leave(num_rows)
        followers.append(asyncio.create_task(_judge(fleet, rollouts, num_rows, done)))


async def _judge(fleet: Fleet, rollouts: ray.ObjectRef, num_rows: int, done: Walk) -> None:
    """Sends one batch through both stages of the reward, or the second alone where there are no explainers. The second
    call is made at once: Ray runs it when its argument is there, without a round trip to the driver."""
    explained, explaining = rollouts, None
    if fleet.explainers.actors:
        done.clocks["explain"].enter()
        explainer, explain = fleet.explainers.take(num_rows)
        explained, explain_metrics = explain.explain.options(num_returns=2).remote(rollouts)
        explaining = _then(explain_metrics, fleet.explainers, explainer, num_rows)
    slot, score = fleet.slots.take(num_rows)
    scored, summary, score_metrics = score.score.options(num_returns=3).remote(explained)
    if explaining is not None:
        done.parts.append(await explaining)
        done.clocks["explain"].leave(num_rows)
    done.clocks["score"].enter()
    done.parts.append(await _then(score_metrics, fleet.slots, slot, num_rows))
    done.summaries.append(await summary)
    done.scored.append(scored)
    done.clocks["score"].leave(num_rows)


async def _then(answer: Awaitable, pool: Pool, index: int, num_rows: int) -> Any:
    try:
        return await answer
    finally:
        pool.give_back(index, num_rows)
