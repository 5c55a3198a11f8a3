"""RewardFunctionActor: the parts of the reward that no judge gives, and one reward made of all parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa
import ray

from actors.faults.vitals import HEALTH, Vitals, vitals
from actors.judging.function_parts import FunctionParts
from rlaif.batch import ROLLOUT, check
from rlaif.esfp.gold import GOLD
from rlaif.metrics import Metric
from rlaif.rewards.plan import RewardPlan
from rlaif.rewards.scored_batch import combine_scored


# Out of order: what is there to be combined must not wait for a batch that is still being explained.
@ray.remote(allow_out_of_order_execution=True, concurrency_groups=HEALTH)
class RewardFunctionActor:
    """Verbs: `ready`, `ping`, `values`, `combine`. Holds no state but how many rows were skipped.

    gold: name of the judge that watches beside the reward where the plan has no judge to ask it, or None.
    start_timeout_s: seconds in which a user's function must be importable.
    """

    def __init__(self, plan: RewardPlan, gold: str | None, start_timeout_s: float) -> None:
        self._plan, self._gold = plan, GOLD[gold] if gold else None
        self._parts = FunctionParts(plan.functions, start_timeout_s)
        self._parts.start()

    @ray.method(concurrency_group="health")
    def ping(self, with_stacks: bool = False) -> Vitals:
        return vitals(with_stacks)

    def ready(self) -> None:
        """Returns once every part can be asked."""

    def values(self, rollouts: pa.Table) -> tuple[pa.Table, dict[str, Metric]]:
        """The PARTS rows of what the function parts say of ROLLOUT rows in whole groups, and what was counted."""
        return self._parts.values(check(rollouts, ROLLOUT))

    def combine(self, compares: bool, num_batches: int, *tables: pa.Table
                ) -> tuple[pa.Table, pa.Table, dict[str, Metric]]:
        """One SCORED batch, its small columns for the driver, and what was counted.

        tables: `num_batches` batches of whole groups, then what the other parts said: see
        rlaif.rewards.scored_batch.combine_scored. compares: False in evaluation, where a prompt has one completion,
        and a transform that compares rows nothing to compare with.
        """
        batches, parts = tables[:num_batches], tables[num_batches:]
        plan = self._plan if compares else self._plan.without_comparison()
        return combine_scored(batches, parts, plan, self._verdicts(batches))

    def _verdicts(self, batches: Sequence[pa.Table]) -> Mapping[str, Sequence[float]]:
        """What gold says of batches that no judge has seen."""
        if self._gold is None or self._plan.judges:
            return {}
        return self._gold(*([text for batch in batches for text in batch[name].to_pylist()]
                            for name in ("prompt", "completion")))
