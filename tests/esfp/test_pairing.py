import itertools
import random

import pytest
import torch

from rlaif.esfp.pairing import both_orders, round_robin, round_robin_means


def test_both_orders_by_hand():
    # 0.8 read as (x, y); 0.4 read as (y, x), which says 1 - 0.4 of x: the mean of 0.8 and 0.6
    got = both_orders(torch.tensor([[0.8, 3.0]]), torch.tensor([[0.4, -1.0]]), torch.tensor([0.5, 0.0]))
    torch.testing.assert_close(got, torch.tensor([[0.7, 2.0]]))


def test_a_judge_that_looks_at_the_order_only_says_nothing():
    centres = torch.tensor([0.5, 2.0])
    first_wins = torch.tensor([[0.9, 2.75]]).expand(4, 2)
    torch.testing.assert_close(both_orders(first_wins, first_wins, centres), centres.expand(4, 2))


def test_swapping_the_two_turns_the_score_round_its_centre():
    generator = torch.Generator().manual_seed(0)
    forward, backward = torch.randn(2, 50, 3, generator=generator)
    centres = torch.tensor([0.5, 0.0, -2.0])
    torch.testing.assert_close(both_orders(backward, forward, centres),
                               2 * centres - both_orders(forward, backward, centres))


def test_every_pair_of_a_group_meets_once_and_none_of_two_groups():
    group_ids = [3, 1, 3, 3, 1, 9]
    assert sorted(zip(*round_robin(group_ids), strict=True)) == [(0, 2), (0, 3), (1, 4), (2, 3)]
    generator = random.Random(0)
    for _ in range(20):
        group_ids = [generator.randint(0, 4) for _ in range(generator.randint(0, 15))]
        want = [(a, b) for a, b in itertools.combinations(range(len(group_ids)), 2) if group_ids[a] == group_ids[b]]
        assert sorted(zip(*round_robin(group_ids), strict=True)) == want


def test_round_robin_of_nothing_and_of_single_rows_is_empty():
    assert round_robin([]) == ([], [])
    assert round_robin([5, 6, 7]) == ([], [])


def test_means_over_pairs_by_hand():
    # row 0 gets 1 and 3, row 1 gets 10 of the first pair and 5 of the third, row 2 gets 30 and 50; row 3 is alone
    of_first, of_second = torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([[10.0], [30.0], [50.0]])
    got = round_robin_means(of_first, of_second, [0, 0, 1], [1, 2, 2], torch.tensor([0.5]), 4)
    torch.testing.assert_close(got, torch.tensor([[2.0], [7.5], [40.0], [0.5]]))


def test_means_keep_every_further_axis():
    first, second = round_robin([1, 1, 1, 2])
    generator = torch.Generator().manual_seed(0)
    of_first, of_second = torch.randn(2, 3, 2, 4, generator=generator)
    alone = torch.full((2, 4), 9.0)
    got = round_robin_means(of_first, of_second, first, second, alone, 4)
    for row in range(3):
        met = [part[pair] for pair in range(3) for rows, part in ((first, of_first), (second, of_second))
               if rows[pair] == row]
        torch.testing.assert_close(got[row], torch.stack(met).mean(0))
    torch.testing.assert_close(got[3], alone)


def test_means_of_rows_without_a_pair_are_what_a_row_alone_gets():
    got = round_robin_means(torch.zeros(0, 2), torch.zeros(0, 2), [], [], torch.tensor([0.5, 2.0]), 3)
    torch.testing.assert_close(got, torch.tensor([[0.5, 2.0]] * 3))


def test_unequal_columns_are_refused():
    with pytest.raises(AssertionError):
        both_orders(torch.zeros(2, 1), torch.zeros(3, 1), torch.zeros(1))
    with pytest.raises(AssertionError):
        round_robin_means(torch.zeros(2, 1), torch.zeros(2, 1), [0], [1], torch.zeros(1), 2)
