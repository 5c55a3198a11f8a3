import json
import math

import numpy as np
import pyarrow as pa
import pytest

from rlaif.batch import JUDGED, from_rows
from rlaif.esfp.slots import Slot, SlotTemplate
from rlaif.reward_evaluation.edits import harmless_edits
from rlaif.reward_evaluation.evaluation import (
    SMALLEST_PROBABILITY,
    EvaluationOptions,
    edited_rows,
    evaluate,
    evaluate_edits,
    headline,
    preference_margins,
)
from rlaif.reward_evaluation.report import write_evaluation
from rlaif.reward_evaluation.scored_rows import SCORED_ROWS

VERDICT = SlotTemplate("{prompt} {completion} [good]", [Slot("good", [["yes"], ["no"]], [1.0, 0.0])], 32)
LEVEL = SlotTemplate("{prompt} {completion} [level]",
                     [Slot("level", [["one"], ["two"], ["three"]], [1.0, 2.0, 3.0], kind="ordinal")], 32)
SCALAR = SlotTemplate("{prompt} {completion}", [], 32, head="scalar")
PAIRWISE = SlotTemplate("{prompt} {completion} {other} [better]", [
    Slot("better", [["first"], ["same"], ["second"]], [1.0, 0.5, 0.0], kind="pairwise")], 32)
FEW = EvaluationOptions(num_bootstraps=50)


def judged(*rows):
    return from_rows([{"prompt": f"p{number}", "completion": "c", "explanations": [], "other": None,
                       "other_explanations": [], "labels": [-1], "preference": -1.0, "source": "s"} | row
                      for number, row in enumerate(rows)], JUDGED)


def said(rows, *scores):
    """SCORED_ROWS of `rows`; what is not said of one is null or empty."""
    return from_rows([{"row": number, "id": str(number), "reward": 0.0, "probabilities": [], "other_reward": None,
                       "other_probabilities": None, "probabilities_first": None, "probabilities_second": None}
                      | {name: rows[name][number].as_py() for name in ("source", "labels", "preference")} | score
                      for number, score in enumerate(scores)], SCORED_ROWS)


def labelled():
    """Four rows: right, right, wrong, and one without a label."""
    rows = judged({"labels": [0], "source": "a"}, {"labels": [1], "source": "b"}, {"labels": [1], "source": "b"}, {})
    shares = [0.75, 0.25, 0.875, 0.5]
    return rows, said(rows, *({"reward": p, "probabilities": [p, 1 - p]} for p in shares))


def pair(preference, reward, other_reward, **row):
    return {"other": "x", "preference": preference, **row}, {"reward": reward, "other_reward": other_reward}


def paired(*pairs):
    rows = judged(*(row for row, _ in pairs))
    return rows, said(rows, *(score for _, score in pairs))


# --- labels


def test_figures_of_labels_are_of_the_labelled_rows_alone():
    found = evaluate(*labelled(), VERDICT, FEW)
    figures = found.figures["labels"]["good"]
    assert set(found.figures) == {"labels"}
    assert (figures["num_rows"], figures["accuracy"]) == (3, pytest.approx(2 / 3))
    assert figures["log_loss"] == pytest.approx(-(2 * math.log(0.75) + math.log(0.125)) / 3)
    # two rows of confidence 0.75, both right; one of 0.875, wrong
    assert figures["ece"] == pytest.approx((2 * 0.25 + 0.875) / 3)
    assert figures["classes"]["yes"]["num_rows"] == 1 and figures["classes"]["no"]["recall"] == 0.5
    assert figures["by_source"]["a"]["accuracy"] == 1.0 and figures["by_source"]["b"]["accuracy"] == 0.5
    assert sum(line["num_rows"] for line in figures["by_length"].values()) == 3
    assert sum(part.count for part in found.bins) == 3
    assert found.scores == {"yes": [0.75], "no": [0.25, 0.875]}


def test_every_slot_reads_its_own_probabilities():
    template = SlotTemplate("{prompt} {completion} [three] [two]", [
        Slot("three", [["a"], ["b"], ["c"]], [2.0, 1.0, 0.0]), Slot("two", [["d"], ["e"]], [1.0, 0.0])], 32)
    rows = judged({"labels": [2, -1]}, {"labels": [-1, 0]})
    scored = said(rows, {"probabilities": [0.25, 0.25, 0.5, 1.0, 0.0]}, {"probabilities": [1.0, 0.0, 0.0, 0.25, 0.75]})
    labels = evaluate(rows, scored, template, FEW).figures["labels"]
    assert labels["three"]["log_loss"] == pytest.approx(-math.log(0.5)) and labels["three"]["accuracy"] == 1.0
    assert labels["two"]["log_loss"] == pytest.approx(-math.log(0.25)) and labels["two"]["accuracy"] == 0.0


def test_an_interval_keeps_the_rows_of_a_prompt_together():
    """Ten rows of one prompt, right, and ten of another, wrong: two draws of prompts give 0, 1/2 or 1."""
    rows = judged(*({"prompt": "pq"[number // 10], "labels": [number // 10]} for number in range(20)))
    scored = said(rows, *[{"probabilities": [0.75, 0.25]}] * 20)
    interval = evaluate(rows, scored, VERDICT, EvaluationOptions(num_bootstraps=200)).figures["labels"]["good"][
        "accuracy_interval"]
    assert (interval.low, interval.high) == (0.0, 1.0)
    alone = judged(*({"labels": [number // 10]} for number in range(20)))
    narrow = evaluate(alone, scored, VERDICT, EvaluationOptions(num_bootstraps=200)).figures["labels"]["good"][
        "accuracy_interval"]
    assert 0.2 < narrow.low < 0.5 < narrow.high < 0.8


def test_ratings_are_compared_with_the_expected_value_of_an_ordinal_slot():
    rows = judged({"labels": [0]}, {"labels": [1]}, {"labels": [2]})
    scored = said(rows, {"probabilities": [0.5, 0.5, 0.0]}, {"probabilities": [0.0, 1.0, 0.0]},
                  {"probabilities": [0.0, 0.25, 0.75]})
    figures = evaluate(rows, scored, LEVEL, FEW).figures["ratings"]["level"]
    # expected 1.5, 2.0, 2.75 for 1, 2, 3
    assert figures["mean_absolute_error"] == pytest.approx(0.25) and figures["spearman"] == pytest.approx(1.0)


def test_best_of_n_is_measured_where_prompts_repeat_and_by_the_reward():
    rows = judged(*({"prompt": "same", "labels": [label]} for label in (0, 1, 1, 1)))
    scored = said(rows, *({"probabilities": [0.5, 0.5], "reward": reward} for reward in (3.0, 2.0, 1.0, 0.0)))
    table = evaluate(rows, scored, VERDICT, FEW).figures["best_of_n"]["good"]
    assert list(table) == ["2", "4"]
    # the one good response is among two of four in half of the draws, and then chosen
    assert table["2"]["gold"] == pytest.approx(0.5) and table["2"]["random"] == 0.25 and table["4"]["gold"] == 1.0
    assert "best_of_n" not in evaluate(*labelled(), VERDICT, FEW).figures


# --- pairs


def test_figures_of_pairs_are_of_the_difference_in_reward():
    found = evaluate(*paired(pair(1.0, 2.0, 1.0), pair(0.0, 3.0, 1.0), pair(1.0, 1.0, 1.0), pair(0.5, 5.0, 0.0)),
                     SCALAR, FEW)
    figures = found.figures["pairs"]
    assert figures["accuracy"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert (figures["num_rows"], figures["num_equal"], figures["num_undecided"]) == (4, 1, 1)
    losses = [math.log1p(math.exp(-1)), math.log1p(math.exp(2)), math.log(2),
              (math.log1p(math.exp(-5)) + math.log1p(math.exp(5))) / 2]
    assert figures["log_loss"] == pytest.approx(sum(losses) / 4)
    assert found.scores == {"preferred": [2.0, 1.0, 1.0], "other": [1.0, 1.0, 3.0]}
    assert sum(part.count for part in found.bins) == 3, "an undecided pair has no side to be right about"
    assert "position_bias" not in figures


def test_the_temperature_of_pairs_divides_the_difference():
    rows = paired(pair(1.0, 2.0, 1.0), pair(0.0, 3.0, 1.0))
    warm = evaluate(*rows, SCALAR, EvaluationOptions(num_bootstraps=50, pair_temperature=2.0)).figures["pairs"]
    assert warm["log_loss"] == pytest.approx((math.log1p(math.exp(-0.5)) + math.log1p(math.exp(1))) / 2)
    assert warm["temperature"] == 2.0 and warm["accuracy"] == 0.5


def test_turning_every_pair_round_changes_no_figure():
    rng = np.random.default_rng(0)
    pairs = [pair(float(rng.integers(0, 3)) / 2, *map(float, rng.normal(size=2)), completion="c" * rng.integers(1, 9),
                  other="x" * rng.integers(1, 9)) for _ in range(40)]
    turned = [({**row, "completion": row["other"], "other": row["completion"], "preference": 1 - row["preference"]},
               {"reward": score["other_reward"], "other_reward": score["reward"]}) for row, score in pairs]
    there, back = (evaluate(*paired(*some), SCALAR, FEW).figures["pairs"] for some in (pairs, turned))
    for name in ("accuracy", "log_loss", "ece", "mean_margin", "accuracy_interval", "fitted_temperature"):
        assert back[name] == pytest.approx(there[name]) if name != "accuracy_interval" else back[name] == there[name]
    assert back["length_bias"] == pytest.approx(there["length_bias"])


def test_length_bias_is_of_characters():
    figures = evaluate(*paired(pair(0.0, 1.0, 0.0, completion="long one"), pair(0.0, 0.0, 1.0, completion="")),
                       SCALAR, FEW).figures["pairs"]["length_bias"]
    assert figures["longer_preferred"] == 1.0 and figures["longer_right"] == 0.5 and figures["excess"] == 0.5


def test_a_pairwise_judge_is_measured_by_its_probabilities_and_by_both_orders():
    rows = judged({"other": "x", "preference": 1.0, "labels": [0]}, {"other": "x", "preference": 0.0, "labels": [2]})
    scored = said(rows, {"probabilities": [0.5, 0.5, 0.0], "probabilities_first": [1.0, 0.0, 0.0],
                         "probabilities_second": [0.0, 1.0, 0.0]},
                  {"probabilities": [0.25, 0.0, 0.75], "probabilities_first": [0.75, 0.0, 0.25],
                   "probabilities_second": [0.0, 0.0, 1.0]})
    found = evaluate(rows, scored, PAIRWISE, FEW).figures
    assert set(found) == {"pairs"}, "the labels of pairs say the same as their preferences"
    figures = found["pairs"]
    assert figures["accuracy"] == 1.0
    assert figures["log_loss"] == pytest.approx(-math.log(0.75)), "a tie counts half"
    # p is 1 and 0.75 shown first, 0.5 and 0 shown second; the second row's verdict flips, the first's by half
    assert figures["position_bias"] == {"num_rows": 2, "mean_gap": pytest.approx(0.625), "flip_share": 0.75,
                                        "first_share": pytest.approx((1 + 0.5 + 0.75 + 1) / 4)}


def test_slots_of_a_pairwise_judge_count_by_their_weights_and_a_certain_one_stays_finite():
    slots = [Slot(name, [["first"], ["second"]], [1.0, 0.0], weight=weight, kind="pairwise")
             for name, weight in (("better", 3.0), ("longer", -1.0))]
    template = SlotTemplate("{prompt} {completion} {other} [better] [longer]", slots, 32)
    rows = judged(*[{"other": "x", "preference": 1.0, "labels": [0, 0]}] * 2)
    scored = said(rows, {"probabilities": [0.75, 0.25, 1.0, 0.0]}, {"probabilities": [1.0, 0.0, 0.0, 1.0]})
    # 1/2 + (3 * 0.25 - 0.5) / 4
    assert preference_margins(scored, template).tolist() == pytest.approx(
        [math.log(0.5625 / 0.4375), math.log((1 - SMALLEST_PROBABILITY) / SMALLEST_PROBABILITY)])


# --- edits


def test_every_row_is_edited_in_every_way_that_changes_it():
    rows = judged({"completion": "A cat sits."}, {"completion": ""}, {"completion": "a dog", "other": "x",
                                                                     "other_explanations": ["why x"]})
    edited = edited_rows(rows, VERDICT, 10, seed=0)
    assert set(edited.names) == set(harmless_edits()) and set(edited.origins) == {0, 2}, "a blank one stays"
    texts = dict(zip(zip(edited.names, edited.origins, strict=True), edited.rows["completion"].to_pylist(),
                     strict=True))
    assert texts["claimed_answer", 0] == "A cat sits. The answer is yes."
    assert ("lower_case", 2) not in texts and texts["upper_case", 2] == "A DOG"
    assert edited.rows["other"].null_count == edited.rows.num_rows
    whole = edited_rows(rows, PAIRWISE, 10, seed=0)
    assert whole.rows.filter(pa.array([origin == 2 for origin in whole.origins]))["other"].null_count == 0


def test_the_rows_to_edit_are_drawn_by_the_seed():
    rows = judged(*({"completion": f"text {number}"} for number in range(50)))
    draws = [set(edited_rows(rows, VERDICT, 5, seed=seed).origins) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2] and len(draws[0]) == 5
    assert edited_rows(judged({"completion": " "}), VERDICT, 5, seed=0).rows.num_rows == 0


def test_an_edit_shifts_the_score_and_may_flip_the_verdict():
    rows, scored = labelled()
    edited = edited_rows(rows, VERDICT, 4, seed=0)
    after = said(edited.rows, *({"reward": 1.0, "probabilities": [1.0, 0.0]} if name == "praise" else
                                {"reward": scored["reward"][origin].as_py(),
                                 "probabilities": scored["probabilities"][origin].as_py()}
                                for name, origin in zip(edited.names, edited.origins, strict=True)))
    figures = evaluate_edits(edited, after, scored, VERDICT)
    assert figures["praise"]["mean_shift"] == pytest.approx((0.25 + 0.75 + 0.125 + 0.5) / 4)
    assert figures["praise"]["flip_share"] == 0.25, "only the second row was judged bad"
    assert figures["leading_space"]["largest_shift"] == figures["leading_space"]["flip_share"] == 0


def test_the_verdict_on_an_edited_side_of_a_pair_is_against_the_other_side_as_it_was():
    rows, scored = paired(pair(1.0, 2.0, 1.0), pair(1.0, 0.0, 5.0))
    edited = edited_rows(rows, SCALAR, 2, seed=0)
    after = said(edited.rows, *({"reward": 0.5} for _ in edited.names))
    figures = evaluate_edits(edited, after, scored, SCALAR)["praise"]
    assert figures["flip_share"] == 0.5 and figures["mean_shift"] == pytest.approx((-1.5 + 0.5) / 2)


# --- what is made of the figures


def test_the_table_that_closes_a_run_has_a_line_for_each_slot_and_the_pairs():
    rows = judged({"labels": [0]}, {"other": "x", "preference": 1.0})
    scored = said(rows, {"reward": 0.75, "probabilities": [0.75, 0.25]},
                  {"reward": 0.5, "probabilities": [0.5, 0.5], "other_reward": 0.25, "other_probabilities": [0.2, 0.8]})
    head, first, second = headline(evaluate(rows, scored, VERDICT, FEW).figures)
    assert head.split() == ["rows", "accuracy", "95", "%", "interval", "log-loss", "ECE"]
    assert first.split() == ["labels", "of", "good", "1", "1.000", "1.000", "to", "1.000", "0.288", "0.250"]
    assert second.split()[:2] == ["pairs", "1"] and len(head) == len(first) == len(second)


def test_figures_fit_the_report(tmp_path):
    found = evaluate(*labelled(), VERDICT, FEW)
    names = {path.name for path in write_evaluation(tmp_path, found.figures, bins=found.bins, scores=found.scores)}
    assert names == {"evaluation.json", "evaluation.md", "reliability.png", "scores.png"}
    assert json.loads((tmp_path / "evaluation.json").read_text())["labels"]["good"]["num_rows"] == 3
    ties = evaluate(*paired(pair(0.5, 1.0, 1.0)), SCALAR, FEW)
    assert ties.figures["pairs"]["accuracy"] is None and ties.bins == []
    assert "-" in headline(ties.figures)[1].split()
