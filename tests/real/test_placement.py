"""Placement groups on a real Ray of several nodes: they lie where the plan says, and pools and neighbours are kept."""

import contextlib
from collections import Counter

import pytest
import ray
from ray.util.placement_group import placement_group_table

from actors.cluster.placement import Placement
from actors.cluster.planning import _ray_cluster, refuse_what_cannot_fit
from rlaif.config.checks import UserError
from rlaif.config.files import load
from rlaif.config.train import RoleConfig, TrainConfig
from rlaif.planning.bundles import groups, place
from tests.helpers.nodes import unnoted_cluster

NODES = [{"num_cpus": 8, "num_gpus": 4, "labels": {"pool": "learn"}},
         {"num_cpus": 16, "num_gpus": 4, "labels": {"pool": "reward"}}, {"num_cpus": 6}]


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """Nodes of different sizes, as Ray counts them: no GPU is behind the numbers."""
    made = unnoted_cluster(num_cpus=0)
    try:
        for node in NODES:
            made.add_node(**node)
        ray.init(address=made.address, log_to_driver=False)
        made.wait_for_nodes()
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


@contextlib.contextmanager
def placed(roles, strategy):
    found = Placement(roles, strategy, 30.0)
    try:
        yield found
    finally:
        found.remove()


def lies(placement):
    """(role, number) -> how many CPUs its node has, by Ray's own table."""
    cpus = {node["NodeID"]: node["Resources"].get("CPU", 0) for node in ray.nodes()}
    return {actor: cpus[placement_group_table(group)["bundles_to_node_id"][bundle]]
            for actor, (group, bundle) in placement._place.items()}


ROLES = {
    "pack": ("PACK", {"rollout": RoleConfig(num_actors=3, num_gpus=1), "slot": RoleConfig(num_actors=4, num_cpus=2),
                      "learner": RoleConfig(num_actors=4, num_cpus=1, num_gpus=1)}),
    "spread": ("SPREAD", {"slot": RoleConfig(num_actors=5, num_cpus=3), "learner": RoleConfig(num_gpus=2)}),
    "pools": ("PACK", {"rollout": RoleConfig(num_actors=2, num_gpus=1, pool="learn"),
                       "slot": RoleConfig(num_actors=2, num_gpus=0.5, pool="reward"),
                       "learner": RoleConfig(num_actors=2, num_gpus=1, pool="learn")}),
    "own": ("PACK", {"rollout": RoleConfig(num_actors=2, num_gpus=1, strategy="STRICT_SPREAD"),
                     "learner": RoleConfig(num_actors=3, num_gpus=1, strategy="STRICT_PACK")}),
    "beside": ("PACK", {"rollout": RoleConfig(num_actors=4, num_gpus=0.5, beside="learner"),
                        "learner": RoleConfig(num_actors=4, num_gpus=0.5, pool="learn")}),
}


@pytest.mark.parametrize("name", ROLES)
def test_ray_puts_bundles_where_the_plan_says(name):
    strategy, roles = ROLES[name]
    nodes = _ray_cluster().nodes
    planned = {actor: nodes[at.node].num_cpus for at in place(groups(roles, strategy), nodes)
               for actor in at.bundle.actors}
    with placed(roles, strategy) as placement:
        found = lies(placement)
        assert {placement.lacks(*actor) for actor in found} == {None}
    if name == "own":       # the two groups are placed side by side: in either order
        assert Counter(cpus for (role, _), cpus in found.items() if role == "rollout") == {8: 1, 16: 1}
        assert len({cpus for (role, _), cpus in found.items() if role == "learner"}) == 1
    elif name == "spread":      # Ray goes over the nodes in no certain order
        assert Counter((role, cpus) for (role, _), cpus in found.items()) == Counter(
            (role, cpus) for (role, _), cpus in planned.items())
    else:
        assert found == planned


def test_neighbours_see_the_same_gpu_and_no_two_learners_do():
    @ray.remote
    class Sees:
        def gpus(self):
            return ray.get_runtime_context().get_node_id(), tuple(ray.get_gpu_ids())

    roles = {"rollout": RoleConfig(num_actors=2, num_cpus=0.5, num_gpus=0.5, beside="learner"),
             "learner": RoleConfig(num_actors=2, num_cpus=0.5, num_gpus=0.5)}
    with placed(roles, "PACK") as placement:
        actors = {(role, number): Sees.options(**placement.options(role, number) | {"runtime_env": {}}).remote()
                  for role in roles for number in range(2)}
        seen = dict(zip(actors, ray.get([actor.gpus.remote() for actor in actors.values()], timeout=60), strict=True))
        names = sorted(actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True))
    assert names == ["learner-0", "learner-1", "rollout-0", "rollout-1"]
    assert seen["rollout", 0] == seen["learner", 0] and seen["rollout", 1] == seen["learner", 1]
    assert seen["learner", 0] != seen["learner", 1]


def test_what_no_node_can_hold_is_refused_with_what_was_asked_for():
    with pytest.raises(UserError, match=r"placement must be possible within 2 s, got no place for 1 x learner \(1 CPUs,"
                                        r" 8 GPUs\) with strategy PACK"):
        Placement({"learner": RoleConfig(num_gpus=8)}, "PACK", 2.0)


def test_a_run_is_refused_before_its_actors_start_by_the_nodes_as_they_are():
    config = load(TrainConfig, "configs/quickstart.yaml", ["placement.learner.num_cpus=20"])
    with pytest.raises(UserError, match=r"placement must fit into the cluster's 30 CPUs, got 41.25 \(rollout 1 x 0.5"):
        refuse_what_cannot_fit(config)
    assert refuse_what_cannot_fit(load(TrainConfig, "configs/quickstart.yaml")) == []
