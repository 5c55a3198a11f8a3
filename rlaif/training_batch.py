"""From scored rollouts to rows to train on: advantages joined to their rows, in an order that does not depend on
which rollout finished first."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import torch

from rlaif.advantages import ADVANTAGES
from rlaif.batch import SCORED, TRAINING, check, with_columns

ORDER = [("group_id", "ascending"), ("sample", "ascending")]


def advantages(summary: pa.Table, estimator: str) -> pa.Table:
    """group_id, sample and advantages of every row of `summary` (which has group_id, sample, reward), in order."""
    ordered = summary.sort_by(ORDER)
    rewards = torch.tensor(ordered["reward"].to_pylist(), dtype=torch.float64)
    groups = torch.tensor(ordered["group_id"].to_pylist(), dtype=torch.int64)
    _, index = torch.unique(groups, return_inverse=True)
    values = ADVANTAGES[estimator](rewards, index)
    return pa.table({"group_id": ordered["group_id"], "sample": ordered["sample"],
                     "advantages": pa.array(values.tolist(), pa.float32())})


def training_rows(scored: Sequence[pa.Table], advantages: pa.Table) -> pa.Table:
    """The TRAINING rows named by `advantages`, ordered by group and sample.

    Raises ValueError when a row has no advantage or an advantage has no row: nothing is dropped by a join.
    """
    rows = check(pa.concat_tables(scored), SCORED).sort_by(ORDER)
    ordered = advantages.sort_by(ORDER)
    for name in ("group_id", "sample"):
        if rows[name].to_pylist() != ordered[name].to_pylist():
            raise ValueError(f"advantages must cover the scored rows one to one, {name} differs: "
                             f"{rows.num_rows} rows, {ordered.num_rows} advantages")
    sizes = rows["completion_ids"].combine_chunks().value_lengths().to_pylist()
    return with_columns(rows.combine_chunks(), TRAINING, {
        "advantages": ordered["advantages"].to_pylist(), "loss_mask": [[True] * size for size in sizes]})
