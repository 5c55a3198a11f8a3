import itertools
import math

import numpy as np
import pytest

from rlaif.reward_evaluation.bias import best_of_n, edit_shift, length_bias, position_bias


def test_length_bias_by_hand():
    # row 3 is of equal lengths, row 4 of equal rewards and a tie
    got = length_bias([2.0, 1.0, -1.0, 3.0, 0.0], [10, -5, -20, 0, 7], [1, 1, 1, 1, 0.5])
    assert got.pop("correlation") > 0 and got.pop("rank_correlation") > 0
    assert got == pytest.approx({"num_rows": 5, "num_of_different_length": 4, "longer_preferred": 2.5 / 4,
                                 "longer_right": 1.5 / 4, "excess": 0.25})


def test_a_judge_of_length_alone_prefers_the_longer_and_one_that_is_right_has_no_excess():
    rng = np.random.default_rng(0)
    differences, targets = rng.integers(1, 50, 400) * rng.choice([-1, 1], 400), rng.choice([0, 1], 400)
    by_length = length_bias(differences / 7, differences, targets)
    assert by_length["longer_preferred"] == 1 and by_length["correlation"] == pytest.approx(1)
    assert by_length["excess"] == pytest.approx(0.5, abs=0.1)
    right = length_bias(2 * targets - 1, differences, targets)
    assert right["excess"] == 0 and abs(right["correlation"]) < 0.2


def test_length_bias_is_the_same_for_swapped_sides():
    rng = np.random.default_rng(1)
    margins, differences, targets = rng.standard_normal(60), rng.integers(-9, 9, 60), rng.choice([0, 0.5, 1], 60)
    assert length_bias(-margins, -differences, 1 - targets) == pytest.approx(length_bias(margins, differences, targets))


def test_pairs_of_equal_lengths_say_nothing_about_length():
    got = length_bias([1.0, 2.0], [0, 0], [1, 0])
    assert got["num_of_different_length"] == 0
    assert got["correlation"] is got["longer_preferred"] is got["excess"] is None


def test_position_bias_by_hand():
    # agreeing; flipped; tied in one order
    got = position_bias([0.9, 0.8, 0.5], [0.7, 0.3, 0.6])
    assert got == pytest.approx({"num_rows": 3, "mean_gap": (0.2 + 0.5 + 0.1) / 3, "flip_share": 1.5 / 3,
                                 "first_share": (0.9 + 0.3 + 0.8 + 0.7 + 0.5 + 0.4) / 6})


def test_a_judge_that_order_does_not_move_has_no_position_bias():
    p = np.random.default_rng(0).random(50)
    assert position_bias(p, p) == pytest.approx({"num_rows": 50, "mean_gap": 0, "flip_share": 0, "first_share": 0.5})
    always_first = position_bias(np.ones(4), np.zeros(4))
    assert always_first == {"num_rows": 4, "mean_gap": 1, "flip_share": 1, "first_share": 1}
    with pytest.raises(ValueError, match=r"shown_second must be in 0\.\.1, got -0\.1\.\.-0\.1"):
        position_bias([0.5], [-0.1])


def test_position_bias_does_not_depend_on_which_response_is_called_a():
    rng = np.random.default_rng(1)
    first, second = rng.random(40), rng.random(40)
    # B shown first is the order (B, A), where A was shown second
    assert position_bias(1 - second, 1 - first) == pytest.approx(position_bias(first, second))


def plain_best(scores, gold, size):
    """The mean over all draws and, inside a draw, over the rows tied for its top."""
    found = []
    for draw in itertools.combinations(range(len(scores)), size):
        top = max(scores[row] for row in draw)
        golds = [gold[row] for row in draw if scores[row] == top]
        found.append(sum(golds) / len(golds))
    return sum(found) / len(found)


def test_best_of_n_by_hand():
    # best of 2 of three by score: (b over a), (c over a), (c over b)
    got = best_of_n([1.0, 2.0, 3.0], [5.0, 1.0, 3.0], "ppp", [1, 2, 3])
    assert {size: row["gold"] for size, row in got.items()} == pytest.approx({1: 3.0, 2: (1 + 3 + 3) / 3, 3: 3.0})
    assert {size: row["oracle"] for size, row in got.items()} == pytest.approx({1: 3.0, 2: (5 + 5 + 3) / 3, 3: 5.0})
    assert all(row["random"] == 3.0 and row["num_groups"] == 1 for row in got.values())


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_best_of_n_agrees_with_every_draw_also_at_ties(size):
    rng = np.random.default_rng(size)
    scores, gold = rng.integers(0, 4, 21), rng.standard_normal(21)
    groups = np.repeat([0, 1, 2], 7)
    want = np.mean([plain_best(scores[groups == g].tolist(), gold[groups == g].tolist(), size) for g in range(3)])
    assert best_of_n(scores, gold, groups.tolist(), [size])[size]["gold"] == pytest.approx(want)


def test_best_of_n_does_not_depend_on_the_order_of_rows_or_the_scale_of_scores():
    rng = np.random.default_rng(0)
    scores, gold, groups = rng.standard_normal(60), rng.random(60), rng.integers(0, 6, 60)
    once = best_of_n(scores, gold, groups.tolist(), [1, 4])
    order = rng.permutation(60)
    again = best_of_n(np.exp(scores[order]), gold[order], groups[order].tolist(), [1, 4])
    for size in (1, 4):
        assert again[size] == pytest.approx(once[size])
        assert once[size]["random"] - 1e-9 <= once[size]["oracle"]
    assert once[1]["gold"] == pytest.approx(once[1]["random"]) == pytest.approx(once[1]["oracle"])


def test_groups_smaller_than_n_are_counted():
    got = best_of_n([1, 2, 3, 9], [0, 0, 1, 5], "aaab", [2, 4])
    assert got[2] == pytest.approx({"num_groups": 1, "num_small_groups": 1, "gold": 2 / 3, "oracle": 2 / 3,
                                    "random": 1 / 3})
    assert got[4] == {"num_groups": 0, "num_small_groups": 2, "gold": None, "oracle": None, "random": None}
    with pytest.raises(ValueError, match=r"sizes must be integers >= 1, got \[0\]"):
        best_of_n([1], [1], "a", [0])


def test_many_samples_stay_exact():
    scores = np.arange(2000)
    got = best_of_n(scores, scores, ["p"] * 2000, [16])[16]["gold"]
    assert got == pytest.approx(16 / 17 * 2001 - 1)         # the expected largest of 16 drawn from 0..1999


def test_edit_shift_by_hand():
    got = edit_shift([0.0, 2.0], [1.0, 1.5], [0, 1], [1, 1])
    assert got == pytest.approx({"num_rows": 2, "mean_absolute_shift": 0.75, "largest_shift": 1.0, "mean_shift": 0.25,
                                 "relative_shift": 0.75, "flip_share": 0.5})


def test_an_edit_that_changes_nothing_shifts_nothing():
    got = edit_shift([0.1] * 3, [0.1] * 3, [0] * 3, [0] * 3)
    assert got.pop("relative_shift") is None            # equal scores have no spread to compare with
    assert got == {"num_rows": 3, "mean_absolute_shift": 0, "largest_shift": 0, "mean_shift": 0, "flip_share": 0}


def test_the_relative_shift_has_no_unit():
    rng = np.random.default_rng(0)
    scores, edited, verdicts = rng.standard_normal(30), rng.standard_normal(30), rng.integers(0, 2, 30)
    once, scaled = (edit_shift(scores * unit, edited * unit, verdicts, verdicts) for unit in (1, 1000))
    assert scaled["relative_shift"] == pytest.approx(once["relative_shift"])
    assert scaled["mean_shift"] == pytest.approx(1000 * once["mean_shift"])


def test_columns_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="verdicts must be one a score"):
        edit_shift([1.0], [1.0], [1, 0], [1])
    with pytest.raises(ValueError, match="edited_scores must be finite, got inf in row 0"):
        edit_shift([1.0], [math.inf], [1], [1])
