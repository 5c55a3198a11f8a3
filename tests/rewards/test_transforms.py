import math
import random

import numpy as np
import pytest

from rlaif.config.reward_parts import RewardPartConfig
from rlaif.rewards.transforms import clip, gated, log_sigmoid, minimum, multiply, positive_only, rank, transformed

NAN = math.nan


def part(**fields):
    return RewardPartConfig(kind="bleu", **fields)


def plain_log_sigmoid(values, center):
    center = sum(values) / len(values) if center is None else center
    return [-math.log(1 + math.exp(-(value - center))) for value in values]


def plain_rank(values):
    if len(values) == 1:
        return [0.5]
    return [sum(1.0 if other < value else 0.5 for place, other in enumerate(values)
                if other <= value and place != mine) / (len(values) - 1) for mine, value in enumerate(values)]


def test_log_sigmoid_of_values_around_their_mean_by_hand():
    # mean 2: log(1 / (1 + e)), log(1 / 2), log(1 / (1 + 1/e))
    assert log_sigmoid(np.array([1.0, 2.0, 3.0]), None) == pytest.approx(
        [-1.3132616875182228, -0.6931471805599453, -0.31326168751822286], abs=1e-12)
    assert log_sigmoid(np.array([1.0]), 1.0) == pytest.approx([-0.6931471805599453])


def test_log_sigmoid_is_exact_far_from_the_center():
    assert log_sigmoid(np.array([-1000.0, 1000.0]), 0.0).tolist() == [-1000.0, 0.0]


def test_ranks_by_hand_ties_count_half():
    assert rank(np.array([3.0, 1.0, 2.0])).tolist() == [1.0, 0.0, 0.5]
    # 5 is above two and level with one of three others: (2 + 0.5) / 3; the 1s are level with each other: 0.5 / 3
    assert rank(np.array([5.0, 1.0, 1.0, 5.0])) == pytest.approx([2.5 / 3, 0.5 / 3, 0.5 / 3, 2.5 / 3])
    assert rank(np.array([7.0])).tolist() == [0.5]
    assert rank(np.array([7.0, 7.0, 7.0])).tolist() == [0.5] * 3


def test_clip_by_hand_and_with_one_limit():
    values = np.array([-2.0, 0.5, 3.0])
    assert clip(values, -1.0, 1.0).tolist() == [-1.0, 0.5, 1.0]
    assert clip(values, None, 1.0).tolist() == [-2.0, 0.5, 1.0]
    assert clip(values, -1.0, None).tolist() == [-1.0, 0.5, 3.0]


@pytest.mark.parametrize("seed", range(5))
def test_transforms_agree_with_plain_python(seed):
    draw = random.Random(seed)
    values = [draw.choice([draw.gauss(0, 3), 1.0]) for _ in range(draw.randint(1, 9))]
    assert log_sigmoid(np.array(values), None) == pytest.approx(plain_log_sigmoid(values, None), abs=1e-12)
    assert log_sigmoid(np.array(values), 0.7) == pytest.approx(plain_log_sigmoid(values, 0.7), abs=1e-12)
    assert rank(np.array(values)) == pytest.approx(plain_rank(values), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_the_rows_changes_no_bit(seed):
    draw = np.random.default_rng(seed)
    values = draw.normal(size=50) * 10 ** draw.uniform(-8, 8, size=50)
    order = draw.permutation(50)
    for function in (rank, lambda some: log_sigmoid(some, None)):
        assert function(values)[order].tolist() == function(values[order]).tolist()


def test_a_constant_added_to_a_group_changes_neither_rank_nor_centred_log_sigmoid():
    values = np.array([0.25, 0.5, 2.0])
    assert rank(values + 4).tolist() == rank(values).tolist()
    assert log_sigmoid(values + 4, None) == pytest.approx(log_sigmoid(values, None), abs=1e-12)


def test_rows_are_compared_inside_their_group_or_over_the_batch():
    values, groups = np.array([1.0, 5.0, 2.0, 6.0]), [np.array([0, 2]), np.array([1, 3])]
    assert transformed(part(transform="rank"), values, groups).tolist() == [0.0, 0.0, 1.0, 1.0]
    over_all = transformed(part(transform="rank", over="batch"), values, groups)
    assert over_all == pytest.approx([0.0, 2 / 3, 1 / 3, 1.0])
    # group means 1.5 and 5.5: every row is half away from its own
    assert transformed(part(transform="log_sigmoid"), values, groups) == pytest.approx(
        plain_log_sigmoid([-0.5, -0.5, 0.5, 0.5], 0.0))


def test_a_row_that_was_not_judged_stays_so_and_is_seen_by_no_other():
    values, groups = np.array([1.0, NAN, 2.0, NAN]), [np.array([0, 1, 2]), np.array([3])]
    found = transformed(part(transform="rank"), values, groups)
    assert found[[0, 2]].tolist() == [0.0, 1.0] and np.isnan(found[[1, 3]]).all()
    found = transformed(part(transform="log_sigmoid"), values, groups)
    assert found[[0, 2]] == pytest.approx(plain_log_sigmoid([1.0, 2.0], None))


def test_gates_by_hand():
    terms = np.array([2.0, -1.0, 3.0])
    gates = np.array([[1.0, 0.5, 0.0], [0.5, 1.0, 4.0]])
    assert multiply(terms, gates).tolist() == [1.0, -0.5, 0.0]
    assert minimum(terms, gates).tolist() == [0.5, -1.0, 0.0]
    assert positive_only(terms, gates).tolist() == [2.0, -1.0, 0.0]     # the last: its first gate is not above 0


def test_positive_only_looks_at_values_the_other_gates_at_terms():
    terms, values, gate_terms = np.array([1.0, 1.0]), np.array([[-1.0, 1.0]]), np.array([[0.25, -0.5]])
    assert gated("positive_only", terms, values, gate_terms).tolist() == [0.0, 1.0]
    assert gated("multiply", terms, values, gate_terms).tolist() == [0.25, -0.5]
    assert gated("minimum", terms, values, gate_terms).tolist() == [0.25, -0.5]
    assert gated("none", terms, values, gate_terms) is terms


@pytest.mark.parametrize("gate", ["multiply", "positive_only", "minimum"])
def test_behind_a_gate_that_did_not_judge_nothing_is_known(gate):
    values = np.array([[NAN, 1.0], [1.0, 1.0]])
    found = gated(gate, np.array([1.0, NAN]), values, values)
    assert np.isnan(found[0])
    assert np.isnan(found[1]) or gate == "positive_only"
