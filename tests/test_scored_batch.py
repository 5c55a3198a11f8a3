import pytest
import torch

from rlaif.batch import EXPLAINED, ROLLOUT, SCORED, SUMMARY_COLUMNS, check
from rlaif.config import UserError
from rlaif.metrics import values
from rlaif.reward_model import Scored
from rlaif.scored_batch import scored_batch, texts_to_judge, without_explanations
from rlaif.slots import Slot, SlotTemplate
from tests.batch_examples import table

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
    assert [row["reward_parts"] for row in rows] == [[("esfp", 1.375)], [("esfp", 0.0)]]
    assert rows[1]["judge_verdicts"] == [("gold", 0.0), ("length", 4.0)]
    assert [row["reward_version"] for row in rows] == ["abcd", "abcd"]
    assert values(metrics) == {"slot_inputs_cut": 1.0, "judged_without_explanation": 2.0}


def test_the_driver_gets_the_small_columns_and_the_number_of_tokens():
    explained = table(EXPLAINED, {"completion_ids": [4], "rollout_logprobs": [-1.0]}, {})
    found, summary, _ = scored_batch(explained, SCORES, TEMPLATE, {}, "esfp", "abcd")
    assert summary.schema.names == [*SUMMARY_COLUMNS, "num_completion_tokens"]
    assert summary["num_completion_tokens"].to_pylist() == [1, 3]
    assert summary.select(list(SUMMARY_COLUMNS)).equals(found.select(list(SUMMARY_COLUMNS)))
    assert summary["judge_verdicts"].to_pylist() == [[], []]


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
