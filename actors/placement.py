"""Which role takes what of the cluster: the arithmetic before anything starts, and the placement group."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.cluster import actor_environment
from rlaif.config.checks import UserError
from rlaif.config.train import RoleConfig

Roles = Mapping[str, RoleConfig]


def refuse_too_large(roles: Roles, resources: Mapping[str, float]) -> None:
    """Raises UserError if `roles` together ask for more CPUs or GPUs than `resources` has, with the sum per role."""
    for resource, field in (("CPU", "num_cpus"), ("GPU", "num_gpus")):
        needs = {name: role.num_actors * getattr(role, field) for name, role in roles.items()}
        total, there = sum(needs.values()), resources.get(resource, 0.0)
        if total > there + 1e-6:
            parts = " + ".join(f"{name} {roles[name].num_actors} x {getattr(roles[name], field):g}" for name in roles)
            raise UserError(f"placement must fit into the cluster's {there:g} {resource}s, got {total:g} ({parts}); "
                            f"lower placement.*.num_actors or placement.*.{field}")


class Placement:
    """A placement group with one bundle an actor, in the order of `roles`."""

    def __init__(self, roles: Roles, strategy: str, timeout_s: float) -> None:
        refuse_too_large(roles, ray.cluster_resources())
        self._roles = roles
        bundles = [{"CPU": role.num_cpus} | ({"GPU": role.num_gpus} if role.num_gpus else {})
                   for role in roles.values() for _ in range(role.num_actors)]
        self._group: PlacementGroup = placement_group(bundles, strategy=strategy)
        if not self._group.wait(timeout_s):
            ray.util.remove_placement_group(self._group)
            raise UserError(f"placement must be possible within {timeout_s:g} s, got no place for {bundles} with "
                            f"strategy {strategy}; other jobs may hold the cluster, or no node fits a bundle")

    def options(self, role: str, index: int) -> dict[str, Any]:
        """The Ray options of actor `index` of `role`: its bundle, its resources, its name on the dashboard."""
        first = 0
        for name, config in self._roles.items():
            if name == role:
                break
            first += config.num_actors
        config = self._roles[role]
        return {
            "name": f"{role}-{index}", "num_cpus": config.num_cpus,
            "num_gpus": config.num_gpus,
            "runtime_env": actor_environment(config.num_threads, config.num_gpus),
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                self._group, placement_group_bundle_index=first + index),
        }

    def remove(self) -> None:
        ray.util.remove_placement_group(self._group)


async def within(work: Awaitable[Any], timeout_s: float, what: str) -> Any:
    """What `work` gives. Raises UserError, one line, where it takes longer than `timeout_s`."""
    try:
        return await asyncio.wait_for(work, timeout_s)
    except TimeoutError as error:
        raise UserError(f"{what} must be ready in {timeout_s:.0f} s, got no answer; Ray's logs tell what they wait "
                        "for") from error
