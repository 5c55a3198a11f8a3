"""Where every actor of a run lives: placement groups made of rlaif.planning.bundles, and the options of each actor."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.cluster.connection import actor_environment
from rlaif.config.checks import UserError
from rlaif.planning.bundles import Bundle, Group, Roles, groups, refuse_too_large

__all__ = ["POOL_LABEL", "Placement", "Roles", "refuse_too_large", "within"]

POOL_LABEL = "pool"     # of a node: `ray start --labels=pool=<name>`


class Placement:
    """Placement groups with a bundle for each actor, or for actors that share GPUs; see rlaif.planning.bundles."""

    def __init__(self, roles: Roles, strategy: str, timeout_s: float) -> None:
        refuse_too_large(roles, ray.cluster_resources())
        self._roles, self.timeout_s = roles, timeout_s
        self._groups: list[PlacementGroup] = []
        self._place: dict[tuple[str, int], tuple[PlacementGroup, int]] = {}
        self._asked: dict[tuple[str, int], Bundle] = {}
        deadline = time.monotonic() + timeout_s
        # All are asked for before one is waited for.
        asked = [(group, self._ask(group)) for group in groups(roles, strategy)]
        for group, made in asked:
            if not made.wait(max(0.1, deadline - time.monotonic())):
                self.remove()
                raise UserError(_no_place(group, timeout_s))

    def _ask(self, group: Group) -> PlacementGroup:
        pools = [{POOL_LABEL: bundle.pool} if bundle.pool else {} for bundle in group.bundles]
        made = placement_group([bundle.resources for bundle in group.bundles], strategy=group.strategy,
                               bundle_label_selector=pools if any(pools) else None)
        self._groups.append(made)
        for index, bundle in enumerate(group.bundles):
            self._place |= {actor: (made, index) for actor in bundle.actors}
            self._asked |= {actor: bundle for actor in bundle.actors}
        return made

    def options(self, role: str, index: int) -> dict[str, Any]:
        """The Ray options of actor `index` of `role`: its bundle, its resources, its name on the dashboard."""
        config, (group, bundle) = self._roles[role], self._place[role, index]
        return {
            "name": f"{role}-{index}", "num_cpus": config.num_cpus,
            "num_gpus": config.num_gpus,
            "runtime_env": actor_environment(config.num_threads, config.num_gpus),
            "scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle),
        }

    def lacks(self, role: str, index: int) -> str | None:
        """In words why actor `index` of `role` has no place to be at, as when its node was lost and no other has room
        for its bundle; None where it has one."""
        group, bundle = self._place[role, index]
        found = placement_group_table(group)
        if found["bundles_to_node_id"].get(bundle, "").strip("f"):      # the others of its group may have none
            return None
        return f"no node has room for {self._asked[role, index]}, with strategy {found['strategy']}"

    def remove(self) -> None:
        for group in self._groups:
            ray.util.remove_placement_group(group)


def _no_place(group: Group, timeout_s: float) -> str:
    counts: dict[str, int] = {}
    for bundle in group.bundles:
        counts[_in_words(bundle)] = counts.get(_in_words(bundle), 0) + 1
    wanted = " + ".join(f"{count} x {text}" for text, count in counts.items())
    return (f"placement must be possible within {timeout_s:g} s, got no place for {wanted} with strategy "
            f"{group.strategy}; other jobs may hold the cluster, or no node fits a bundle")


def _in_words(bundle: Bundle) -> str:
    pool = f", pool {bundle.pool}" if bundle.pool else ""
    roles = " + ".join(dict.fromkeys(role for role, _ in bundle.actors))
    return f"{roles} ({bundle.num_cpus:g} CPUs, {bundle.num_gpus:g} GPUs{pool})"


async def within(work: Awaitable[Any], timeout_s: float, what: str) -> Any:
    """What `work` gives. Raises UserError, one line, where it takes longer than `timeout_s`."""
    try:
        return await asyncio.wait_for(work, timeout_s)
    except TimeoutError as error:
        raise UserError(f"{what} must be ready in {timeout_s:.0f} s, got no answer; Ray's logs tell what they wait "
                        "for") from error
