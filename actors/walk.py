"""The walk of a batch from prompts to scored rollouts: what has finished moves on while the rest still decodes.

    prompts -> rollouts -> explanations -> judges ----> one reward -> scored
                       '-> reward functions ---------'

The driver holds references and small columns; completions and explanations stay in the object store.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray

from actors.fleet import Fleet
from actors.pool import Answer
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


@dataclass(frozen=True)
class Order:
    """How prompts are to be rolled out and judged."""

    group_size: int
    seed: int
    is_greedy: bool = False         # the likeliest token at every place; else drawn as rollout.temperature says
    compares: bool = True           # transforms that compare rows do so; not where a prompt has one completion to watch


@dataclass
class Walk:
    """What came of PROMPT batches: references to SCORED batches, their small columns, and what each stage took."""

    scored: list[ray.ObjectRef] = field(default_factory=list)
    summaries: list[pa.Table] = field(default_factory=list)
    parts: list[dict[str, Metric]] = field(default_factory=list)
    num_rounds: int = 0
    clocks: dict[str, StageClock] = field(default_factory=lambda: {
        "rollout": StageClock(), "explain": StageClock(), "score": StageClock()})

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """The time inside is that of a stage which comes after the walk."""
        clock = self.clocks[stage] = StageClock()
        clock.enter()
        yield
        clock.leave(self.num_rows)

    @property
    def seconds(self) -> dict[str, float]:
        """What each stage took, as <stage>_s."""
        return {f"{stage}_s": clock.seconds for stage, clock in self.clocks.items()}

    @property
    def num_rows(self) -> int:
        return sum(table.num_rows for table in self.summaries)

    @property
    def summary(self) -> pa.Table:
        return pa.concat_tables(self.summaries).combine_chunks()

    @property
    def metrics(self) -> dict[str, Metric]:
        return merge(self.parts)


@dataclass(frozen=True)
class _Judged:
    """What was said of one batch: `first` holds its rows, as the first judge scored them or as they were rolled out."""

    first: ray.ObjectRef
    others: list[ray.ObjectRef]     # of further judges and of the reward functions
    num_rows: int


async def walk(fleet: Fleet, prompts: pa.Table, order: Order, done: Walk | None = None) -> Walk:
    """Rollouts, explanations and rewards of `prompts`, added to `done`; every row comes out once or an error does."""
    done = done or Walk()
    done.num_rounds += 1
    num_before = done.num_rows
    followers: list[asyncio.Task] = []
    done.clocks["rollout"].enter()
    try:
        await asyncio.gather(*(_roll_out(fleet, actor, part, order, done, followers)
                               for actor, part in fleet.split(prompts)))
        judged = [batch for batch in await asyncio.gather(*followers) if batch is not None]
        if judged:      # parts that compare a row with the whole step had to wait for all of it
            await _combine(fleet, judged, order, done)
    finally:
        for follower in followers:
            follower.cancel()       # after an error; a finished one takes no notice
    num_rows, expected = done.num_rows - num_before, prompts.num_rows * order.group_size
    if num_rows != expected:
        raise RuntimeError(f"a step must score {expected} rollouts, got {num_rows}")
    return done


async def _roll_out(fleet: Fleet, actor: Any, prompts: pa.Table, order: Order, done: Walk,
                    followers: list[asyncio.Task]) -> None:
    groups_per_batch = max(1, prompts.num_rows // BATCHES_PER_STEP)
    stream = actor.generate.options(num_returns="streaming").remote(
        prompts, order.group_size, order.seed, groups_per_batch, order.is_greedy)
    left = prompts.num_rows
    async for rollouts in stream:
        num_rows = min(groups_per_batch, left) * order.group_size
        left -= groups_per_batch
        done.clocks["rollout"].leave(num_rows)
        followers.append(asyncio.create_task(_judge(fleet, rollouts, num_rows, order, done)))


async def _judge(fleet: Fleet, rollouts: ray.ObjectRef, num_rows: int, order: Order, done: Walk) -> _Judged | None:
    """Sends one batch to everyone who has a part in its reward, and makes one reward of the parts; returns them where
    only the whole step can be combined.

    Each stage is awaited by its metrics: a call whose actor is lost is made again.
    """
    async def judged() -> list[Answer]:
        explained = rollouts
        if fleet.explainers.actors:
            done.clocks["explain"].enter()
            explaining = await fleet.explainers.ask(
                num_rows, lambda actor: actor.explain.options(num_returns=2).remote(rollouts))
            done.parts.append(explaining.metrics)
            done.clocks["explain"].leave(num_rows)
            explained = explaining.tables[0]
        done.clocks["score"].enter()
        return await asyncio.gather(*(
            judge.ask(num_rows, lambda actor: actor.score.options(num_returns=3).remote(explained))
            for judge in fleet.judges))

    async def valued() -> list[Answer]:
        if not fleet.plan.functions:
            return []
        return [await fleet.functions.ask(
            num_rows, lambda actor: actor.values.options(num_returns=2).remote(rollouts))]

    judges, asked = await asyncio.gather(judged(), valued())
    done.parts += [answer.metrics for answer in (*judges, *asked)]
    if fleet.plan.is_plain:
        await _take(judges[0], num_rows, done)
        return None
    tables = [answer.tables[0] for answer in (*judges, *asked)]
    batch = _Judged(tables[0], tables[1:], num_rows) if judges else _Judged(rollouts, tables, num_rows)
    if not fleet.plan.is_by_group:
        return batch
    await _combine(fleet, [batch], order, done)
    return None


async def _combine(fleet: Fleet, batches: list[_Judged], order: Order, done: Walk) -> None:
    """One reward of all parts, once for whole groups."""
    num_rows = sum(batch.num_rows for batch in batches)
    tables = [batch.first for batch in batches] + [table for batch in batches for table in batch.others]
    combined = await fleet.functions.ask(num_rows, lambda actor: actor.combine.options(num_returns=3).remote(
        order.compares, len(batches), *tables))
    done.parts.append(combined.metrics)
    await _take(combined, num_rows, done)


async def _take(answer: Answer, num_rows: int, done: Walk) -> None:
    scored, summary = answer.tables
    done.summaries.append(await summary)
    done.scored.append(scored)
    done.clocks["score"].leave(num_rows)
