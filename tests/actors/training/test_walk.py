"""The driver's part of a walk, with actors that are no Ray actors; tests/real walks with real ones."""

import asyncio

import pytest
from ray.exceptions import ActorDiedError

from actors.training.walk import Order, walk
from rlaif.batch import SCORED, check
from rlaif.config.reward_parts import RewardPartConfig
from rlaif.data.prompts import in_order
from rlaif.metrics import values
from rlaif.pipeline.budgets import Budget
from rlaif.rewards.plan import RewardPlan
from rlaif.running.figures import means
from tests.helpers.fake_fleet import FakeJudge, fake_fleet, judge_part

PROMPTS = in_order([{"prompt": f"p{number}", "prompt_ids": [number], "source": "s", "reference": None,
                     "sample_weight": 1.0}
                    for number in range(8)])
JUDGE = RewardPartConfig(kind="judge", name="esfp")


def by_sample(row):
    return float(row["sample"])


def walked(fleet, order=Order(3, 0)):   # noqa: B008  frozen
    async def go():
        done = await walk(fleet, PROMPTS, order)
        return done, [check(await reference, SCORED) for reference in done.scored]

    return asyncio.run(go())


def rows_of(tables):
    return {(row["group_id"], row["sample"]): row for table in tables for row in table.to_pylist()}


def test_one_judge_is_the_reward_and_every_row_comes_out_once():
    judge = FakeJudge("esfp", by_sample, gold=lambda row: 1.0)
    fleet = fake_fleet(RewardPlan((JUDGE,), (judge_part("esfp"),)), {"esfp": judge}, {}, has_explainer=True)
    done, tables = walked(fleet)
    rows = rows_of(tables)
    assert len(tables) == 4 and sum(table.num_rows for table in tables) == 24 == len(rows)
    assert all(row["reward"] == sample for (_, sample), row in rows.items())
    assert all(row["explanations"] == ["so"] for row in rows.values())
    assert judge.num_explained == 24 and fleet.combining.combined == []
    num_bytes = sum(table.nbytes for table in tables)
    assert values(done.metrics) == {"num_explanations": 24.0, "slot_inputs_cut": 0.0, "scored_bytes": num_bytes}
    assert done.summary.num_rows == 24 and sum(portion.num_bytes for portion in done.portions) == num_bytes
    assert [pool.in_flight for pool in (fleet.explainers, *fleet.judges)] == [[0], [0]]


def test_a_judge_and_a_function_are_combined_batch_by_batch():
    parts = (JUDGE, RewardPartConfig(kind="function", name="even", function="a:b", weight=-2.0))
    fleet = fake_fleet(RewardPlan(parts, (judge_part("esfp"),)),
                       {"esfp": FakeJudge("esfp", by_sample, gold=lambda row: 0.5)},
                       {"even": lambda row: float(row["sample"] % 2 == 0)})
    done, tables = walked(fleet)
    rows = rows_of(tables)
    assert [rows[3, sample]["reward"] for sample in range(3)] == [-2.0, 1.0, 0.0]
    assert dict(rows[3, 2]["reward_parts"]) == {"esfp": 2.0, "even": 1.0}
    assert dict(rows[3, 2]["judge_verdicts"]) == {"gold": 0.5}, "what watches is kept"
    assert fleet.combining.combined == [(True, 1, 2)] * 4
    assert means(done.summary)["part_even"] == pytest.approx(2 / 3)


def test_several_judges_give_a_part_each():
    parts = (JUDGE, RewardPartConfig(kind="judge", name="second"))
    fleet = fake_fleet(RewardPlan(parts, (judge_part("esfp"), judge_part("second"))),
                       {"esfp": FakeJudge("esfp", by_sample), "second": FakeJudge("second", lambda row: 10.0)}, {})
    _, tables = walked(fleet)
    assert [rows_of(tables)[0, sample]["reward"] for sample in range(3)] == [10.0, 11.0, 12.0]
    assert fleet.combining.combined == [(True, 1, 2)] * 4


def test_rules_alone_need_no_judge_and_what_they_do_not_judge_is_left_out():
    parts = (RewardPartConfig(kind="function", name="rule", function="a:b"),
             RewardPartConfig(kind="function", name="other", function="a:c"))
    fleet = fake_fleet(RewardPlan(parts, ()), {}, {"rule": by_sample, "other": lambda row: None})
    done, tables = walked(fleet)
    assert [rows_of(tables)[5, sample]["reward"] for sample in range(3)] == [0.0, 2.0, 4.0]
    assert dict(rows_of(tables)[5, 1]["reward_parts"]) == {"rule": 1.0}
    assert done.stages.clocks["explain"].started is None


def test_a_part_that_compares_with_the_whole_step_is_combined_once_after_all_of_it():
    parts = (RewardPartConfig(kind="judge", name="esfp", transform="rank", over="batch"),)
    plan = RewardPlan(parts, (judge_part("esfp"),))
    fleet = fake_fleet(plan, {"esfp": FakeJudge("esfp", lambda row: float(row["group_id"]))}, {})
    done, tables = walked(fleet)
    assert fleet.combining.combined == [(True, 4, 4)] and len(tables) == 1
    rewards = [rows_of(tables)[group, 0]["reward"] for group in range(8)]
    assert rewards == sorted(rewards) and len(set(rewards)) == 8
    assert done.summary.num_rows == 24


def test_one_completion_a_prompt_is_compared_with_nothing():
    parts = (RewardPartConfig(kind="judge", name="esfp", transform="rank"),)
    fleet = fake_fleet(RewardPlan(parts, (judge_part("esfp"),)),
                       {"esfp": FakeJudge("esfp", lambda row: float(row["group_id"]))}, {})
    _, tables = walked(fleet, Order(1, 0, is_greedy=True, compares=False))
    assert [rows_of(tables)[group, 0]["reward"] for group in range(8)] == list(range(8))
    assert fleet.combining.combined == [(False, 1, 1)] * 4
    assert fleet.rollout.asked == [(8, 1, True)]


def test_an_error_of_an_actor_ends_the_walk_and_frees_its_place():
    def broken(row):
        raise ValueError("slot must be there")

    fleet = fake_fleet(RewardPlan((JUDGE,), (judge_part("esfp"),)), {"esfp": FakeJudge("esfp", broken)}, {},
                       has_explainer=True)
    with pytest.raises(ValueError, match="slot must be there"):
        walked(fleet)


def test_rows_that_go_missing_are_noticed():
    fleet = fake_fleet(RewardPlan((JUDGE,), (judge_part("esfp"),)), {"esfp": FakeJudge("esfp", by_sample)}, {})

    async def nothing(*asked):
        for row in ():
            yield row

    fleet.rollout.generate = nothing
    with pytest.raises(RuntimeError, match="rollouts must come of every prompt, got none of 8, first group 0"):
        walked(fleet)


@pytest.mark.parametrize("breaks_after", [0, 1, 2, 3])
def test_an_engine_that_is_lost_between_a_batch_and_what_tells_of_it_is_asked_again_and_nobody_else_pays(
        monkeypatch, breaks_after):
    async def end(actor, known):
        await asyncio.sleep(0)

    monkeypatch.setattr("actors.faults.pool.end", end)
    fleet = fake_fleet(RewardPlan((JUDGE,), (judge_part("esfp"),)), {"esfp": FakeJudge("esfp", by_sample)}, {},
                       has_explainer=True)
    fleet.rollouts._budget = Budget(1)
    whole, calls = fleet.rollout.generate, []

    async def breaks_off(*arguments):
        calls.append(len(calls))
        count = 0
        async for item in whole(*arguments):
            if len(calls) == 1 and count == breaks_after:
                raise ActorDiedError
            count += 1
            yield item

    fleet.rollout.generate = breaks_off
    done, tables = walked(fleet)
    assert len(rows_of(tables)) == 24 == sum(table.num_rows for table in tables)
    assert [asked[0] for asked in fleet.rollout.asked] == [8, 8 - 2 * (breaks_after // 2)]
    assert done.stages.num_retried == 1 and fleet.explainers.figures() == {"ready_explainer": 1}
