"""Generation ahead of learning on a cluster whose nodes are lost while it goes on."""

from __future__ import annotations

import re

import pytest

from tests.helpers.live_training import LiveTraining
from tests.helpers.nodes import Nodes
from tests.real.conftest import SHARED_GPU

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]

STEPS, GROUPS, GROUP_SIZE = 90, 4, 4     # more than are made while an engine starts elsewhere
SETTINGS = (
    f"steps={STEPS}", f"rollout.groups_per_step={GROUPS}", f"rollout.group_size={GROUP_SIZE}", *SHARED_GPU,
    f"prompts.num_train={STEPS * GROUPS}", "prompts.num_test=8", "evaluation.every=0", "report.samples_every=0",
    "pipeline.max_staleness=1", "placement.rollout.num_actors=2", "checkpoint.every=3", "faults.hang_s=30",
    "faults.ping_s=10", "faults.max_restarts=30", "faults.max_learner_restarts=5", "faults.warn_s=20",
    "placement.learner.strategy=STRICT_PACK")


def trained_every_prompt_once(training: LiveTraining) -> None:
    assert [step["step"] for step in training.steps] == list(range(1, STEPS + 1))
    assert training.summary["ledger"]["totals"] == {"trained": STEPS * GROUPS, "discarded": 0, "skipped": 0}
    assert all(step["num_trained"] == GROUPS * GROUP_SIZE for step in training.steps)
    assert {step["staleness_max"] for step in training.steps} <= {0, 1}
    assert training.steps[-1]["epoch"] == pytest.approx(1.0)


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> tuple[LiveTraining, list[dict[str, list[str]]]]:
    """Three nodes beside the head: one without a learner is lost, then that of the learners. The last one holds all.
    The cluster is gone on return: Ray knows one at a time in a process."""
    nodes, training, seen = Nodes([{"num_cpus": 3}] * 3), None, []
    try:
        training = LiveTraining(tmp_path_factory.mktemp("moved") / "run", *SETTINGS, "placement.strategy=SPREAD",
                                cluster=nodes.address)
        training.until(rf"^step +2/{STEPS}\b")
        seen.append(nodes.actors())
        # Of those without a learner, one with an engine where there is one.
        nodes.lose(min((node for node, names in seen[0].items() if names and "learner-0" not in names),
                       key=lambda node: -sum(name.startswith("rollout") for name in seen[0][node])))
        training.until(r"rollout-\d serves again")
        at = training.num_steps
        training.until(rf"^step +{at + 3}/{STEPS}\b")
        seen.append(nodes.actors())
        nodes.lose(next(node for node, names in seen[1].items() if "learner-0" in names))
        training.until(r"^goes on after step")
        training.end(600)
        return training, seen
    finally:
        if training is not None:
            print("\n".join(line for _, line in training.lines if re.search("lost|serves|waits|goes on", line)))
            training.stop()
        nodes.close()


def test_what_was_on_a_lost_node_goes_on_elsewhere_and_every_prompt_is_trained_on_once(moved) -> None:
    training, seen = moved
    assert training.process.returncode == 0, training.printed[-6000:]
    assert all(sum(map(len, there.values())) == 6 for there in seen), seen
    trained_every_prompt_once(training)
    assert training.steps[-1]["restarts_rollout"] >= 1 and training.steps[-1]["restarts_learner"] == 1


NO_ROOM = ("placement.slot.pool=reward", "placement.ready_timeout_s=60", "faults.stuck_s=300")


def test_without_room_elsewhere_a_run_waits_with_a_message_and_ends_within_its_limit(tmp_path) -> None:
    """The judge's node is lost twice. The first time another one comes, the second time none: the run says so, ends,
    and the same command goes on when there is one again."""
    nodes, folder = Nodes([{"num_cpus": 3}, {"num_cpus": 1, "labels": {"pool": "reward"}}]), tmp_path / "run"
    training = LiveTraining(folder, *SETTINGS, *NO_ROOM, cluster=nodes.address)
    try:
        training.until(rf"^step +2/{STEPS}\b")
        lose_the_judge(nodes)
        training.until(r"slot-0 waits for a place in the cluster, for 60 s at most \(placement.ready_timeout_s\): no "
                       r"node has room for slot-0 \(0.25 CPUs, 0 GPUs, pool reward\)")
        nodes.add(num_cpus=1, labels={"pool": "reward"})
        training.until("slot-0 serves again")
        at = training.num_steps
        training.until(rf"^step +{max(4, at + 1)}/{STEPS}\b")
        lose_the_judge(nodes)
        assert training.end(240) == 2, training.printed[-6000:]
        (error,) = training.errors
        assert error.startswith(
            "error: slot-0 must get another place in the cluster within placement.ready_timeout_s = 60 s, got none: no "
            "node has room for slot-0 (0.25 CPUs, 0 GPUs, pool reward)"), training.printed[-3000:]
        nodes.add(num_cpus=1, labels={"pool": "reward"})
        training = LiveTraining(folder, *SETTINGS, *NO_ROOM, cluster=nodes.address)
        assert training.end(400) == 0, training.printed[-6000:]
        assert "goes on after step" in training.printed
        trained_every_prompt_once(training)
    finally:
        training.stop()
        nodes.close()


def lose_the_judge(nodes: Nodes) -> None:
    nodes.lose(next(node for node, names in nodes.actors().items() if "slot-0" in names))
