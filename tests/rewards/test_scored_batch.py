import dataclasses
import math

import pyarrow as pa
import pytest
import torch

from rlaif.batch import EXPLAINED, PARTS, ROLLOUT, SCORED, SUMMARY_COLUMNS, check
from rlaif.config.checks import UserError
from rlaif.config.reward_parts import RewardPartConfig
from rlaif.config.train import RewardConfig
from rlaif.esfp.reward_model import Scored
from rlaif.esfp.slots import Slot, SlotTemplate
from rlaif.metrics import values
from rlaif.rewards.plan import plan_rewards
from rlaif.rewards.scored_batch import (
    combine_scored,
    parts_table,
    scored_batch,
    small_columns,
    texts_to_judge,
    without_explanations,
)
from tests.helpers.batch_examples import table

VERDICT = Slot("verdict", [["yes"], ["maybe"], ["no"]], [1.0, 0.5, 0.0])
LEVEL = Slot("level", [["low"], ["high"]], [0.0, 1.0])
TEMPLATE = SlotTemplate("{completion} {explanation} [level] [verdict]", [LEVEL, VERDICT], 64)
SCORES = Scored(
    probabilities=torch.tensor([[[0.25, 0.75, 0.0], [0.5, 0.25, 0.25]], [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]]),
    slot_scores=torch.tensor([[0.75, 0.625], [0.0, 0.0]]), entropy=torch.tensor([[0.5, 1.0], [0.0, 0.0]]),
    reward=torch.tensor([1.375, 0.0]), num_truncated=1, num_without_explanation=2)
EXPLANATIONS = ({"explanations": ["so", "cut o", ""], "explanation_finish_reasons": ["stop", "length", "failed"]},
                {"explanations": [" "], "explanation_finish_reasons": ["stop"]},
                {"explanations": ["why"], "explanation_finish_reasons": ["input_cut"], "reference": "the right one"})


def test_rollouts_without_explanations_are_explained_by_none():
    got = check(without_explanations(table(ROLLOUT, {}, {"sample": 1})), EXPLAINED).to_pylist()
    assert [row["sample"] for row in got] == [0, 1]
    for row in got:
        assert (row["explanations"], row["explanation_finish_reasons"], row["num_explanation_tokens"]) == ([], [], 0)
    assert texts_to_judge(without_explanations(table(ROLLOUT)), "error").explanations == [[], []]


def test_the_judge_reads_prompts_completions_and_what_explains_them_usably():
    texts = texts_to_judge(table(EXPLAINED, *EXPLANATIONS), "without")
    assert (texts.prompts, texts.completions) == (["say so"] * 3, ["so it is"] * 3)
    assert texts.explanations == [["so"], [], ["why"]]
    assert texts.others is None and texts.other_explanations is None


def test_references_are_the_other_side_where_they_are_asked_for():
    rows = [dict(change, reference=f"reference {number}") for number, change in enumerate(EXPLANATIONS)]
    texts = texts_to_judge(table(EXPLAINED, *rows), "without", with_references=True)
    assert texts.others == ["reference 0", "reference 1", "reference 2"]


def test_a_row_without_a_usable_explanation_can_stop_the_run():
    with pytest.raises(UserError, match=r"got none of 1 in row 1 \(ended by stop\)"):
        texts_to_judge(table(EXPLAINED, *EXPLANATIONS), "error")
    texts_to_judge(table(EXPLAINED, EXPLANATIONS[0], EXPLANATIONS[2]), "error")


def test_what_was_scored_is_written_beside_its_row():
    explained = table(EXPLAINED, {}, {"sample": 1})
    found, _, metrics = scored_batch(explained, SCORES, TEMPLATE, {"gold": [1.0, 0.0], "length": [3.0, 4.0]}, "esfp",
                                     "abcd")
    rows = check(found, SCORED).to_pylist()
    assert found.select(EXPLAINED.names).equals(explained)
    assert rows[0]["slot_probabilities"] == [0.25, 0.75, 0.5, 0.25, 0.25]    # without the class that level lacks
    assert rows[1]["slot_probabilities"] == [1.0, 0.0, 0.0, 0.0, 1.0]
    assert [row["slot_scores"] for row in rows] == [[0.75, 0.625], [0.0, 0.0]]
    assert [row["slot_entropy"] for row in rows] == [[0.5, 1.0], [0.0, 0.0]]
    assert [row["reward"] for row in rows] == [1.375, 0.0]
    for column in ("reward_parts", "reward_terms"):
        assert [row[column] for row in rows] == [[("esfp", 1.375)], [("esfp", 0.0)]]
    assert rows[1]["judge_verdicts"] == [("gold", 0.0), ("length", 4.0)]
    assert [row["reward_version"] for row in rows] == ["abcd", "abcd"]
    assert values(metrics) == {"slot_inputs_cut": 1.0, "judged_without_explanation": 2.0, "scored_bytes": found.nbytes}


def test_the_driver_gets_the_small_columns_and_the_number_of_tokens():
    explained = table(EXPLAINED, {"completion_ids": [4], "rollout_logprobs": [-1.0]}, {})
    found, summary, _ = scored_batch(explained, SCORES, TEMPLATE, {}, "esfp", "abcd")
    assert summary.schema.names == [*SUMMARY_COLUMNS, "num_completion_tokens", "newest_policy_version"]
    assert summary["num_completion_tokens"].to_pylist() == [1, 3]
    assert summary.select(list(SUMMARY_COLUMNS)).equals(found.select(list(SUMMARY_COLUMNS)))
    assert summary["judge_verdicts"].to_pylist() == [[], []]


def test_the_newest_version_is_that_of_the_last_token_whatever_the_table_is_cut_from():
    rows = table(SCORED, {"policy_versions": [3, 3, 4], "policy_version": 3},
                 {"completion_ids": [], "rollout_logprobs": [], "policy_versions": [], "policy_version": 5},
                 {"completion_ids": [4], "rollout_logprobs": [-1.0], "policy_versions": [7], "policy_version": 7})
    assert small_columns(rows)["newest_policy_version"].to_pylist() == [4, 5, 7]
    assert small_columns(rows.slice(1))["newest_policy_version"].to_pylist() == [5, 7]
    assert small_columns(pa.concat_tables([rows, rows]).slice(2, 2))["newest_policy_version"].to_pylist() == [7, 4]


def test_a_scalar_reward_has_no_probabilities():
    scored = Scored(torch.zeros(2, 1, 0), torch.tensor([[2.5], [-1.0]]), torch.zeros(2, 1), torch.tensor([2.5, -1.0]),
                    0, 0)
    template = SlotTemplate("{completion}", [], 64, head="scalar")
    for given in (template, None):
        rows = scored_batch(table(EXPLAINED), scored, given, {}, "esfp", "abcd")[0].to_pylist()
        assert [row["slot_probabilities"] for row in rows] == [[], []]
        assert [row["slot_scores"] for row in rows] == [[2.5], [-1.0]]


def test_scores_of_another_number_of_rows_are_refused():
    with pytest.raises(ValueError):
        scored_batch(table(EXPLAINED, {}, {}, {}), SCORES, TEMPLATE, {"gold": [1.0] * 3}, "esfp", "abcd")


@pytest.mark.parametrize("reward", [math.nan, math.inf])
def test_a_judge_that_says_no_number_is_refused_by_row(reward):
    scores = dataclasses.replace(SCORES, reward=torch.tensor([1.0, reward]))
    with pytest.raises(UserError, match=rf"values of reward part esfp must be finite, got {reward} in row 1 "
                                        r"\(group_id 7, sample 4\)"):
        scored_batch(table(EXPLAINED, {}, {"sample": 4}), scores, TEMPLATE, {}, "esfp", "abcd")


JUDGE, NO_JUDGE = RewardConfig(model="folder"), RewardConfig(model=None)    # type: ignore[arg-type]
GROUPS = [{"group_id": group, "sample": sample} for group in (7, 9) for sample in (0, 1)]
BESIDE = [RewardPartConfig(kind="rouge", weight=0.5), RewardPartConfig(kind="bleu", transform="rank")]


def judged(rows=GROUPS, rewards=(1.0, 2.0, 3.0, 4.0), part="esfp"):
    """SCORED rows of a judge that has said `rewards`."""
    num_rows = len(rows)
    scores = Scored(torch.full((num_rows, 1, 2), 0.5), torch.full((num_rows, 1), 0.25), torch.ones(num_rows, 1),
                    torch.tensor(rewards), 0, 0)
    template = SlotTemplate("{completion} [level]", [LEVEL], 64)
    return scored_batch(table(EXPLAINED, *rows), scores, template, {"gold": list(rewards)}, part, f"of {part}")[0]


def said(values, rows=GROUPS, version="abcd"):
    return parts_table(table(ROLLOUT, *rows), values, version)


def test_what_parts_said_is_a_row_for_each_of_them_and_each_rollout():
    rows = check(said({"a": [1.0, None, 3.0, 4.0], "b": [0.5] * 4}), PARTS).to_pylist()
    assert len(rows) == 8
    assert rows[1] == {"group_id": 7, "sample": 1, "part": "a", "value": None, "reward_version": "abcd"}
    assert said({}).num_rows == 0


def test_all_parts_make_one_reward_by_hand():
    plan = plan_rewards(JUDGE, BESIDE)
    values_of = {"rouge": [0.5, 0.0, 1.0, None], "bleu": [0.1, 0.2, 0.4, 0.3]}
    found, summary, metrics = combine_scored([judged()], [said(values_of)], plan)
    rows = check(found, SCORED).to_pylist()
    # Weights 1, 0.5 and 1; bleu as ranks 0, 1, 1, 0. Row 3 lacks rouge: 2.5 / 2 * (4 + 0).
    assert [row["reward"] for row in rows] == [1.25, 3.0, 4.5, 5.0]
    assert rows[0]["reward_parts"] == [("esfp", 1.0), ("rouge", 0.5), ("bleu", pytest.approx(0.1))]
    assert rows[0]["reward_terms"] == [("esfp", 1.0), ("rouge", 0.5), ("bleu", 0.0)]
    assert rows[3]["reward_terms"] == [("esfp", 4.0), ("bleu", 0.0)]
    assert summary.select(list(SUMMARY_COLUMNS)).equals(found.select(list(SUMMARY_COLUMNS)))
    assert values(metrics)["absent_rouge"] == 1.0


def test_the_rest_of_a_judged_row_is_kept():
    before = judged()
    after = combine_scored([before], [said({"rouge": [0.0] * 4, "bleu": [0.0] * 4})], plan_rewards(JUDGE, BESIDE))[0]
    changed = {"reward", "reward_parts", "reward_terms", "reward_version"}
    kept = [name for name in SCORED.names if name not in changed]
    assert after.select(kept).equals(before.select(kept))


def test_one_plain_judge_is_combined_to_what_it_said():
    before = judged()
    after = combine_scored([before], [], plan_rewards(JUDGE, []))[0].drop_columns(["reward_version"])
    assert after.equals(before.drop_columns(["reward_version"]))


def test_a_second_judge_is_a_part_and_leaves_the_slots_to_the_first():
    plan = plan_rewards(JUDGE, [RewardPartConfig(name="second", weight=-1.0, options={"model": "other"})])
    found = combine_scored([judged()], [judged(rewards=(0.5, 0.5, 1.0, 1.0), part="second")], plan)[0]
    assert found["reward"].to_pylist() == [0.5, 1.5, 2.0, 3.0]
    assert [dict(row)["gold"] for row in found["judge_verdicts"].to_pylist()] == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("schema", [ROLLOUT, EXPLAINED])
def test_without_a_judge_rollouts_are_scored_by_the_other_parts(schema):
    plan = plan_rewards(NO_JUDGE, BESIDE)
    parts = [said({"rouge": [1.0] * 4}), said({"bleu": [0.1, 0.2, 0.3, 0.4]}, version="efgh")]
    found, _, _ = combine_scored([table(schema, *GROUPS)], parts, plan, {"gold": [1.0, 0.0, 1.0, 0.0]})
    rows = check(found, SCORED).to_pylist()
    assert [row["reward"] for row in rows] == [0.5, 1.5, 0.5, 1.5]
    assert rows[0]["slot_probabilities"] == rows[0]["slot_scores"] == rows[0]["slot_entropy"] == []
    assert [row["judge_verdicts"] for row in rows] == [[("gold", 1.0)], [("gold", 0.0)]] * 2


def test_neither_order_nor_split_of_the_parts_matters():
    plan = plan_rewards(JUDGE, BESIDE)
    values_of = {"rouge": [0.5, 0.0, 1.0, None], "bleu": [0.1, 0.2, 0.4, 0.3]}
    whole = said(values_of)
    expected = combine_scored([judged()], [whole], plan)[0]
    pieces = [whole.take([row]) for row in (5, 1, 7, 0, 3, 6, 2, 4)]
    assert combine_scored([judged()], pieces, plan)[0].equals(expected)
    batches = [judged().slice(0, 2), judged().slice(2)]
    assert combine_scored(batches, [whole], plan)[0].equals(expected)
    by_group = [combine_scored([batches[half]], [whole.slice(2 * half, 2), whole.slice(4 + 2 * half, 2)], plan)[0]
                for half in (0, 1)]
    assert pa.concat_tables(by_group).combine_chunks().equals(expected)


def test_the_order_of_the_rows_changes_no_bit():
    plan = plan_rewards(JUDGE, [dataclasses.replace(BESIDE[0], transform="log_sigmoid"), BESIDE[1]])
    values_of = {"rouge": [0.3, 0.7, 0.1, 0.9], "bleu": [0.1, 0.2, 0.4, 0.3]}
    whole = combine_scored([judged()], [said(values_of)], plan)[0]
    order = [2, 0, 3, 1]
    assert combine_scored([judged().take(order)], [said(values_of)], plan)[0].equals(whole.take(order))


def test_the_version_follows_every_part_and_the_plan():
    def version(parts, plan):
        found = combine_scored([judged()], parts, plan)[0]["reward_version"].unique().to_pylist()
        assert len(found) == 1 and len(found[0]) == 16
        return found[0]

    values_of = {"rouge": [0.0] * 4, "bleu": [0.0] * 4}
    plan, other = plan_rewards(JUDGE, BESIDE), plan_rewards(JUDGE, [BESIDE[1], BESIDE[0]])
    first = version([said(values_of)], plan)
    assert first == version([said(values_of | {"rouge": [1.0] * 4})], plan)
    assert len({first, version([said(values_of, version="new")], plan), version([said(values_of)], other)}) == 3


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], r"part rouge must be there for every row, got none for 4 of 4, first group_id 7, sample 0"),
        ([said({"rouge": [1.0] * 4, "bleu": [1.0] * 4}).slice(0, 7)],
         r"part bleu must be there for every row, got none for 1 of 4, first group_id 9, sample 1"),
        ([said({"rouge": [1.0] * 4}), said({"rouge": [1.0] * 4})],
         "part rouge must judge a row once, got two values for group_id 7, sample 0"),
        ([said({"rougeL": [1.0] * 4})],
         r"values must be of a part of the plan \(esfp, rouge, bleu\) and a row of the batch, got part rougeL for"),
        ([said({"rouge": [1.0]}, rows=[{"group_id": 8}])], "got part rouge for group_id 8, sample 0"),
    ],
)
def test_nothing_is_dropped_when_parts_are_joined(parts, message):
    with pytest.raises(ValueError, match=message):
        combine_scored([judged()], parts, plan_rewards(JUDGE, BESIDE))


def test_rows_that_are_there_twice_are_refused():
    with pytest.raises(ValueError, match="rows to combine must be there once, got 8 of 4 rollouts"):
        combine_scored([judged(), judged()], [], plan_rewards(JUDGE, []))


def test_what_no_part_judged_is_refused_by_row():
    with pytest.raises(UserError, match=r"rewards must judge every row by one part at least, got none in 1 of 4 rows, "
                                        r"first in row 2 \(group_id 9, sample 0\)"):
        combine_scored([table(ROLLOUT, *GROUPS)], [said({"rouge": [1.0, 1.0, None, 1.0]})],
                       plan_rewards(NO_JUDGE, BESIDE[:1]))
