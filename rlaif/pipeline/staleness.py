"""How far generation may run ahead of learning: a bound that is kept by what may be drawn, not by throwing away."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["affordable", "capacity", "refuse_stale", "staleness_figures"]


def capacity(*, version: int, max_staleness: int, groups_per_step: int, num_trained: int, num_waiting: int,
             num_steps: int | None = None) -> int:
    """Groups that may be drawn now, >= 0.

        min(max_staleness + version + 1, num_steps) * groups_per_step - (num_trained + num_waiting)

    Groups are trained in the order they were drawn, groups_per_step of them by each version. A group drawn now is at
    most the (max_staleness + version + 1) * groups_per_step -th to be trained, hence trained by a version of at most
    version + max_staleness. What is discarded or skipped only moves later groups forward.

    version: finished learner steps. num_waiting: drawn, and neither trained nor discarded nor skipped. num_steps:
    learner steps of the whole run; nothing is drawn that would not be trained.

    Source: AReaL (Fu et al. 2025, arXiv 2505.24298), section 5.1, equation 3. Departs from it in counting groups, and
    in the end of the run.
    """
    for name, number in (("version", version), ("max_staleness", max_staleness), ("num_trained", num_trained),
                         ("num_waiting", num_waiting)):
        assert number >= 0, f"{name} must be >= 0, got {number}"
    last = max_staleness + version + 1
    if num_steps is not None:
        last = min(last, num_steps)
    return max(0, last * groups_per_step - num_trained - num_waiting)


def affordable(capacity: int, *, num_waiting: int, num_needed: int, held_bytes: int, bytes_per_group: float,
               num_in_flight: int, max_bytes: int) -> int:
    """Groups of `capacity` that may be drawn without holding more than about `max_bytes`; 0..capacity.

    The groups that the next step needs may always be drawn, else the run would stand still: at least
    num_needed - num_waiting. held_bytes: of the scored groups that wait. num_in_flight: groups that will add to them,
    bytes_per_group each, at least 1; 0 while no group has been scored.
    """
    if bytes_per_group < 1:
        return capacity
    room = int((max_bytes - held_bytes) / bytes_per_group) - num_in_flight
    return min(capacity, max(room, num_needed - num_waiting, 0))


def refuse_stale(version: int, policy_versions: Sequence[int], max_staleness: int) -> None:
    """AssertionError where a row is about to be trained at `version` that is staler than allowed, or from the future.

    policy_versions: `[N]`, the oldest version that wrote a token of each row.
    """
    for found in (min(policy_versions, default=version), max(policy_versions, default=version)):
        assert 0 <= version - found <= max_staleness, (
            f"rows must be of versions {version - max_staleness}..{version}, got one of {found}")


def staleness_figures(version: int, rows: pa.Table) -> dict[str, float]:
    """Of the rows to train at `version`: staleness_mean and staleness_max, in learner steps since the oldest token of
    each was written; continued_share, the share of completions that a weight update came into.

    rows: columns policy_version (oldest) and newest_policy_version.
    """
    if not rows.num_rows:
        return {}
    old, new = rows["policy_version"], rows["newest_policy_version"]
    return {"staleness_mean": version - pc.mean(old).as_py(), "staleness_max": version - pc.min(old).as_py(),
            "continued_share": pc.mean(pc.cast(pc.not_equal(old, new), pa.float64())).as_py()}
