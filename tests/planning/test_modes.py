"""What a run takes that does a part of the loop."""

from pathlib import Path

import pytest

from rlaif.config.files import load
from rlaif.config.train import TrainConfig
from rlaif.planning.cluster import read_cluster
from rlaif.planning.plan import make_plan
from rlaif.running.rollout_store import RolloutStore

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"


@pytest.fixture
def stored(tmp_path):
    RolloutStore(tmp_path, {"weights": {"esfp": 1.0}}).rewind(0)
    return f"stored.read={tmp_path}"


def planned(names, monkeypatch, *overrides):
    monkeypatch.chdir(ROOT)
    config = load(TrainConfig, [CONFIGS / f"{name}.yaml" for name in names.split()], overrides)
    return make_plan(config, read_cluster(CONFIGS / "clusters" / "one_node.yaml"))


def test_without_learners_their_place_is_free(monkeypatch):
    plan = planned("one_node", monkeypatch, "mode=rollout")
    assert [row.role for row in plan.rows] == ["rollout", "explainer", "slot"]
    plan.refuse(estimates=True)


def test_a_replay_takes_the_learners_alone(monkeypatch, stored):
    plan = planned("one_node", monkeypatch, "mode=replay", stored)
    assert [row.role for row in plan.rows] == ["learner"]
    plan.refuse(estimates=True)


@pytest.mark.parametrize("mode", ["rollout", "replay"])
def test_a_role_whose_neighbour_is_not_there_has_the_place_to_itself(monkeypatch, stored, mode):
    plan = planned("one_node one_node_shared", monkeypatch, f"mode={mode}", *([stored] if mode == "replay" else []))
    assert all(row.config.beside is None or row.config.beside in {other.role for other in plan.rows}
               for row in plan.rows)
    assert plan.refusals == []
