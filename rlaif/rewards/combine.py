"""From what the parts say to one reward a row.

    term_i = gate_i(transform_i(value_i))        reward = sum over i of weight_i * term_i

A part that did not judge a row is left out there, and the weights of the others make up for it:

    reward = W / W_J * sum over i in J of weight_i * term_i        W = sum of |weight_i|, W_J: of those that judged
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlaif.config.checks import UserError
from rlaif.config.reward_parts import RewardPartConfig
from rlaif.metrics import Metric, Sum
from rlaif.rewards.plan import RewardPlan
from rlaif.rewards.transforms import gated, transformed
from rlaif.statistics import rows_by_key

__all__ = ["LARGEST", "Combined", "combine", "row_name"]

LARGEST = 3.4e38        # what the float32 of a batch holds


@dataclass(frozen=True)
class Combined:
    """rewards: `[N]`, finite. terms: by part that is added, transformed and gated, None where it did not judge."""

    rewards: list[float]
    terms: dict[str, list[float | None]]
    metrics: dict[str, Metric]


def combine(values: Mapping[str, Sequence[float | None]], group_ids: Sequence[int], samples: Sequence[int],
            plan: RewardPlan) -> Combined:
    """The rewards of N rows, whole groups, from what each part of `plan` said of them, None for not judged.

    A row that no part judged takes the mean reward of its group's other rows (0 where there are none), so that it
    neither wins nor loses: only as many such rows pass as the parts may skip. Raises UserError, naming row and part,
    for more of them, for a value that is not finite, and for a term or a reward that a float32 does not hold.
    """
    groups = [np.asarray(rows) for rows in rows_by_key(list(group_ids), len(group_ids)).values()]
    raw = {str(part.name): _column(values[str(part.name)], str(part.name), group_ids, samples) for part in plan.parts}
    terms = {str(part.name): transformed(part, raw[str(part.name)], groups) for part in plan.parts}
    found = {str(part.name): _gated(part, raw, terms) for part in plan.parts}
    added = {name: found[name] for name in plan.weights}
    rewards, judged = _weighted_sum(added, plan.weights, len(group_ids))
    _refuse_unjudged(judged, sum(part.max_skipped for part in plan.parts), group_ids, samples)
    for rows in groups:
        known = rewards[rows][judged[rows]]
        rewards[rows[~judged[rows]]] = math.fsum(known) / len(known) if len(known) else 0.0
    for name, column in [("reward", rewards), *((f"term of reward part {name}", added[name]) for name in added)]:
        for row in np.flatnonzero(np.abs(column) > LARGEST):
            raise UserError(f"{name} must be at most {LARGEST:g}, got {column[row]:g} in "
                            f"{row_name(row, group_ids, samples)}; lower the weights or clip the parts")
    metrics = _metrics(plan, raw, terms, found) | {"rows_unjudged": Sum(int((~judged).sum()))}
    return Combined(rewards.tolist(), {name: _listed(column) for name, column in added.items()}, metrics)


def row_name(row: int, group_ids: Sequence[int], samples: Sequence[int]) -> str:
    """How messages call a row of a batch."""
    return f"row {row} (group_id {group_ids[row]}, sample {samples[row]})"


def _column(values: Sequence[float | None], name: str, group_ids: Sequence[int], samples: Sequence[int]) -> NDArray:
    """`values` `[N]` as float64, NaN for None."""
    for row, value in enumerate(values):
        if value is not None and not math.isfinite(value):
            raise UserError(f"values of reward part {name} must be finite, got {value} in "
                            f"{row_name(row, group_ids, samples)}; its model or function is at fault")
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def _gated(part: RewardPartConfig, raw: Mapping[str, NDArray], terms: Mapping[str, NDArray]) -> NDArray:
    own = terms[str(part.name)]
    if part.gate == "none":
        return own
    return gated(part.gate, own, np.stack([raw[name] for name in part.gated_by]),
                 np.stack([terms[name] for name in part.gated_by]))


def _weighted_sum(terms: Mapping[str, NDArray], weights: Mapping[str, float], num_rows: int
                  ) -> tuple[NDArray, NDArray]:
    """The weighted sums `[N]`, 0 where no part judged, and where one did."""
    total, there, missing = np.zeros(num_rows), np.zeros(num_rows), np.zeros(num_rows, dtype=bool)
    for name, column in terms.items():
        judged = ~np.isnan(column)
        total += np.where(judged, weights[name] * column, 0.0)
        there += np.where(judged, abs(weights[name]), 0.0)
        missing |= ~judged
    judged = there > 0
    makes_up = sum(map(abs, weights.values())) / np.where(judged, there, 1.0)
    return np.where(missing, total * makes_up, total), judged


def _refuse_unjudged(judged: NDArray, allowed: int, group_ids: Sequence[int], samples: Sequence[int]) -> None:
    rows = np.flatnonzero(~judged)
    if len(rows) > allowed:
        raise UserError(f"rewards must judge every row by one part at least, got none in {len(rows)} of {len(judged)} "
                        f"rows, first in {row_name(int(rows[0]), group_ids, samples)}; add a part that always judges, "
                        "or set max_skipped of a part")


def _metrics(plan: RewardPlan, raw: Mapping[str, NDArray], terms: Mapping[str, NDArray], found: Mapping[str, NDArray]
             ) -> dict[str, Metric]:
    """Of each part in how many rows it did not judge; of each gate in how many rows it changed the term."""
    metrics: dict[str, Metric] = {}
    for part in plan.parts:
        name = str(part.name)
        metrics[f"absent_{name}"] = Sum(int(np.isnan(raw[name]).sum()))
        if part.gate != "none":
            metrics[f"gated_{name}"] = Sum(int(((found[name] != terms[name]) & ~np.isnan(terms[name])).sum()))
    return metrics


def _listed(column: NDArray) -> list[float | None]:
    return [None if math.isnan(value) else value for value in column.tolist()]
