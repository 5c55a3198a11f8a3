"""Whole plans: the configurations that come with the project, on the clusters that come with them."""

import dataclasses
from pathlib import Path

import pytest

from rlaif.config.checks import UserError
from rlaif.config.files import load
from rlaif.config.train import TrainConfig
from rlaif.planning.cluster import GIB, GPU_KINDS, Cluster, Node, read_cluster
from rlaif.planning.memory import KV_CACHE
from rlaif.planning.plan import make_plan
from rlaif.planning.table import table
from rlaif.running.preflight import check_devices

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
HERE = Cluster((Node("here", 2, 0, 24 * GIB),), "this machine")


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch):
    monkeypatch.chdir(ROOT)


def planned(names, cluster, *overrides):
    config = load(TrainConfig, [CONFIGS / f"{name}.yaml" for name in names.split()], overrides)
    check_devices(config)
    if isinstance(cluster, str):
        cluster = read_cluster(CONFIGS / "clusters" / f"{cluster}.yaml")
    return make_plan(config, cluster)


def nodes_of(plan):
    return {row.role: sorted({plan.cluster.nodes[actor.node].name for actor in row.actors}) for row in plan.rows}


@pytest.mark.parametrize(("names", "cluster"), [
    ("one_node", "one_node"), ("one_node one_node_shared", "one_node"), ("four_nodes", "four_nodes")])
def test_every_configuration_of_nodes_fits_its_cluster(names, cluster):
    plan = planned(names, cluster)
    plan.refuse(estimates=True)
    assert (plan.refusals, plan.shortages, plan.warnings) == ([], [], [])
    assert table(plan, names)[-1] == "fits"
    used = sum(row.config.num_actors * row.config.num_gpus for row in plan.rows)
    assert used == sum(node.num_gpus for node in plan.cluster.nodes)        # no GPU is idle


def test_four_nodes_keep_the_reward_apart():
    assert nodes_of(planned("four_nodes", "four_nodes")) == {
        "rollout": ["rollout"], "explainer": ["reward"], "slot": ["reward"], "learner": ["learn-0", "learn-1"]}


def test_shared_gpus_hold_one_engine_and_one_learner_each():
    plan = planned("one_node one_node_shared", "one_node")
    by_role = {row.role: [actor.gpus for actor in row.actors] for row in plan.rows}
    assert by_role["rollout"] == by_role["learner"] and len(set(by_role["learner"])) == 6
    assert set(by_role["learner"]).isdisjoint(by_role["slot"] + by_role["explainer"])


def test_without_sleep_engine_and_learner_do_not_fit_on_one_gpu():
    plan = planned("one_node one_node_shared", "one_node", "rollout.engine.sleeps=false",
                   "rollout.engine.gpu_memory_utilization=0.6")
    assert not plan.refusals and len(plan.shortages) == 1
    with pytest.raises(UserError, match=r"GPU of node:2, node:3, node:4, node:5 and 2 more must hold .* of 79.6 GiB"):
        plan.refuse(estimates=True)


def test_the_quickstart_fits_this_small_a_machine():
    plan = planned("quickstart", HERE)
    plan.refuse(estimates=True)
    assert [row.role for row in plan.rows] == ["rollout", "explainer", "slot", "learner"]
    assert nodes_of(plan)["learner"] == ["here"] and 0.1 < plan.step_s < 10


def test_a_model_too_large_for_its_gpu_is_refused_by_what_is_known():
    with pytest.raises(UserError, match=r"GPU of node:4, .* got learner \(weights 14.2 \+ gradients 14.2 \+ optimizer "
                                        r"85.1 \+ reference 14.2\) = 127.7 of 79.6 GiB; try learner.zero_stage=1"):
        planned("one_node", "one_node", "learner.zero_stage=0").refuse(estimates=False)


def test_an_estimate_alone_only_warns_a_real_run():
    plan = planned("one_node", "one_node", "learner.activation_checkpointing=false")
    plan.refuse(estimates=False)
    with pytest.raises(UserError, match=r"activations 108\.5 .* by estimate; try learner.activation_checkp"):
        plan.refuse(estimates=True)


def test_an_engine_without_room_for_one_sequence_is_refused():
    plan = planned("one_node", "one_node", "rollout.engine.gpu_memory_utilization=0.18")
    assert plan.refusals == [
        "rollout.engine must leave KV cache for one sequence of max_model_len, got 0.18 x 79.6 = 14.3 GiB a GPU for "
        "weights 14.2 + KV cache 0.16 GiB; raise gpu_memory_utilization or tensor_parallel_size, or lower "
        "max_model_len"]
    two = planned("one_node", "one_node", "rollout.engine.gpu_memory_utilization=0.18",
                  "rollout.engine.tensor_parallel_size=2", "placement.rollout.num_gpus=2",
                  "placement.rollout.num_actors=1")
    assert two.refusals == [] and two.rows[0].actors[0].gpus == (0, 1)
    small = planned("quickstart", HERE, "rollout.engine.kv_cache_mb=1", "rollout.engine.max_model_len=600")
    assert small.refusals[0].startswith("rollout.engine.kv_cache_mb must hold one sequence of max_model_len, got 1 MiB")


def test_a_kv_cache_that_makes_rollouts_wait_is_a_warning():
    plan = planned("one_node", "one_node", "rollout.engine.gpu_memory_utilization=0.3")
    assert plan.warnings == ["rollout: the KV cache holds about 43 of the 128 sequences that could run at once; the "
                             "rest wait"]


def test_more_gpus_than_there_are_are_refused_with_the_sum():
    plan = planned("one_node", "one_node", "placement.learner.num_actors=5")
    assert plan.refusals[0] == (
        "placement must fit into the cluster's 8 GPUs, got 9 (rollout 2 x 1 + explainer 1 x 1 + slot 2 x 0.5 + "
        "learner 5 x 1); lower placement.*.num_actors or placement.*.num_gpus")
    assert "no place" in "\n".join(table(plan, "x")) and table(plan, "x")[-1].startswith("does not fit: placement must")


def test_gpus_of_an_unknown_kind_are_said_not_to_be_checked():
    nodes = (Node("there", 96, 8, 1024 * GIB),)
    described = read_cluster(CONFIGS / "clusters" / "one_node.yaml")
    plan = planned("one_node", dataclasses.replace(described, nodes=nodes))
    plan.refuse(estimates=True)
    assert plan.warnings == ["GPUs of there are of a kind that is not known: their memory is not checked; describe the "
                             "cluster in a file for --plan"]


def test_a_judge_that_is_only_described_must_be_told_who_explains():
    with pytest.raises(UserError, match=r"explainer.source must be given, and explainer.model with source: model, where"
                                        " judge 'esfp' is not on this machine"):
        planned("one_node", "one_node", "explainer.source=null")
    plan = planned("one_node", "one_node", "explainer.source=none")
    assert [row.role for row in plan.rows] == ["rollout", "slot", "learner"] and plan.load.num_explanations == 0


def test_a_described_judge_that_writes_is_an_engine():
    plan = planned("one_node", "one_node", "reward.model=Qwen/Qwen2.5-7B-Instruct", "placement.slot.num_gpus=1",
                   "placement.slot.num_actors=1", "reward.engine.dtype=bfloat16", "reward.engine.max_model_len=3072")
    slot = next(row for row in plan.rows if row.role == "slot")
    assert KV_CACHE in {item.name for item in slot.actors[0].items} and slot.remark.startswith("KV cache for ")


def test_a_step_is_as_long_as_its_longest_way():
    synchronous = planned("one_node", "one_node")
    ahead = planned("one_node", "one_node", "pipeline.max_staleness=1")
    seconds = {row.role: row.seconds for row in synchronous.rows}
    assert synchronous.step_s == pytest.approx(max(seconds["rollout"], seconds["explainer"], seconds["slot"])
                                               + seconds["learner"] + synchronous.sync_s)
    assert ahead.step_s == pytest.approx(max(seconds.values()) + ahead.sync_s)


def test_larger_gpus_leave_more_room_and_faster_ones_take_less_time():
    described = read_cluster(CONFIGS / "clusters" / "one_node.yaml")
    nodes = (dataclasses.replace(described.nodes[0], gpu=GPU_KINDS["H200"]),)
    h100, h200 = planned("one_node", described), planned("one_node", dataclasses.replace(described, nodes=nodes))
    assert h200.rows[0].seconds < h100.rows[0].seconds


def test_the_table_says_role_place_memory_and_seconds():
    text = "\n".join(table(planned("four_nodes", "four_nodes"), "four_nodes"))
    for line in ("learner    16      16 x 1  16 x 8  ", "learn-0:0-7  learn-1:0-7",
                 "weights 14.19 + KV cache and working memory 57.45",
                 "KV cache for about 335 sequences of 3072 tokens", "reference 14.19 + activations ~6.94",
                 "reward   reward   8 of 8 H100", "6 explainer, 2 slot", "asynchronous, max_staleness 1",
                 "an estimate by arithmetic alone", "object store: about"):
        assert line in text


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONFIGS / "algorithms").glob("*.yaml")))
def test_every_algorithm_can_be_planned(name):
    planned(f"quickstart algorithms/{name}", HERE).refuse(estimates=True)


def test_a_critic_of_its_own_is_counted():
    def weights(*overrides):
        learner = planned("quickstart algorithms/ppo", HERE, *overrides).rows[-1]
        return next(item.bytes for item in learner.actors[0].items if item.name == "weights")

    assert weights("learner.critic.model=policy") == 2 * weights("learner.critic.model=null")


def test_rules_alone_need_no_judge_and_no_explainer():
    plan = planned("quickstart", HERE, "reward.model=null",
                   "rewards=[{kind: length_penalty, options: {longest: 9}}]")
    assert [row.role for row in plan.rows] == ["rollout", "functions", "learner"]
    plan.refuse(estimates=True)


def test_a_gold_judge_weighs_no_more_than_its_process():
    plan = planned("quickstart", HERE, "reward.model=gold:scenes")
    slot = next(row for row in plan.rows if row.role == "slot")
    assert [item.name for item in slot.actors[0].items] == ["process"] and slot.seconds is None


def test_buckets_of_the_sync_are_counted_where_they_lie():
    def holders(*overrides):
        return [f"{actor.role}-{actor.number}" for row in planned("quickstart", HERE, *overrides).rows
                for actor in row.actors if any(item.name == "sync buckets" for item in actor.items)]

    assert holders() == ["learner-0"]
    assert holders("sync.backend=gloo") == ["rollout-0", "learner-0"]
    assert holders("mode=rollout") == []
