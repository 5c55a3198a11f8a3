"""The feeder: draws prompts while the staleness bound allows, walks them, hands a step what it is to train on."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from actors.faults.pool import InputsLost
from actors.training.buffer import Buffer
from actors.training.fleet import Fleet
from actors.training.room import Room
from actors.training.stages import Stages
from actors.training.walk import Order, combine, walk_groups
from rlaif.config.checks import Unavailable
from rlaif.config.train import TrainConfig
from rlaif.data.prompts import PromptStream
from rlaif.metrics import Metric, merge
from rlaif.pipeline.budgets import Budget, BudgetSpent
from rlaif.pipeline.ledger import Ledger
from rlaif.pipeline.portions import ScoredPortion, aligned, portion_size, rows_of, shares
from rlaif.pipeline.staleness import affordable, capacity, refuse_stale, staleness_figures
from rlaif.policy.dynamic_sampling import choose_groups


@dataclass(frozen=True)
class Chosen:
    """What a step has rolled out, and the groups of it to train on. scored: references to the SCORED batches that hold
    them. summary: the small columns of all its rows, trained on or not."""

    scored: list[Any]
    summary: pa.Table
    kept: list[int]
    replaced: list[int]             # groups of equal rewards that others have taken the place of
    num_equal: int                  # groups of equal rewards among `kept`
    num_rounds: int                 # 1 where nothing had to be replaced
    metrics: dict[str, Metric]
    figures: dict[str, float]       # of the pipeline


class Feeder:
    """Rolls out and scores what the learners will need, as far ahead as pipeline.max_staleness allows.

    Groups are taken by the learners in the order in which they were drawn, which is that of their group_ids. `version`
    is that of the learners; `grow` tells of a new one. Synchronous, an engine has its share of a step in one call;
    ahead of the learners it has portion after portion.
    """

    def __init__(self, fleet: Fleet, stream: PromptStream, config: TrainConfig, stages: Stages,
                 ledger: Ledger | None = None, buffered: Sequence[ScoredPortion] = ()) -> None:
        """ledger, buffered: of a run that goes on, as they were."""
        self._fleet, self._stream, self._config, self._stages = fleet, stream, config, stages
        self.ledger, self.version = ledger or Ledger(), 0
        self._buffer, self._tasks = Buffer(), set[asyncio.Task]()
        self._num_engines = len(fleet.rollouts.actors)
        self._order = Order(config.rollout.group_size, config.seed, reproducible=config.pipeline.is_reproducible,
                            room=Room(room_rows(config, self._num_engines)))
        self._skips = Budget(config.faults.max_skipped_groups, "faults.max_skipped_groups",
                             "repair the data, or raise it to do without such groups",
                             before=self.ledger.totals["skipped"])
        self._size = portion_size(config.rollout.groups_per_step, self._num_engines, config.pipeline.portion_groups,
                                  in_turn=config.pipeline.is_reproducible)
        # Of the portions so far: what is taken up tells how much a group takes before the first one is scored.
        self._num_bytes = sum(portion.num_bytes for portion in buffered)
        self._num_scored = sum(len(portion.group_ids) for portion in buffered)
        self._buffer.expect(self.ledger.scored)
        for portion in buffered:
            self._buffer.put(portion)
        assert self._buffer.group_ids == self.ledger.scored, "what the ledger has as scored must be there"
        self._given_back = self.ledger.in_flight

    @property
    def buffered(self) -> list[ScoredPortion]:
        """What is scored and was not taken, in order."""
        return self._buffer.portions

    def grow(self, version: int) -> None:
        """The engines hold `version` of the weights: draws what may be drawn now, after what was given back."""
        self.version = version
        if self._given_back:
            self._buffer.expect(self._given_back)
            self._set_off(self._stream.at(self._given_back))
            self._given_back = []
        self._draw()

    async def take(self) -> Chosen:
        """The groups of the next step, once they are scored. Until `trained` is told of them they wait in the ledger.

        With algorithm.dynamic_sampling = resample, groups of equal rewards are discarded, and the next ones take their
        place: in up to max_resampling rounds, then what comes is taken as it is.
        """
        num_waiting, num_buffered = self.ledger.num_waiting, self._buffer.num_groups
        algorithm, missing = self._config.algorithm, self._config.rollout.groups_per_step
        max_rounds = algorithm.max_resampling if algorithm.dynamic_sampling == "resample" else 0
        kept, replaced, num_equal = list[int](), list[int](), 0
        portions, summaries = list[ScoredPortion](), list[pa.Table]()
        for num_rounds in range(max_rounds + 1):
            group_ids, found = await self._round(missing)
            taken = set(group_ids)
            summary = pa.concat_tables([_of(portion, taken) for portion in found])
            choice = choose_groups(summary["group_id"].to_pylist(), told_apart_by(summary, algorithm.parts), missing,
                                   is_last=num_rounds == max_rounds)
            self.ledger.discard(choice.replaced)
            self._draw()
            kept, replaced, num_equal = kept + choice.kept, replaced + choice.replaced, num_equal + choice.num_equal
            portions, summaries, missing = portions + found, [*summaries, summary], choice.num_missing
            if missing == 0:
                break
        portions = list({id(portion): portion for portion in portions}.values())
        summary = pa.concat_tables(summaries).combine_chunks()
        rows = rows_of(summary, kept) if replaced else summary
        # Where nothing is learned, a step is no version.
        version = 0 if self._config.mode == "rollout" else self.version
        refuse_stale(version, rows["policy_version"].to_pylist(), self._config.pipeline.max_staleness)
        figures = staleness_figures(version, rows) | {
            "groups_in_flight": num_waiting - num_buffered, "groups_buffered": num_buffered,
            "groups_discarded": len(replaced), "groups_skipped": self.ledger.totals["skipped"]}
        return Chosen([portion.tables[0] for portion in portions], summary, kept, replaced, num_equal, num_rounds + 1,
                      merge(_told(portion) for portion in portions), figures)

    def trained(self, chosen: Chosen) -> None:
        """The learners have trained on what was taken."""
        self._observe(chosen.summary)
        self.ledger.train(chosen.kept)

    def again(self, chosen: Chosen) -> None:
        """What was taken could not be read any more: it is rolled out anew, and is next as it was before; and with it
        the groups of its portions that are still here: else a step could have two versions of one group."""
        self._observe(rows_of(chosen.summary, chosen.replaced))
        self._stages.num_retried += 1
        there = set(self._buffer.group_ids)
        beside = {group for portion in self._buffer.portions if not set(chosen.kept).isdisjoint(portion.group_ids)
                  for group in portion.group_ids} & there
        self._buffer.expect(chosen.kept)
        self._buffer.lose(sorted(beside))
        gone = sorted({*chosen.kept, *beside})
        self.ledger.redo(gone)
        self._set_off(self._stream.at(gone))

    def _observe(self, summary: pa.Table) -> None:
        """Tells the stream, once, what groups that are settled were rewarded with."""
        self._stream.observe(summary["group_id"].to_pylist(), summary["reward"].to_pylist())

    async def close(self) -> None:
        """Ends what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _round(self, num_groups: int) -> tuple[list[int], list[ScoredPortion]]:
        """The next groups and the portions that hold them, combined to rewards where only a whole step can be."""
        while True:
            group_ids, found = await self._buffer.take(num_groups)
            raw = [portion for portion in found if not portion.is_combined]
            if not raw:
                return group_ids, found
            try:
                whole = await combine(self._fleet, raw, self._order, self._stages)
            except InputsLost:
                self._buffer.give_back(group_ids, found)
                self._redo(raw)
                continue
            self._buffer.put(whole)         # for those of its groups that a later step takes
            return group_ids, [portion for portion in found if portion.is_combined] + [whole]

    def _redo(self, portions: Sequence[ScoredPortion]) -> None:
        """Walks portions anew whose rows are lost."""
        gone = sorted(group for portion in portions for group in portion.group_ids)
        self._stages.num_retried += len(portions)
        self._buffer.lose(gone)
        self.ledger.redo(gone)
        self._set_off(self._stream.at(gone))

    def _draw(self) -> None:
        """Draws as many groups as there may be, and sets them off."""
        config, num_waiting = self._config, self.ledger.num_waiting
        groups_per_step = config.rollout.groups_per_step
        num_groups = capacity(
            version=self.version, max_staleness=config.pipeline.max_staleness, groups_per_step=groups_per_step,
            num_trained=self.ledger.num_trained, num_waiting=num_waiting, num_steps=config.steps)
        num_groups = affordable(
            num_groups, num_waiting=num_waiting, num_needed=groups_per_step, held_bytes=self._buffer.num_bytes,
            bytes_per_group=self._num_bytes / max(1, self._num_scored), num_in_flight=self.ledger.num_in_flight,
            max_bytes=config.pipeline.max_buffered_mb << 20)
        if num_groups:
            prompts = self._stream.next(num_groups)
            group_ids = prompts["group_id"].to_pylist()
            self.ledger.draw(group_ids)
            self._buffer.expect(group_ids)
            self._set_off(prompts)

    def _set_off(self, prompts: pa.Table) -> None:
        """Walks `prompts`, whose groups are in flight: in one call an engine, or in a call a portion."""
        rows = range(prompts.num_rows)
        if self._config.pipeline.max_staleness == 0:
            parts = shares(rows, self._num_engines)
        else:
            parts = aligned(rows, self._size, self._config.rollout.groups_per_step)
        for number, part in enumerate(parts):
            self._start(self._walk(prompts.take(part).combine_chunks(), number))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _walk(self, prompts: pa.Table, number: int) -> None:
        try:
            await walk_groups(self._fleet, prompts, self._order, self._arrived, self._stages, number, self._size)
        except Exception as error:
            if self._config.faults.max_skipped_groups and is_of_data(error):
                self._without_the_bad(prompts, error)
            else:
                self._buffer.fail(error)

    def _without_the_bad(self, prompts: pa.Table, error: Exception) -> None:
        """After an actor has refused rows of `prompts`: each group that is missing by itself; it alone is skipped."""
        in_flight = set(self.ledger.in_flight)
        left = [group for group in prompts["group_id"].to_pylist() if group in in_flight]
        if len(left) > 1:
            for group in left:
                self._start(self._walk(self._stream.at([group]), 0))
            return
        try:
            self._skips.spend(f"group {left[0]}", str(error))
        except BudgetSpent as spent:
            self._buffer.fail(spent)
            return
        self.ledger.skip(left)
        self._buffer.forget(left)
        self._draw()

    def _arrived(self, portion: ScoredPortion) -> None:
        self.ledger.score(portion.group_ids)
        self._num_bytes += portion.num_bytes
        self._num_scored += len(portion.group_ids)
        self._buffer.put(portion)


def room_rows(config: TrainConfig, num_engines: int) -> int | None:
    """Rows that may be in the engines at once: those of a step, or twice what they can decode, whichever is more: the
    next ones are there when some end. None, no limit, where each engine has its share of a step in one call."""
    if config.pipeline.max_staleness == 0:
        return None
    rollout = config.rollout
    return max(rollout.groups_per_step * rollout.group_size, 2 * num_engines * rollout.engine.max_num_seqs)


def is_of_data(error: Exception) -> bool:
    """Whether an actor has refused what it was given: another actor would too."""
    return isinstance(error, ValueError) and not isinstance(error, (BudgetSpent, Unavailable))


def told_apart_by(summary: pa.Table, parts: str) -> list[Any]:
    """What must differ inside a group for it to teach: the reward, or each of its parts where they are normalised by
    themselves."""
    if parts == "separate":
        return [tuple(sorted(terms)) for terms in summary["reward_terms"].to_pylist()]
    return summary["reward"].to_pylist()


def _of(portion: ScoredPortion, group_ids: set[int]) -> pa.Table:
    """The small columns of those of the portion's groups that are taken now."""
    assert portion.summary is not None
    if group_ids.issuperset(portion.group_ids):
        return portion.summary
    return rows_of(portion.summary, sorted(group_ids))


def _told(portion: ScoredPortion) -> dict[str, Metric]:
    """What was counted on the portion's way, once."""
    metrics, portion.metrics = portion.metrics, {}
    return metrics
