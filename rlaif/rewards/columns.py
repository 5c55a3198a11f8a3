"""What reward functions see of rollouts: columns of plain Python values, by the name of the argument."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from rlaif.batch import ROLLOUT, check
from rlaif.rewards.functions import COLUMNS

__all__ = ["columns_of"]


def columns_of(rollouts: pa.Table) -> dict[str, list]:
    """The columns of ROLLOUT rows: texts, None for a reference that is not there, tokens of each completion, and which
    rows belong together: `group_ids` are equal for the completions of one prompt, `samples` number them."""
    check(rollouts, ROLLOUT)
    columns = {name: rollouts[name.removesuffix("s")].to_pylist() for name in COLUMNS if name != "num_tokens"}
    return columns | {"num_tokens": pc.list_value_length(rollouts["completion_ids"]).to_pylist()}
