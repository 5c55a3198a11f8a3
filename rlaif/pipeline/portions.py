"""Portions: consecutive groups of the prompt stream that are drawn, rolled out and scored together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rlaif.metrics import Metric

__all__ = ["PORTIONS_IN_TURN", "PORTIONS_PER_STEP", "ScoredPortion", "aligned", "portion_size", "rows_of", "shares"]

PORTIONS_PER_STEP = 4       # a rollout engine's share of a step leaves it in about so many portions, ...
PORTIONS_IN_TURN = 2        # ... or so many where one must be explained before the next: few large ones take less time


@dataclass
class ScoredPortion:
    """Groups whose rows are scored and wait for the learners.

    tables: references to the rows. The first is a SCORED batch; where only a whole step can be combined to rewards
    (summary is None), it holds the rows as the first judge scored them or as they were rolled out, and the others what
    further judges and the reward functions said. summary: the small columns. metrics: what was counted on the way, and
    not yet told. num_bytes: of the tables, in the object store.
    """

    group_ids: list[int]
    tables: list[Any]
    summary: pa.Table | None
    num_rows: int
    num_bytes: int = 0
    metrics: dict[str, Metric] = field(default_factory=dict)

    @property
    def is_combined(self) -> bool:
        return self.summary is not None


def portion_size(groups_per_step: int, num_engines: int, portion_groups: int | None = None, *,
                 in_turn: bool = False) -> int:
    """Groups of a portion: `portion_groups` where given, else an engine's share of a step over PORTIONS_PER_STEP, or
    over PORTIONS_IN_TURN."""
    num_portions = PORTIONS_IN_TURN if in_turn else PORTIONS_PER_STEP
    return portion_groups or max(1, groups_per_step // (num_engines * num_portions))


def shares(group_ids: Sequence[int], num_engines: int) -> list[list[int]]:
    """`group_ids` shared out evenly over the engines, in order; fewer shares where there are not enough groups."""
    size = max(1, -(-len(group_ids) // num_engines))
    return [list(group_ids[start : start + size]) for start in range(0, len(group_ids), size)]


def aligned(group_ids: Sequence[int], size: int, groups_per_step: int) -> list[list[int]]:
    """`group_ids` in portions of at most `size` groups, in order, none of which goes over the end of a step where
    group_ids begin with one."""
    steps = [group_ids[start : start + groups_per_step] for start in range(0, len(group_ids), groups_per_step)]
    return [list(step[start : start + size]) for step in steps for start in range(0, len(step), size)]


def rows_of(summary: pa.Table, group_ids: Sequence[int]) -> pa.Table:
    """The rows of `summary` that belong to `group_ids`."""
    return summary.filter(pc.is_in(summary["group_id"], value_set=pa.array(group_ids, pa.int64())))
