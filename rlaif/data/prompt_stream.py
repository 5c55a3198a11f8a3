"""The prompt stream: rows in an order drawn anew each epoch from the seed, with a cursor that says where it stands."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from rlaif.batch import PROMPT, from_rows
from rlaif.config.checks import UserError
from rlaif.config.prompts import CurriculumConfig
from rlaif.data.curriculum import Curriculum
from rlaif.data.mixing import epoch_of, epoch_order, epoch_start

_TAKE = (1 << 30) + 1       # what draws whether a prompt is taken; beside those of rlaif.data.mixing


class PromptStream:
    """Endless PROMPT batches over `rows`, in an order that follows from the seed alone: every row once an epoch, or as
    often as `weights` say; less those that a curriculum skips.

    group_id is the place in the stream: a pure function of it gives the prompt, and the cursor is one number. A
    curriculum leaves gaps in the group_ids.

    sizes: rows of each set, which follow one another in `rows`; None: all are one set. weights: times a row of each set
    is drawn in an epoch; None: once. Both as in rlaif.data.prompts.PromptSet. curriculum: None takes every prompt.
    """

    def __init__(self, rows: Sequence[dict], seed: int, cursor: int = 0, *, sizes: Sequence[int] | None = None,
                 weights: Sequence[float] | None = None, curriculum: CurriculumConfig | None = None) -> None:
        self._rows, self._seed, self.cursor = rows, seed, cursor
        self._sizes = list(sizes or [len(rows)])
        self._weights = list(weights or [1.0] * len(self._sizes))
        assert sum(self._sizes) == len(rows) > 0 and len(self._weights) == len(self._sizes)
        self._curriculum = Curriculum(curriculum or CurriculumConfig())
        self._num_skipped = 0
        self._epoch, self._epoch_start, self._order = -1, 0, np.arange(0)       # of the epoch drawn last

    def next(self, num_prompts: int) -> pa.Table:
        """The next `num_prompts` prompts; moves the cursor.

        After as many skipped prompts in a row as there are, one is taken whatever its difficulty.
        """
        places: list[int] = []
        num_in_a_row = 0
        while len(places) < num_prompts:
            if self._is_taken(self.cursor) or num_in_a_row >= len(self._rows):
                places.append(self.cursor)
                num_in_a_row = 0
            else:
                num_in_a_row += 1
                self._num_skipped += 1
            self.cursor += 1
        return self.at(places)

    def at(self, group_ids: Sequence[int]) -> pa.Table:
        """The prompts of these groups, in that order, whether the cursor is past them or not: what has been drawn but
        not been trained on is rolled out anew after a resume."""
        return from_rows([self._row(place) for place in group_ids], PROMPT)

    def observe(self, group_ids: Sequence[int], rewards: Sequence[float]) -> None:
        """Tells the curriculum what the policy earned: one entry a rollout, in any order, whole groups. Groups that are
        not trained on tell as much as those that are."""
        if not self._curriculum.is_on:
            return
        groups: dict[int, list[float]] = {}
        for place, reward in zip(group_ids, rewards, strict=True):
            groups.setdefault(place, []).append(reward)
        for place, found in sorted(groups.items()):
            # fsum: the same whatever the order of the rollouts.
            self._curriculum.observe(self._prompt_id(place), math.fsum(found) / len(found))

    def figures(self) -> dict[str, int]:
        """Numbers for the step's metrics: the epoch, and with a curriculum how many prompts are skipped and why."""
        found = {"epoch": epoch_of(self._sizes, self._weights, self.cursor)}
        if self._curriculum.is_on:
            found |= {"prompts_skipped": self._num_skipped} | self._curriculum.figures()
        return found

    def state(self) -> dict[str, Any]:
        """Where the stream stands, as JSON can write it without loss. A stream over the same rows, sets and seed goes
        on from there as if it had never stopped."""
        return {"cursor": self.cursor, "seed": self._seed, "content": self._content, "num_skipped": self._num_skipped,
                "curriculum": self._curriculum.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes to where `state` was taken. Raises UserError if that was over other prompts or with another seed."""
        if state["seed"] != self._seed:
            raise UserError(f"seed must be {state['seed']} as in the run that is resumed, got {self._seed}")
        if state["content"] != self._content:
            raise UserError(f"prompts must be those of the run that is resumed ({state['content']}), got others "
                            f"({self._content}); put the data back, or start anew with another output_dir")
        self.cursor, self._num_skipped = int(state["cursor"]), int(state["num_skipped"])
        self._curriculum.restore(state["curriculum"])

    def _is_taken(self, place: int) -> bool:
        likely = self._curriculum.probability(self._prompt_id(place)) if self._curriculum.is_on else 1.0
        return likely == 1 or np.random.default_rng([self._seed, place, _TAKE]).random() < likely

    def _row(self, place: int) -> dict[str, Any]:
        prompt_id = self._prompt_id(place)      # of the epoch that is drawn now
        return {"prompt_id": prompt_id, "epoch": self._epoch, "group_id": place, **self._rows[prompt_id]}

    def _prompt_id(self, place: int) -> int:
        if not self._epoch_start <= place < self._epoch_start + len(self._order):
            self._epoch = epoch_of(self._sizes, self._weights, place)
            self._epoch_start = epoch_start(self._sizes, self._weights, self._epoch)
            self._order = epoch_order(self._sizes, self._weights, self._seed, self._epoch)
        return int(self._order[place - self._epoch_start])

    @cached_property
    def _content(self) -> str:
        """16 hex digits that follow everything the stream is drawn from but the seed and the files' names."""
        digest = hashlib.sha256(json.dumps([self._sizes, self._weights]).encode())
        for row in self._rows:
            kept = [row[name] for name in ("prompt", "prompt_ids", "reference", "sample_weight")]
            digest.update(json.dumps(kept).encode())
        return digest.hexdigest()[:16]


def in_order(rows: Sequence[dict]) -> pa.Table:
    """All `rows` as one PROMPT batch in file order, for evaluation."""
    return from_rows([{"prompt_id": number, "epoch": 0, "group_id": number, **row}
                      for number, row in enumerate(rows)], PROMPT)
