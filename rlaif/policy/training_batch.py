"""From scored rollouts to rows to train on: those of the groups that were chosen, in an order that does not depend on
which rollout finished first."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from rlaif.batch import SCORED, check

ORDER = [("group_id", "ascending"), ("sample", "ascending")]


def chosen_rows(summary: pa.Table, groups: Collection[int]) -> pa.Table:
    """group_id and sample of the rows of `summary` that are in `groups`, in order: what the driver tells the learners.

    Raises ValueError for a group that has no row.
    """
    empty = sorted(set(groups) - set(summary["group_id"].unique().to_pylist()))
    if empty:
        raise ValueError(f"chosen groups must have rows, got none of group {empty[0]}"
                         + (f" and {len(empty) - 1} more" if len(empty) > 1 else ""))
    keys = summary.select(["group_id", "sample"])
    is_chosen = pc.is_in(keys["group_id"], value_set=pa.array(groups, pa.int64()))
    return keys.filter(is_chosen).sort_by(ORDER).combine_chunks()


def training_rows(scored: Sequence[pa.Table], chosen: pa.Table) -> pa.Table:
    """The SCORED rows that `chosen` (group_id, sample) names, ordered by group and sample; the others are left out.

    Raises ValueError where a row that was chosen is missing, or is there twice.
    """
    rows = check(pa.concat_tables(scored), SCORED)
    wanted = dict.fromkeys(_keys(chosen), 0)
    found = []
    for number, key in enumerate(_keys(rows)):
        if key in wanted:
            wanted[key] += 1
            found.append(number)
    for key, count in wanted.items():
        if count != 1:
            raise ValueError(f"chosen rows must be scored once, got {count} of group {key[0]} sample {key[1]}; "
                             f"{rows.num_rows} rows were scored, {chosen.num_rows} chosen")
    if len(wanted) != chosen.num_rows:
        raise ValueError(f"chosen rows must be different, got {chosen.num_rows} of which {len(wanted)} are")
    return rows.take(pa.array(found, pa.int64())).sort_by(ORDER).combine_chunks()


def _keys(rows: pa.Table) -> list[tuple[int, int]]:
    return list(zip(rows["group_id"].to_pylist(), rows["sample"].to_pylist(), strict=True))
