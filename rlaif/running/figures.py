"""What the small columns of scored rollouts say in numbers: means, counts, how much their groups have to teach."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import torch

from rlaif.metrics import values
from rlaif.policy.advantages import group_statistics

MAPS = {"reward_parts": "part_", "judge_verdicts": ""}      # column -> what stands before a name of it


def means(summary: pa.Table) -> dict[str, float]:
    """Means over the rows of `summary`: reward, each of its parts as part_<name>, each verdict of a judge that only
    watches, completion_tokens; part and verdict over the rows that have one."""
    found = {"reward": pc.mean(summary["reward"]).as_py()}
    for column, prefix in MAPS.items():
        found |= {prefix + name: value for name, value in _means_by_name(summary[column]).items()}
    return found | {"completion_tokens": pc.mean(summary["num_completion_tokens"]).as_py()}


def counts(summary: pa.Table) -> dict[str, int]:
    """num_rollouts, num_completion_tokens, and num_cut: completions that ended by their length."""
    is_cut = pc.equal(summary["finish_reason"], "length")
    return {"num_rollouts": summary.num_rows, "num_cut": pc.sum(is_cut).as_py() or 0,
            "num_completion_tokens": pc.sum(summary["num_completion_tokens"]).as_py() or 0}


def group_figures(summary: pa.Table) -> dict[str, float]:
    """rlaif.policy.advantages.group_statistics of the rows' rewards, as numbers."""
    # In order, so that sums do not depend on which rollout finished first.
    ordered = summary.select(["group_id", "sample", "reward"]).sort_by([("group_id", "ascending"),
                                                                        ("sample", "ascending")])
    rewards = torch.from_numpy(ordered["reward"].to_numpy().astype("float64"))
    _, groups = torch.unique(torch.tensor(ordered["group_id"].to_pylist()), return_inverse=True)
    return values(group_statistics(rewards, groups))


def _means_by_name(column: pa.ChunkedArray) -> dict[str, float]:
    """name -> mean over the rows that have it, of a column of maps; names in the order they first appear."""
    names, numbers = [], []
    for chunk in column.chunks:
        start, end = chunk.offsets[0].as_py(), chunk.offsets[-1].as_py()     # keys are of the whole array behind it
        names.append(chunk.keys.slice(start, end - start))
        numbers.append(chunk.items.slice(start, end - start))
    flat = pa.table({"name": pa.chunked_array(names, pa.string()), "value": pa.chunked_array(numbers, pa.float32())})
    found = flat.group_by("name", use_threads=False).aggregate([("value", "mean")])
    return dict(zip(found["name"].to_pylist(), found["value_mean"].to_pylist(), strict=True))
