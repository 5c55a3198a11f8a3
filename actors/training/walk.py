"""The walk of prompts to scored rollouts: what has finished moves on while the rest still decodes.

    prompts -> rollouts -> explanations -> judges ----> one reward -> scored
                       '-> reward functions ---------'

Every stage is awaited by what is small; completions and explanations stay in the object store, and leave it once the
stage after them has read them. A call whose actor is lost is made again elsewhere, rows whose objects are lost are
rolled out again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from actors.engines.generation import Leaving
from actors.faults.pool import ActorLost, Answer, InputsLost, look_at
from actors.faults.restarts import Lost, lost
from actors.training.fleet import Fleet
from actors.training.room import Room
from actors.training.stages import Stages
from rlaif.config.checks import Unavailable
from rlaif.metrics import Metric, merge
from rlaif.pipeline.portions import PORTIONS_IN_TURN, ScoredPortion, portion_size, shares

Out = Callable[[ScoredPortion], None]

MAX_LOSSES = 5      # of the rows of one portion, one after the other; a node takes them along once


@dataclass(frozen=True)
class Order:
    """How prompts are to be rolled out and judged."""

    group_size: int
    seed: int
    is_greedy: bool = False         # the likeliest token at every place; else drawn as rollout.temperature says
    compares: bool = True           # transforms that compare rows do so; not where a prompt has one completion to watch
    reproducible: bool = False      # who serves what, and what is served together, does not depend on the clock
    room: Room = field(default_factory=Room)        # in the engines; what does not fit waits for whoever is free first


@dataclass
class Walk:
    """What came of a whole set of prompts: references to SCORED batches, their small columns, what was counted."""

    portions: list[ScoredPortion] = field(default_factory=list)
    stages: Stages = field(default_factory=Stages)

    @property
    def scored(self) -> list[ray.ObjectRef]:
        return [portion.tables[0] for portion in self.portions]

    @property
    def num_rows(self) -> int:
        return sum(portion.num_rows for portion in self.portions)

    @property
    def summary(self) -> pa.Table:
        return pa.concat_tables([portion.summary for portion in self.portions]).combine_chunks()

    @property
    def metrics(self) -> dict[str, Metric]:
        return merge(portion.metrics for portion in self.portions)


async def walk(fleet: Fleet, prompts: pa.Table, order: Order) -> Walk:
    """All of `prompts` at once, shared out over the engines; every row comes out once or an error does."""
    done, num_engines = Walk(), len(fleet.rollouts.actors)
    size = portion_size(prompts.num_rows, num_engines, in_turn=order.reproducible)
    parts = shares(range(prompts.num_rows), num_engines)
    await _all(walk_groups(fleet, prompts.take(part), order, done.portions.append, done.stages, number, size)
               for number, part in enumerate(parts))
    done.portions.sort(key=lambda portion: portion.group_ids)
    if not all(portion.is_combined for portion in done.portions):
        done.portions = [await combine(fleet, done.portions, order, done.stages)]
    expected = prompts.num_rows * order.group_size
    if done.num_rows != expected:
        raise RuntimeError(f"a walk must score {expected} rollouts, got {done.num_rows}")
    return done


async def walk_groups(fleet: Fleet, prompts: pa.Table, order: Order, out: Out, stages: Stages, number: int = 0,
                      groups_per_batch: int | None = None, num_losses: int = 0) -> None:
    """Rolls `prompts` out in one engine and gives the portions that come of them to `out`, as they are scored.

    number: counts the calls that are made side by side; in reproducible mode it says who serves this one.
    groups_per_batch: groups that leave the engine together, the first that have finished; None: all of them.
    num_losses: how often their rows were lost. Raises Unavailable, one line, where that goes on.
    """
    groups_per_batch = groups_per_batch or prompts.num_rows
    following: list[asyncio.Task] = []
    try:
        while prompts.num_rows:
            try:
                async for leaving, rollouts in _rollouts(fleet, prompts, order, stages, number, groups_per_batch):
                    mine, prompts = _divided(prompts, leaving.group_ids)
                    at = number * PORTIONS_IN_TURN + len(following)
                    following.append(asyncio.create_task(
                        _follow(fleet, mine, leaving, rollouts, order, out, stages, at, num_losses)))
                    del rollouts
                break
            except ActorLost:       # the rest once more
                stages.num_retried += 1
        await asyncio.gather(*following)
    finally:
        for task in following:
            task.cancel()       # after an error; a finished one takes no notice
    if prompts.num_rows:
        raise RuntimeError(f"rollouts must come of every prompt, got none of {prompts.num_rows}, first group "
                           f"{prompts['group_id'][0]}")


async def combine(fleet: Fleet, portions: Sequence[ScoredPortion], order: Order, stages: Stages) -> ScoredPortion:
    """One portion with the rewards that all parts make together, of portions that only a whole step can combine."""
    num_rows = sum(portion.num_rows for portion in portions)
    tables = [portion.tables[0] for portion in portions]
    tables += [table for portion in portions for table in portion.tables[1:]]
    group_ids = [group for portion in portions for group in portion.group_ids]
    with stages.busy("score"):
        combined = await fleet.functions.ask(num_rows, lambda actor: actor.combine.options(num_returns=3).remote(
            order.compares, len(portions), *tables), index=0 if order.reproducible else None)
        return await _scored(combined, group_ids, num_rows, [portion.metrics for portion in portions])


async def _rollouts(fleet: Fleet, prompts: pa.Table, order: Order, stages: Stages, number: int, groups_per_batch: int
                    ) -> AsyncIterator[tuple[Leaving, ray.ObjectRef]]:
    """What leaves an engine, with what is told of it. Raises ActorLost: what has not come yet is to be asked again."""
    num_rows = prompts.num_rows * order.group_size
    turn = fleet.rollouts.turn(num_rows, index=number if order.reproducible else None)
    async with order.room.taken(num_rows), turn as (actor, moved):
        with stages.busy("rollout"):
            stream = actor.generate.options(num_returns="streaming").remote(
                prompts, order.group_size, order.seed, groups_per_batch, order.is_greedy, order.reproducible)
            async for rollouts in stream:
                # Where the engine is lost in between, what comes last is the error, and it is raised here.
                leaving = await (await anext(stream, rollouts))
                moved()
                yield leaving, rollouts


def _divided(prompts: pa.Table, group_ids: Sequence[int]) -> tuple[pa.Table, pa.Table]:
    """The prompts of `group_ids`, and the others."""
    is_in = pc.is_in(prompts["group_id"], value_set=pa.array(group_ids, pa.int64()))
    return prompts.filter(is_in), prompts.filter(pc.invert(is_in))


async def _follow(fleet: Fleet, prompts: pa.Table, leaving: Leaving, rollouts: ray.ObjectRef, order: Order, out: Out,
                  stages: Stages, at: int, num_losses: int) -> None:
    """One batch from its rollouts on; from its prompts on where an object of it is lost."""
    held = [rollouts]       # the only reference here: `_judged` takes it, and drops it when it is read
    del rollouts
    try:
        out(await _judged(fleet, held, leaving, order, stages, at))
    except InputsLost as error:
        stages.num_retried += 1
        if num_losses + 1 == MAX_LOSSES:
            raise Unavailable(f"rows of group {leaving.group_ids[0]} must be there until they are read, got lost "
                              f"{MAX_LOSSES} times, last because {error}; see Ray's log files and `ray memory`"
                              ) from error
        await walk_groups(fleet, prompts, order, out, stages, at, num_losses=num_losses + 1)


async def _judged(fleet: Fleet, held: list[ray.ObjectRef], leaving: Leaving, order: Order, stages: Stages, at: int
                  ) -> ScoredPortion:
    """A batch as everyone who has a part in its reward sees it. held: the reference to its ROLLOUT rows, taken out."""
    index = at if order.reproducible else None
    rollouts, num_rows = held.pop(), leaving.num_rows
    valued = asyncio.ensure_future(_valued(fleet, rollouts, num_rows, index, stages))
    valued.add_done_callback(look_at)
    try:
        metrics: list[dict[str, Metric]] = []
        batch = rollouts
        if fleet.explainers.actors:
            with stages.busy("explain"):
                explained = await fleet.explainers.ask(num_rows, _explain(batch), index=index)
            metrics.append(explained.metrics)
            batch = explained.tables[0]
        if fleet.judges:
            del rollouts
        with stages.busy("score"):
            judged = await _all(judge.ask(num_rows, _score(batch), index=index) for judge in fleet.judges)
        answers = [*judged, *await valued]
    finally:
        valued.cancel()
    if fleet.plan.is_plain:
        with stages.busy("score"):
            return await _scored(judged[0], leaving.group_ids, num_rows, metrics)
    metrics += [answer.metrics for answer in answers]
    tables = [answer.tables[0] for answer in answers] if judged else [batch, *(one.tables[0] for one in answers)]
    del batch
    found = ScoredPortion(leaving.group_ids, tables, None, num_rows, leaving.num_bytes, merge(metrics))
    return await combine(fleet, [found], order, stages) if fleet.plan.is_by_group else found


async def _valued(fleet: Fleet, rollouts: ray.ObjectRef, num_rows: int, index: int | None, stages: Stages
                  ) -> list[Answer]:
    """What the reward functions say, which wait for no explanations."""
    if not fleet.plan.functions:
        return []
    with stages.busy("score"):
        return [await fleet.functions.ask(
            num_rows, lambda actor: actor.values.options(num_returns=2).remote(rollouts), index=index)]


def _explain(batch: ray.ObjectRef) -> Callable[[Any], list[ray.ObjectRef]]:
    return lambda actor: actor.explain.options(num_returns=2).remote(batch)


def _score(batch: ray.ObjectRef) -> Callable[[Any], list[ray.ObjectRef]]:
    return lambda actor: actor.score.options(num_returns=3).remote(batch)


async def _scored(answer: Answer, group_ids: list[int], num_rows: int, before: Sequence[dict[str, Metric]]
                  ) -> ScoredPortion:
    """The portion whose SCORED rows and small columns `answer` is of; metrics: with those of the stages `before`."""
    table, summary = answer.tables
    metrics = merge([*before, answer.metrics])
    # Told once, by whoever made the rows that are kept: what a judge made is gone when parts are combined.
    size = answer.metrics["scored_bytes"]
    metrics["scored_bytes"] = size
    return ScoredPortion(group_ids, [table], await here(summary), num_rows, int(size.value or 0), metrics)


async def here(reference: ray.ObjectRef) -> Any:
    """An object, in this process: a small one. Raises InputsLost where it is gone."""
    try:
        return await reference
    except Exception as error:
        if lost(error) is Lost.NOTHING:
            raise
        raise InputsLost(f"rows are lost: {error}") from error


async def _all(work: Any) -> list[Any]:
    """The results of coroutines that run side by side; after an error none of them goes on."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
