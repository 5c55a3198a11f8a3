import itertools
import math

import numpy as np
import pytest

from rlaif.reward_evaluation.metrics import label_metrics, pair_metrics, rating_metrics, within_prompt_accuracy


def test_label_metrics_by_hand():
    probabilities = [[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]]
    got = label_metrics(probabilities, [0, 1, 1, 2], ["no", "maybe", "yes"], num_bins=1)
    classes = got.pop("classes")
    log_loss = -(math.log(0.7) + math.log(0.3) + math.log(0.8) + math.log(0.6)) / 4
    assert got == pytest.approx({"num_rows": 4, "accuracy": 0.75, "log_loss": log_loss, "ece": 0.75 - 2.6 / 4})
    assert classes["no"] == pytest.approx({"num_rows": 1, "num_predicted": 2, "precision": 0.5, "recall": 1.0,
                                           "f1": 2 / 3, "mean_probability": 0.375})
    assert classes["maybe"] == pytest.approx({"num_rows": 2, "num_predicted": 1, "precision": 1.0, "recall": 0.5,
                                              "f1": 2 / 3, "mean_probability": 0.375})
    assert list(classes) == ["no", "maybe", "yes"]


def test_a_class_that_never_occurs_has_no_recall_and_one_never_predicted_no_precision():
    classes = label_metrics([[0.9, 0.1, 0.0], [0.8, 0.2, 0.0]], [0, 1], "abc")["classes"]
    assert classes["b"]["precision"] is None and classes["b"]["recall"] == 0 and classes["b"]["f1"] == 0
    assert classes["c"]["precision"] is classes["c"]["recall"] is classes["c"]["f1"] is None


def test_rows_of_tied_classes_are_shared_so_that_an_ignorant_model_is_at_chance():
    got = label_metrics(np.full((6, 3), 1 / 3), [0, 1, 2] * 2, "abc")
    assert got["accuracy"] == pytest.approx(1 / 3) and got["ece"] == pytest.approx(0)
    assert got["log_loss"] == pytest.approx(math.log(3))
    assert [part["num_predicted"] for part in got["classes"].values()] == pytest.approx([2, 2, 2])


def test_label_metrics_do_not_depend_on_the_order_of_rows_or_classes():
    rng = np.random.default_rng(0)
    probabilities, labels = rng.dirichlet([1, 1, 1], 50), rng.integers(0, 3, 50)
    once = label_metrics(probabilities, labels, "abc")
    order = rng.permutation(50)
    moved = label_metrics(probabilities[order][:, [2, 0, 1]], (labels[order] + 1) % 3, "cab")
    for name in "abc":
        assert moved["classes"][name] == pytest.approx(once["classes"][name])
    assert {k: v for k, v in moved.items() if k != "classes"} == pytest.approx(
        {k: v for k, v in once.items() if k != "classes"})


def test_a_label_held_impossible_costs_infinity():
    assert label_metrics([[1.0, 0.0]], [1], "ab")["log_loss"] == math.inf


def test_class_names_must_fit():
    with pytest.raises(ValueError, match=r"class_names must be 2 different names, got \['a', 'a'\]"):
        label_metrics([[0.5, 0.5]], [0], ["a", "a"])


def test_pair_metrics_by_hand():
    three = math.log(3.0)                                   # sigmoid 3/4
    got = pair_metrics([three, -three, 0.0, three, 0.0], [1, 1, 1, 0.5, 0.5], num_bins=1)
    tie = (math.log(4 / 3) + math.log(4)) / 2
    assert got == pytest.approx({
        "num_rows": 5, "num_equal": 2, "num_undecided": 2, "accuracy": (1 + 0 + 0.5) / 3, "mean_margin": 0.0,
        "log_loss": (math.log(4 / 3) + math.log(4) + math.log(2) + tie + math.log(2)) / 5,
        "ece": abs(0.5 - (0.75 + 0.75 + 0.5) / 3)})


def test_pair_metrics_agree_with_plain_python_and_with_swapped_sides():
    rng = np.random.default_rng(0)
    margins, targets = 2 * rng.standard_normal(200), rng.choice([0, 0.5, 1], 200)
    got = pair_metrics(margins, targets, temperature=1.7)
    rows = list(zip(margins.tolist(), targets.tolist(), strict=True))
    sigmoid = lambda m: 1 / (1 + math.exp(-m / 1.7))  # noqa: E731
    assert got["log_loss"] == pytest.approx(
        -sum(t * math.log(sigmoid(m)) + (1 - t) * math.log(sigmoid(-m)) for m, t in rows) / 200)
    decided = [(m, t) for m, t in rows if t != 0.5]
    assert got["accuracy"] == pytest.approx(sum((m > 0) == (t == 1) for m, t in decided) / len(decided))
    assert pair_metrics(-margins, 1 - targets, temperature=1.7) == pytest.approx(got)


def test_temperature_moves_log_loss_but_neither_accuracy_nor_margin():
    margins, targets = [5.0, 3.0, -4.0], [1, 1, 1]
    cold, warm = pair_metrics(margins, targets), pair_metrics(margins, targets, temperature=10.0)
    assert warm["log_loss"] < cold["log_loss"]
    assert all(cold[name] == warm[name] for name in ("accuracy", "mean_margin", "num_equal"))


def test_undecided_pairs_alone_have_no_accuracy():
    got = pair_metrics([1.0, -1.0], [0.5, 0.5])
    assert got["accuracy"] is got["ece"] is got["mean_margin"] is None and got["log_loss"] > math.log(2)


@pytest.mark.parametrize(("margins", "targets", "temperature", "message"), [
    ([], [], 1, "margins and targets must be lists of one length >= 1"),
    ([1.0], [0.7], 1, "targets must be 0, 0.5 or 1, got 0.7"),
    ([math.nan], [1], 1, "margins must be finite, got nan in row 0"),
    ([1.0], [1], 0, "temperature must be > 0, got 0"),
])
def test_bad_pairs_are_refused(margins, targets, temperature, message):
    with pytest.raises(ValueError, match=message):
        pair_metrics(margins, targets, temperature)


def test_rating_metrics_by_hand():
    got = rating_metrics([1.0, 2.0, 2.0, 5.0], [1, 3, 2, 4], ["p", "p", "p", "q"])
    # the two pairs of p beside (3, 2): right, right; (3, 2) itself has equal scores
    assert got.pop("spearman") == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert got == pytest.approx({"num_rows": 4, "kendall": 5 / math.sqrt(5 * 6), "mean_absolute_error": 0.5,
                                 "pair_accuracy": 2.5 / 3, "num_pairs": 3})
    assert "num_pairs" not in rating_metrics([1, 2], [1, 2])


def test_pairs_within_prompts_agree_with_plain_python():
    rng = np.random.default_rng(0)
    scores, ratings = rng.integers(0, 6, 200), rng.integers(1, 6, 200)
    prompts = rng.integers(0, 30, 200).tolist()
    points, pairs = 0.0, 0
    for i, j in itertools.permutations(range(200), 2):
        if prompts[i] == prompts[j] and ratings[i] > ratings[j]:
            pairs += 1
            points += 1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0
    accuracy, num_pairs = within_prompt_accuracy(scores, ratings, prompts)
    assert num_pairs == pairs and accuracy == pytest.approx(points / pairs)


def test_a_score_added_to_every_response_of_a_prompt_changes_no_pair():
    rng = np.random.default_rng(1)
    scores, ratings, prompts = rng.standard_normal(100), rng.integers(1, 6, 100), rng.integers(0, 10, 100)
    shifted = scores + 100 * prompts
    assert within_prompt_accuracy(shifted, ratings, prompts.tolist()) == within_prompt_accuracy(
        scores, ratings, prompts.tolist())


def test_without_two_ratings_of_a_prompt_there_is_no_pair():
    assert within_prompt_accuracy([1, 2, 3], [3, 3, 1], ["a", "a", "b"]) == (None, 0)
