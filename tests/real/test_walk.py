"""The stages of one step on real actors: overlap, completeness, what the reward says."""

from __future__ import annotations

import asyncio

import pytest
import ray

from actors.training.fleet import Fleet
from actors.training.walk import Order, walk
from rlaif.batch import SCORED, check
from rlaif.config.files import load
from rlaif.config.reward_parts import RewardPartConfig
from rlaif.config.train import TrainConfig
from rlaif.data.prompts import PromptStream
from rlaif.running.preflight import check_train
from rlaif.scenes import explain_answer, judge
from tests.real.conftest import ROOT

NUM_GROUPS, GROUP_SIZE = 24, 8


def walk_once(config: TrainConfig, num_groups: int):
    checked = check_train(config)

    async def go():
        fleet = Fleet(config, checked)
        try:
            await fleet.ready()
            await fleet.sync(0)
            prompts = PromptStream(checked.train.rows, seed=5).next(num_groups)
            await walk(fleet, prompts.slice(0, 4), Order(group_size=1, seed=1))     # warm-up
            done = await walk(fleet, prompts, Order(group_size=GROUP_SIZE, seed=1))
            greedy = [await walk(fleet, prompts, Order(1, seed, is_greedy=True)) for seed in (1, 2)]
            return done, *([ray.get(reference) for reference in each.scored] for each in (done, *greedy))
        finally:
            fleet.stop()

    return asyncio.run(go())


@pytest.fixture(scope="module")
def walked(local_ray: None):
    return walk_once(load(TrainConfig, ROOT / "configs" / "quickstart.yaml", ["output_dir=unused"]), NUM_GROUPS)


def test_every_rollout_comes_out_once_fully_scored(walked) -> None:
    _, tables, *_ = walked
    keys = [(row["group_id"], row["sample"]) for table in tables for row in check(table, SCORED).to_pylist()]
    assert sorted(keys) == [(group, sample) for group in range(NUM_GROUPS) for sample in range(GROUP_SIZE)]


def test_explanations_start_while_other_rollouts_still_decode(walked) -> None:
    clocks = walked[0].stages.clocks
    assert clocks["explain"].started < clocks["rollout"].ended


def test_the_small_columns_say_what_the_payload_says(walked) -> None:
    done, tables, *_ = walked
    payload = {(row["group_id"], row["sample"]): row for table in tables for row in table.to_pylist()}
    for row in done.summary.to_pylist():
        full = payload[row["group_id"], row["sample"]]
        assert row["reward"] == full["reward"]
        assert row["num_completion_tokens"] == len(full["completion_ids"])


def test_gold_is_the_judges_word_and_not_part_of_the_reward(walked) -> None:
    for table in walked[1]:
        for row in table.to_pylist():
            assert dict(row["judge_verdicts"])["gold"] == judge(row["prompt"], row["completion"]).reward
            assert row["reward_parts"] == [("esfp", row["reward"])]
            assert row["reward"] == pytest.approx(row["slot_probabilities"][0], abs=1e-6)   # P("yes")


def test_the_shipped_reward_model_agrees_with_gold_on_the_start_policys_own_answers(walked) -> None:
    rows = [row for table in walked[1] for row in table.to_pylist()]
    right = [(row["reward"] > 0.5) == (dict(row["judge_verdicts"])["gold"] == 1.0) for row in rows]
    explained = [row["explanations"] == [explain_answer(row["prompt"], row["completion"])] for row in rows]
    assert sum(right) / len(right) >= 0.95
    assert sum(explained) / len(explained) >= 0.9


def test_greedy_completions_do_not_depend_on_the_seed(walked) -> None:
    first, second = ({row["group_id"]: row["completion"] for table in tables for row in table.to_pylist()}
                     for tables in walked[2:])
    assert first == second and len(first) == NUM_GROUPS


def test_rules_and_a_second_judge_are_parts_beside_the_first(local_ray: None) -> None:
    config = load(TrainConfig, ROOT / "configs" / "quickstart.yaml",
                  ["output_dir=unused", "placement.learner.num_actors=1"])
    config.rewards = [RewardPartConfig(kind="length_penalty", name="short", options={"longest": 8, "buffer": 8}),
                      RewardPartConfig(name="exact", weight=2.0, options={"model": "gold:scenes",
                                                                          "placement": {"num_cpus": 0.1}})]
    _, tables, *_ = walk_once(config, 4)
    for row in (row for table in tables for row in check(table, SCORED).to_pylist()):
        parts = dict(row["reward_parts"])
        assert parts["exact"] == dict(row["judge_verdicts"])["gold"]
        assert -1 <= parts["short"] <= 0
        assert row["reward"] == pytest.approx(parts["esfp"] + parts["short"] + 2 * parts["exact"], abs=1e-6)
