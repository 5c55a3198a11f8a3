from collections import Counter

import numpy as np
import pytest

from rlaif.data.mixing import epoch_of, epoch_order, epoch_start

MIXES = [([5], [1.0]), ([4, 6], [1.0, 1.0]), ([4, 6, 3], [2.0, 0.5, 1.0]), ([10, 3], [0.1, 2.7]), ([1], [0.01])]


def drawn(sizes, weights, seed, epochs):
    return [row for epoch in epochs for row in epoch_order(sizes, weights, seed, epoch).tolist()]


def test_the_order_of_one_set_is_the_permutation_that_seed_and_epoch_draw():
    for epoch in (0, 1):
        expected = np.random.default_rng([7, epoch]).permutation(9).tolist()
        assert epoch_order([9], [1.0], 7, epoch).tolist() == expected


def test_rows_of_weight_one_come_once_an_epoch_two_twice_a_half_in_turns():
    sizes, weights = [4, 6, 3], [2.0, 0.5, 1.0]
    for epoch in range(4):
        counts = Counter(drawn(sizes, weights, 0, [epoch]))
        assert [counts[row] for row in range(4)] == [2] * 4
        assert sum(counts[row] for row in range(4, 10)) == 3
        assert [counts[row] for row in range(10, 13)] == [1] * 3
    for first in (0, 2):
        counts = Counter(drawn(sizes, weights, 0, [first, first + 1]))
        assert [counts[row] for row in range(4, 10)] == [1] * 6


@pytest.mark.parametrize(("sizes", "weights"), MIXES)
def test_over_many_epochs_every_row_comes_as_often_as_its_weight_says(sizes, weights):
    counts = Counter(drawn(sizes, weights, 3, range(100)))
    expected = [round(100 * weight) for size, weight in zip(sizes, weights, strict=True) for _ in range(size)]
    assert [counts[row] for row in range(sum(sizes))] == expected


def test_a_tenth_is_a_tenth():
    assert [epoch_start([10], [0.1], epoch) for epoch in range(5)] == [0, 1, 2, 3, 4]
    assert epoch_start([10], [0.7], 10) == 70       # 10 * 0.7 * 10 is 70.0, 3 * 0.1 * 10 is not 3.0


@pytest.mark.parametrize(("sizes", "weights"), MIXES)
def test_epochs_follow_one_another_and_each_place_is_in_its_own(sizes, weights):
    places = 0
    for epoch in range(30):
        assert epoch_start(sizes, weights, epoch) == places
        num_rows = len(epoch_order(sizes, weights, 0, epoch))
        assert {epoch_of(sizes, weights, place) for place in range(places, places + num_rows)} <= {epoch}
        places += num_rows


def test_every_part_of_an_epoch_holds_the_sets_in_proportion_to_within_one():
    sizes, weights = [300, 100, 20], [1.0, 2.0, 1.0]
    order = epoch_order(sizes, weights, 0, 1)
    kind = np.searchsorted([300, 400], order, side="right")
    for number, num_drawn in enumerate([300, 200, 20]):
        so_far = np.cumsum(kind == number)
        moments = np.arange(1, 521) / 520
        # The others may be one ahead or behind too, each.
        assert np.abs(so_far - moments * num_drawn).max() < 1 + 2 * num_drawn / 520 + 1e-9


def test_seeds_epochs_and_sets_are_drawn_apart():
    orders = {tuple(drawn([20, 20], [1.0, 1.0], seed, [epoch])) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4
    order = epoch_order([20, 20], [1.0, 1.0], 0, 0)
    assert order[order < 20].tolist() != (order[order >= 20] - 20).tolist()
    assert drawn([20, 20], [1.0, 1.0], 0, [5]) == drawn([20, 20], [1.0, 1.0], 0, [5])
