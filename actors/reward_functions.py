"""RewardFunctionActor: the parts of the reward that no judge gives, and what makes one reward of all parts."""

from __future__ import annotations

import pyarrow as pa
import ray

from rlaif.config import RoleConfig
from rlaif.metrics import Metric
from rlaif.rewards.plan import RewardPlan


@ray.remote(allow_out_of_order_execution=True)
class RewardFunctionActor:
    """Verbs: `ready`, `values`, `combine`."""

    def __init__(self, plan: RewardPlan, gold: str | None, start_timeout_s: float) -> None:
        raise NotImplementedError

    def ready(self) -> None:
        """Returns once every part can be asked."""

    def values(self, rollouts: pa.Table) -> tuple[pa.Table, dict[str, Metric]]:
        """The PARTS rows of what the function parts say of ROLLOUT rows in whole groups, and what was counted."""
        raise NotImplementedError

    def combine(self, compares: bool, num_batches: int, *tables: pa.Table
                ) -> tuple[pa.Table, pa.Table, dict[str, Metric]]:
        """One SCORED batch, its small columns, and what was counted: rlaif.scored_batch.combine_scored of the first
        `num_batches` tables as batches and the rest as parts. compares: False in evaluation, where a prompt has one
        completion and a transform that compares has nothing to compare with."""
        raise NotImplementedError
