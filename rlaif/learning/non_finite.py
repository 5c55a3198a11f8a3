"""What is not a number, found and named before it reaches a weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa

from rlaif.config.checks import UserError

__all__ = ["name_of_row", "refuse_columns", "refused_step", "row_at_fault"]

_CURE = "start again with a lower learner.learning_rate, or look at those rows"


def refuse_columns(columns: Mapping[str, Sequence[Sequence[float]]], rows: pa.Table, update: int) -> None:
    """Raises UserError for the first entry of any column that is not finite: column, row, token and update."""
    for name, values in columns.items():
        for row, entries in enumerate(values):
            for token, value in enumerate(entries):
                if not math.isfinite(value):
                    where = f"{name_of_row(rows, row)}, token {token}"
                    raise UserError(f"{name} must be finite, got {value} at update {update} in {where}; the weights "
                                    f"are those of the update before: {_CURE}")


def name_of_row(rows: pa.Table, row: int) -> str:
    """How a user finds the row: by group and sample where it has them."""
    names = rows.schema.names
    if "group_id" not in names:
        return f"row {row}"
    return f"row {row} (group {rows['group_id'][row].as_py()}, sample {rows['sample'][row].as_py()})"


def row_at_fault(loss_of: Callable[[list[int]], float], batch: Sequence[int]) -> list[int]:
    """Of the rows of a micro-batch whose loss is not finite the first whose own loss is not; all where none is."""
    for row in batch:
        if not math.isfinite(loss_of([row])):
            return [row]
    return list(batch)


def refused_step(what: str, value: float, update: int, rows: pa.Table, batch: Sequence[int]) -> UserError:
    """The error of a step that was not taken. what: loss, or the gradient of a weight by name. batch: rows at fault."""
    first, last = (name_of_row(rows, row) for row in (batch[0], batch[-1]))
    where = first if len(batch) == 1 else f"{len(batch)} rows, {first} to {last}"
    return UserError(f"{what} must be finite, got {value} at update {update} in {where}; no weight was changed: "
                     f"{_CURE}")
