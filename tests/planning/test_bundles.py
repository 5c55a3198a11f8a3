import pytest

from rlaif.config.checks import UserError
from rlaif.config.train import RoleConfig
from rlaif.planning.bundles import groups, place
from rlaif.planning.cluster import Node

FOUR = [Node(f"n{number}", 8, 4) for number in range(4)]


def where(roles, nodes, strategy="PACK"):
    """role -> (node, GPUs) of each of its actors, in order."""
    found = {}
    for lies in place(groups(roles, strategy), nodes):
        for role, number in lies.bundle.actors:
            found.setdefault(role, {})[number] = (nodes[lies.node].name, lies.gpus)
    return {role: [by_number[number] for number in sorted(by_number)] for role, by_number in found.items()}


def test_an_actor_has_a_bundle_of_its_own_in_the_order_of_the_roles():
    one, = groups({"rollout": RoleConfig(num_actors=2, num_gpus=1), "slot": RoleConfig(num_cpus=0.5)}, "PACK")
    assert one.strategy == "PACK"
    assert [bundle.actors for bundle in one.bundles] == [(("rollout", 0),), (("rollout", 1),), (("slot", 0),)]
    assert [bundle.resources for bundle in one.bundles] == [{"CPU": 1, "GPU": 1}, {"CPU": 1, "GPU": 1}, {"CPU": 0.5}]


def test_a_strategy_of_its_own_makes_a_group_of_its_own():
    roles = {"rollout": RoleConfig(num_actors=2, strategy="SPREAD"), "slot": RoleConfig(), "learner": RoleConfig()}
    assert [(group.strategy, [bundle.actors[0][0] for bundle in group.bundles]) for group in groups(roles, "PACK")] == [
        ("PACK", ["slot", "learner"]), ("SPREAD", ["rollout", "rollout"])]


def test_actors_beside_others_share_their_bundles_in_equal_numbers():
    roles = {"rollout": RoleConfig(num_actors=4, num_gpus=0.25, beside="learner"),
             "learner": RoleConfig(num_actors=2, num_cpus=2, num_gpus=0.5)}
    one, = groups(roles, "PACK")
    assert [bundle.actors for bundle in one.bundles] == [
        (("learner", 0), ("rollout", 0), ("rollout", 1)), (("learner", 1), ("rollout", 2), ("rollout", 3))]
    assert one.bundles[0].resources == {"CPU": 4, "GPU": 1}
    # One GPU for each bundle, so that no two learners meet on one.
    assert where(roles, FOUR)["learner"] == [("n0", (0,)), ("n0", (1,))]


@pytest.mark.parametrize(("role", "message"), [
    (RoleConfig(num_actors=3, beside="learner"), "placement.rollout.num_actors must be a multiple of the 2 of learner"),
    (RoleConfig(num_actors=2, num_gpus=0.7, beside="learner"),
     r"placement.rollout.num_gpus must share one GPU with learner, or be whole, got 1.2 GPUs \(0.5 \+ 1 x 0.7\)"),
    (RoleConfig(beside="slot"), r"placement.rollout.beside must be a role of this run .* \(learner\), got 'slot'"),
])
def test_what_cannot_lie_beside_is_refused(role, message):
    with pytest.raises(UserError, match=message):
        groups({"rollout": role, "learner": RoleConfig(num_actors=2, num_gpus=0.5)}, "PACK")


def test_pack_fills_one_node_and_then_the_next():
    found = where({"learner": RoleConfig(num_actors=6, num_gpus=1)}, FOUR)["learner"]
    assert found == [("n0", (0,)), ("n0", (1,)), ("n0", (2,)), ("n0", (3,)), ("n1", (0,)), ("n1", (1,))]


def test_spread_takes_a_node_each_while_there_is_one():
    found = where({"learner": RoleConfig(num_actors=5, num_gpus=1)}, FOUR, "SPREAD")["learner"]
    assert sorted(node for node, _ in found) == ["n0", "n0", "n1", "n2", "n3"]


def test_bundles_with_gpus_are_placed_before_those_with_many_cpus():
    # Were the CPUs taken first, the GPU's node would be full.
    nodes = [Node("gpu", 8, 1), Node("cpu", 8)]
    found = where({"slot": RoleConfig(num_actors=2, num_cpus=7), "learner": RoleConfig(num_cpus=1, num_gpus=1)}, nodes)
    assert found["learner"] == [("gpu", (0,))] and sorted(found["slot"]) == [("cpu", ()), ("gpu", ())]


def test_the_emptiest_node_is_taken_first():
    assert where({"slot": RoleConfig(num_cpus=2)}, [Node("small", 4), Node("large", 16)])["slot"] == [("large", ())]


def test_a_pool_keeps_its_roles_and_others_go_anywhere():
    nodes = [Node("a", 8, 8, pool="learn"), Node("b", 8, 8, pool="reward")]
    found = where({"slot": RoleConfig(num_actors=2, num_gpus=1, pool="reward"),
                   "learner": RoleConfig(num_actors=8, num_cpus=0.5, num_gpus=1, pool="learn")}, nodes)
    assert {node for node, _ in found["slot"]} == {"b"} and {node for node, _ in found["learner"]} == {"a"}
    with pytest.raises(UserError, match=r"slot-8 \(1 CPUs, 1 GPUs, pool reward\) by strategy PACK, got none \(left: a"):
        where({"slot": RoleConfig(num_actors=9, num_gpus=1, pool="reward")},
              [Node("a", 90, 80), Node("b", 9, 8, pool="reward")])


def test_a_tensor_parallel_engine_has_its_gpus_on_one_node():
    found = where({"rollout": RoleConfig(num_actors=2, num_gpus=4)}, FOUR)["rollout"]
    assert found == [("n0", (0, 1, 2, 3)), ("n1", (0, 1, 2, 3))]
    with pytest.raises(UserError, match=r"rollout-0 \(1 CPUs, 8 GPUs\) .* n0 8 CPUs, 4 GPUs; n1"):
        where({"rollout": RoleConfig(num_gpus=8)}, FOUR)


def test_strict_strategies_are_kept_or_refused():
    assert {node for node, _ in where({"slot": RoleConfig(num_actors=8)}, FOUR, "STRICT_PACK")["slot"]} == {"n0"}
    assert len({node for node, _ in where({"slot": RoleConfig(num_actors=4)}, FOUR, "STRICT_SPREAD")["slot"]}) == 4
    with pytest.raises(UserError, match="by strategy STRICT_PACK, got none"):
        where({"slot": RoleConfig(num_actors=9)}, FOUR, "STRICT_PACK")
    with pytest.raises(UserError, match=r"slot-4 .* by strategy STRICT_SPREAD, got none \(left: no node"):
        where({"slot": RoleConfig(num_actors=5)}, FOUR, "STRICT_SPREAD")


def test_fractions_fill_a_gpu_before_the_next_and_leave_whole_ones():
    found = where({"slot": RoleConfig(num_actors=3, num_gpus=0.5), "learner": RoleConfig(num_gpus=2)}, FOUR[:1])
    assert found["learner"] == [("n0", (0, 1))] or found["learner"] == [("n0", (2, 3))]
    assert [gpus for _, gpus in found["slot"]] in ([(0,), (0,), (1,)], [(2,), (2,), (3,)])


def test_fractions_that_leave_no_whole_gpu_are_refused():
    # By sums 0.6 + 0.6 + 0.6 + 2 fit into 4 GPUs; GPU by GPU they do not.
    with pytest.raises(UserError, match="placement must leave whole GPUs to share out"):
        where({"slot": RoleConfig(num_actors=3, num_gpus=0.6), "learner": RoleConfig(num_gpus=2)}, FOUR[:1])


def test_later_groups_find_what_earlier_ones_left():
    roles = {"rollout": RoleConfig(num_actors=4, num_gpus=1, strategy="STRICT_PACK"),
             "learner": RoleConfig(num_actors=4, num_gpus=1)}
    found = where(roles, FOUR)
    assert {node for node, _ in found["rollout"]}.isdisjoint({node for node, _ in found["learner"]})
