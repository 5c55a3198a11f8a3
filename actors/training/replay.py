"""Stored rollouts in the place of engines and judges: the same steps for the learners, from files."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import pyarrow as pa
import ray

from actors.training.feeder import Chosen
from actors.training.stages import Stages
from rlaif.config.checks import UserError
from rlaif.config.train import TrainConfig
from rlaif.pipeline.ledger import Ledger
from rlaif.pipeline.portions import ScoredPortion
from rlaif.pipeline.staleness import staleness_figures
from rlaif.rewards.scored_batch import small_columns
from rlaif.running.rollout_store import StoredRollouts

__all__ = ["Replay", "ReplayStream"]


class ReplayStream:
    """Stored groups in their order, as PromptStream has prompts; the cursor counts groups."""

    def __init__(self, stored: StoredRollouts) -> None:
        self.stored, self.cursor = stored, 0

    def next(self, num_groups: int) -> list[tuple[int, int]]:
        """The next (step, group_id) pairs; moves the cursor."""
        found = self.stored.groups[self.cursor : self.cursor + num_groups]
        assert len(found) == num_groups, "there are as many groups as the steps of the run need"
        self.cursor += num_groups
        return found

    def at(self, group_ids: Sequence[int]) -> list[tuple[int, int]]:
        """The pairs of these groups, whether the cursor is past them or not."""
        wanted = set(group_ids)
        return [pair for pair in self.stored.groups if pair[1] in wanted]

    def figures(self) -> dict[str, int]:
        return {}

    def state(self) -> dict[str, Any]:
        return {"cursor": self.cursor, "content": self.stored.digest}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Raises UserError where `state` is of other rollouts."""
        if state.get("content") != self.stored.digest:
            raise UserError("stored.read must be the rollouts of the run that is resumed "
                            f"({state.get('content')}), got {str(self.stored.folder)!r} with others "
                            f"({self.stored.digest}); put them back, or start anew with another output_dir")
        self.cursor = int(state["cursor"])


class Replay:
    """As actors.training.feeder.Feeder, from files. The next step is read while the learners work on this one.

    Staleness is told and not bounded: rows are as old as they are.
    """

    def __init__(self, fleet: Any, stream: ReplayStream, config: TrainConfig, stages: Stages,
                 ledger: Ledger | None = None, buffered: Sequence[ScoredPortion] = ()) -> None:
        """ledger: of a run that goes on. What it has in flight is read anew; nothing is ever buffered."""
        assert not buffered
        self._stream, self._config, self._stages = stream, config, stages
        self.ledger, self.version = ledger or Ledger(), 0
        self._reading: list[asyncio.Task[pa.Table]] = []
        left, num_groups = stream.at(self.ledger.in_flight), config.rollout.groups_per_step
        for start in range(0, len(left), num_groups):
            self._read(left[start : start + num_groups])

    buffered: tuple[ScoredPortion, ...] = ()

    def grow(self, version: int) -> None:
        """The learners hold `version`."""
        self.version = version
        self._read_on()

    async def take(self) -> Chosen:
        """The next step's groups, as they are stored. Raises UserError where a file is not what it was."""
        with self._stages.busy("rollout"):
            rows = await self._reading[0]
        self._reading.pop(0)
        self._read_on()
        summary = small_columns(rows)
        group_ids = summary["group_id"].unique().to_pylist()
        self.ledger.score(group_ids)
        figures = staleness_figures(self.version, summary) | {
            "groups_in_flight": 0, "groups_buffered": 0, "groups_discarded": 0, "groups_skipped": 0}
        return Chosen([ray.put(rows)], summary, group_ids, [], 0, 1, {}, figures)

    def trained(self, chosen: Chosen) -> None:
        self.ledger.train(chosen.kept)

    def again(self, chosen: Chosen) -> None:
        """What was taken could not be read by the learners: it is read anew, and is next as it was before."""
        self._stages.num_retried += 1
        self.ledger.redo(chosen.kept)
        self._read(self._stream.at(chosen.kept), first=True)

    async def close(self) -> None:
        for task in self._reading:
            task.cancel()
        await asyncio.gather(*self._reading, return_exceptions=True)

    def _read_on(self) -> None:
        """Begins to read the next step, where there is one and it is not being read."""
        num_groups = self._config.rollout.groups_per_step
        num_drawn = self.ledger.num_trained + self.ledger.num_waiting
        if not self._reading and num_drawn < self._config.steps * num_groups:
            pairs = self._stream.next(num_groups)
            self.ledger.draw([group for _, group in pairs])
            self._read(pairs)

    def _read(self, pairs: Sequence[tuple[int, int]], first: bool = False) -> None:
        task = asyncio.ensure_future(asyncio.to_thread(self._rows, pairs))
        self._reading.insert(0 if first else len(self._reading), task)

    def _rows(self, pairs: Sequence[tuple[int, int]]) -> pa.Table:
        steps = groupby(pairs, key=lambda pair: pair[0])
        return pa.concat_tables([self._stream.stored.rows(step, [group for _, group in found])
                                 for step, found in steps]).combine_chunks()
