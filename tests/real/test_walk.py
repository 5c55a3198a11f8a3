"""The stages of one step on real actors: overlap, completeness, what the reward says."""

from __future__ import annotations

import asyncio

import pytest
import ray

from actors.fleet import Fleet
from actors.walk import walk
from rlaif.batch import SCORED, check
from rlaif.config import TrainConfig
from rlaif.config_file import load
from rlaif.preflight import check_train
from rlaif.prompts import PromptStream
from rlaif.scenes import explain_answer, judge
from tests.real.conftest import ROOT

NUM_GROUPS, GROUP_SIZE = 24, 8


@pytest.fixture(scope="module")
def walked(local_ray: None):
    config = load(TrainConfig, ROOT / "configs" / "quickstart.yaml", ["output_dir=unused"])
    checked = check_train(config)

    async def go():
        fleet = Fleet(config, checked.explainer, checked.judge)
        try:
            await fleet.ready()
            await fleet.sync(0)
            prompts = PromptStream(checked.train_rows, seed=5).next(NUM_GROUPS)
            await walk(fleet, prompts.slice(0, 4), group_size=1, seed=1)     # warm-up
            done = await walk(fleet, prompts, group_size=GROUP_SIZE, seed=1)
            return done, [ray.get(reference) for reference in done.scored]
        finally:
            fleet.stop()

    return asyncio.run(go())


def test_every_rollout_comes_out_once_fully_scored(walked) -> None:
    _, tables = walked
    keys = [(row["group_id"], row["sample"]) for table in tables for row in check(table, SCORED).to_pylist()]
    assert sorted(keys) == [(group, sample) for group in range(NUM_GROUPS) for sample in range(GROUP_SIZE)]


def test_explanations_start_while_other_rollouts_still_decode(walked) -> None:
    clocks = walked[0].clocks
    assert clocks["explain"].started < clocks["rollout"].ended


def test_the_small_columns_say_what_the_payload_says(walked) -> None:
    done, tables = walked
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
