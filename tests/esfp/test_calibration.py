import math

import numpy as np
import pytest

from rlaif.esfp.calibration import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    Bin,
    expected_calibration_error,
    fit_prior,
    fit_score_temperature,
    fit_temperature,
    log_sigmoid,
    reliability,
    top_label,
)

INF, NAN = math.inf, math.nan


def softmax(logits):
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def nll(logits, labels, temperature):
    """Row by row in plain Python."""
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        scaled = [z / temperature for z in row]
        total += max(scaled) + math.log(sum(math.exp(z - max(scaled)) for z in scaled)) - scaled[label]
    return total


# Temperatures


def test_a_temperature_by_hand():
    # three of four rows are right with a logit of 2 ahead: 3/4 = sigmoid(2 / T)
    logits = np.array([[2.0, 0.0]] * 4)
    assert fit_temperature(logits, np.array([0, 0, 0, 1])) == pytest.approx(2 / math.log(3), rel=1e-9)
    assert fit_score_temperature([2.0] * 4, [1, 1, 1, 0]) == pytest.approx(2 / math.log(3), rel=1e-9)
    assert fit_score_temperature([2.0, 2.0], [1, 0.5]) == pytest.approx(2 / math.log(3), rel=1e-9)


@pytest.mark.parametrize("truth", [0.3, 1.0, 4.0])
def test_the_temperature_that_drew_the_labels_is_found(truth):
    rng = np.random.default_rng(0)
    logits = 3 * rng.standard_normal((20000, 4))
    labels = (softmax(logits / truth).cumsum(1) > rng.random((20000, 1))).argmax(1)
    assert fit_temperature(logits, labels) == pytest.approx(truth, rel=0.05)
    margins = logits[:, 0] - logits[:, 1]
    targets = rng.random(20000) < 1 / (1 + np.exp(-margins / truth))
    assert fit_score_temperature(margins, targets) == pytest.approx(truth, rel=0.05)


def test_no_temperature_of_a_grid_is_better():
    rng = np.random.default_rng(1)
    logits, labels = 2 * rng.standard_normal((60, 3)), rng.integers(0, 3, 60)
    labels[:40] = logits[:40].argmax(1)
    best = nll(logits, labels, fit_temperature(logits, labels))
    grid = [nll(logits, labels, temperature) for temperature in np.geomspace(MIN_TEMPERATURE, MAX_TEMPERATURE, 400)]
    assert best <= min(grid) and min(grid) == pytest.approx(best, rel=1e-3)


def test_a_fit_scales_with_its_logits_and_forgets_what_is_added_to_a_row():
    rng = np.random.default_rng(2)
    logits, labels = rng.standard_normal((200, 3)), rng.integers(0, 3, 200)
    labels[:150] = logits[:150].argmax(1)
    once = fit_temperature(logits, labels)
    assert fit_temperature(3 * logits, labels) == pytest.approx(3 * once)
    assert fit_temperature(logits + rng.standard_normal((200, 1)) * 100, labels) == pytest.approx(once)
    assert fit_temperature(np.pad(logits, ((0, 0), (0, 2)), constant_values=-INF), labels) == pytest.approx(once)
    assert fit_temperature(logits.reshape(100, 2, 3), labels.reshape(100, 2)) == once
    assert fit_temperature(np.concatenate([logits, np.full((9, 3), NAN)]), np.append(labels, [-1] * 9)) == once
    order = rng.permutation(200)
    assert fit_temperature(logits[order], labels[order]) == pytest.approx(once, rel=1e-9)


def test_swapped_pairs_have_the_same_temperature_as_two_classes():
    rng = np.random.default_rng(3)
    margins = rng.standard_normal(300)
    targets = (rng.random(300) < 1 / (1 + np.exp(-margins))).astype(float)
    once = fit_score_temperature(margins, targets)
    assert fit_score_temperature(-margins, 1 - targets) == pytest.approx(once)
    logits = np.stack([np.zeros(300), margins], 1)
    assert fit_temperature(logits, targets.astype(int)) == pytest.approx(once)


def test_a_fit_without_an_inner_minimum_ends_at_a_bound():
    logits = np.array([[5.0, 0.0], [0.0, 7.0]])
    assert fit_temperature(logits, np.array([0, 1])) == MIN_TEMPERATURE
    assert fit_temperature(logits, np.array([1, 0])) == MAX_TEMPERATURE
    assert fit_score_temperature([3.0, 1e6], [1, 1]) == MIN_TEMPERATURE
    assert fit_score_temperature([3.0, 1e6], [0, 0]) == MAX_TEMPERATURE


def test_logits_that_say_nothing_keep_temperature_one():
    assert fit_temperature(np.full((4, 3), 2.5), np.array([0, 1, 2, 0])) == 1.0
    assert fit_score_temperature([0.0, 0.0], [1, 0]) == 1.0


@pytest.mark.parametrize(("logits", "labels", "message"), [
    ([[0.0, 1.0]], [-1], "labels must hold at least one label, got none"),
    ([[0.0, 1.0]], [2], r"labels must be in 0\.\.1, got 2\.\.2"),
    ([[0.0, 1.0]], [0.5], r"labels must be integers of the shape \(1,\)"),
    ([[0.0, 1.0]], [0, 1], r"labels must be integers of the shape \(1,\)"),
    ([[0.0, NAN]], [0], "class_logits must be numbers or -inf, got NaN or inf"),
    ([[0.0, INF]], [0], "class_logits must be numbers or -inf, got NaN or inf"),
    ([[0.0, -INF]], [1], "labels must be classes that their slot has"),
])
def test_what_no_temperature_can_be_fitted_to_is_refused(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        fit_temperature(np.array(logits), np.array(labels))


@pytest.mark.parametrize(("margins", "targets", "message"), [
    ([], [], "margins and targets must be two lists of one length >= 1"),
    ([1.0], [1, 0], "margins and targets must be two lists of one length >= 1"),
    ([NAN], [1], "margins must be finite, got nan"),
    ([1.0], [-1], r"targets must be in 0\.\.1, got -1"),
    ([1.0], [NAN], r"targets must be in 0\.\.1, got nan"),
])
def test_pairs_that_cannot_be_fitted_are_refused(margins, targets, message):
    with pytest.raises(ValueError, match=message):
        fit_score_temperature(margins, targets)


# Calibration error


def test_calibration_error_by_hand():
    probabilities = [[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.45, 0.55]]
    labels = [0, 0, 0, 1]
    # two bins (0, 0.5] and (0.5, 1]: all four rows in the second; confidence 2.95 / 4, accuracy 3/4
    assert expected_calibration_error(probabilities, labels, 2) == pytest.approx(0.75 - 2.95 / 4)
    # ten bins: 0.9 -> (0.8, 0.9], 0.8 -> (0.7, 0.8], 0.7 -> (0.6, 0.7], 0.55 -> (0.5, 0.6]
    assert expected_calibration_error(probabilities, labels, 10) == pytest.approx((0.1 + 0.8 + 0.3 + 0.45) / 4)


def test_calibration_error_agrees_with_plain_python():
    rng = np.random.default_rng(0)
    probabilities, labels = softmax(2 * rng.standard_normal((500, 4))), rng.integers(0, 4, 500)
    bins = [[] for _ in range(15)]
    for row, label in zip(probabilities.tolist(), labels.tolist(), strict=True):
        bins[math.ceil(max(row) * 15) - 1].append((max(row), row.index(max(row)) == label))
    want = sum(abs(sum(c for c, _ in part) - sum(r for _, r in part)) for part in bins) / 500
    assert expected_calibration_error(probabilities, labels) == pytest.approx(want)
    assert 0.2 < want < 0.6


def test_the_bins_hold_every_row_once_with_its_confidence_and_accuracy():
    bins = reliability([[1.0, 0.0], [0.75, 0.25], [0.3, 0.7], [0.4, 0.6]], [0, 1, 1, 1], 4)
    assert bins == [Bin(0.0, 0.25, 0, None, None), Bin(0.25, 0.5, 0, None, None),
                    Bin(0.5, 0.75, 3, pytest.approx((0.75 + 0.7 + 0.6) / 3), pytest.approx(2 / 3)),
                    Bin(0.75, 1.0, 1, 1.0, 1.0)]


def test_labels_drawn_from_the_probabilities_are_calibrated_and_sharpened_ones_are_not():
    rng = np.random.default_rng(0)
    logits = 2 * rng.standard_normal((50000, 3))
    labels = (softmax(logits).cumsum(1) > rng.random((50000, 1))).argmax(1)
    assert expected_calibration_error(softmax(logits), labels) < 0.01
    assert expected_calibration_error(softmax(3 * logits), labels) > 0.1


def test_calibration_error_does_not_depend_on_the_order_of_rows_or_classes():
    rng = np.random.default_rng(0)
    probabilities, labels = softmax(rng.standard_normal((90, 3))), rng.integers(0, 3, 90)
    once = expected_calibration_error(probabilities, labels)
    order = rng.permutation(90)
    assert expected_calibration_error(probabilities[order], labels[order]) == pytest.approx(once)
    assert expected_calibration_error(probabilities[:, [2, 0, 1]], (labels + 1) % 3) == pytest.approx(once)


def test_one_probability_a_row_means_two_classes_and_may_be_swapped():
    p, labels = np.array([0.9, 0.25, 0.6, 0.5]), np.array([1, 1, 0, 1])
    once = expected_calibration_error(p, labels)
    assert once == expected_calibration_error(np.stack([1 - p, p], 1), labels)
    assert expected_calibration_error(1 - p, 1 - labels) == pytest.approx(once)
    # a calibrated judge of pairs whose better side always stands first
    p = np.array([0.7] * 7 + [0.3] * 3)
    assert expected_calibration_error(p, np.ones(10, dtype=int)) == pytest.approx(0)


def test_classes_tied_for_the_top_are_right_by_their_share():
    confidence, is_right = top_label([[0.4, 0.4, 0.2], [0.4, 0.4, 0.2], [0.0, 0.5, 0.5]], [0, 2, 1])
    assert confidence.tolist() == [0.4, 0.4, 0.5] and is_right.tolist() == [0.5, 0.0, 0.5]


@pytest.mark.parametrize(("probabilities", "labels", "message"), [
    ([[0.5, 0.6]], [0], r"probabilities must be >= 0 and add up to 1 in every row, got \[0.5, 0.6\] in row 0"),
    ([[-0.5, 1.5]], [0], "probabilities must be >= 0"),
    ([[NAN, 1.0]], [0], "probabilities must be >= 0"),
    ([1.2], [0], r"probabilities must be in 0\.\.1, got 1\.2"),
    ([[0.5, 0.5]], [2], r"labels must be in 0\.\.1, got 2\.\.2"),
    ([[0.5, 0.5]], [0, 1], "labels must be integers, one a row of probabilities"),
    (np.zeros((0, 2)), np.zeros(0, dtype=int), "labels must hold at least one label, got none"),
])
def test_what_is_no_distribution_is_refused(probabilities, labels, message):
    with pytest.raises(ValueError, match=message):
        expected_calibration_error(probabilities, labels)
    with pytest.raises(ValueError, match="num_bins must be >= 1, got 0"):
        reliability([0.5], [1], 0)


def test_log_sigmoid_is_exact_far_out():
    assert log_sigmoid(np.array([-800.0, 0.0, 800.0])).tolist() == pytest.approx([-800.0, -math.log(2), 0.0])


def test_a_fitted_prior_undoes_a_shift_of_the_logits() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(size=(4000, 1, 3)) * 2
    odds = np.exp(true[:, 0])
    labels = np.array([rng.choice(3, p=row / row.sum()) for row in odds])[:, None]
    shift = np.array([1.0, -0.4, -0.6])
    prior = fit_prior(true * 2 + shift, labels)     # overconfident by 2, shifted by `shift`
    np.testing.assert_allclose(prior, [shift - shift.mean()], atol=0.2)
    assert abs(fit_temperature(true * 2 + shift - prior, labels) - 2) < 0.2


def test_a_fitted_prior_leaves_absent_classes_and_unlabelled_slots_alone() -> None:
    logits = np.array([[[1.0, 0.0, -np.inf], [3.0, 2.0, 1.0]]] * 4 + [[[0.0, 1.0, -np.inf], [0.0, 0.0, 9.0]]] * 4)
    labels = np.array([[0, -1]] * 3 + [[1, -1]] * 5)
    prior = fit_prior(logits, labels)
    assert np.isfinite(prior).all() and prior[0, 2] == 0 and np.allclose(prior[1], 0)
    assert prior[0, 0] > 0 > prior[0, 1] and abs(prior[0].sum()) < 1e-9     # more labels of class 1 than logits say
