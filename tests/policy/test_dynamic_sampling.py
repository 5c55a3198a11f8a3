import random

import pytest

from rlaif.policy.dynamic_sampling import Choice, choose_groups

# group -> rewards; 1 and 4 have something to compare
REWARDS = {0: [1.0, 1.0], 1: [0.0, 1.0], 2: [0.5, 0.5], 3: [0.0, 0.0], 4: [0.25, 0.5]}


def choose(groups, num_groups, **options):
    rows = [(group, reward) for group, rewards in groups.items() for reward in rewards]
    return choose_groups([group for group, _ in rows], [reward for _, reward in rows], num_groups, **options)


def test_groups_of_equal_rewards_are_to_be_replaced():
    assert choose(REWARDS, 4, is_last=False) == Choice([1, 4], 2, [0, 2, 3], 0)


def test_a_step_that_is_full_misses_nothing():
    assert choose(REWARDS, 2, is_last=False) == Choice([1, 4], 0, [0, 2, 3], 0)
    assert choose(REWARDS, 2, is_last=True) == Choice([1, 4], 0, [0, 2, 3], 0)


def test_after_the_last_round_equal_groups_fill_the_step_in_the_streams_order():
    assert choose(REWARDS, 4, is_last=True) == Choice([0, 1, 2, 4], 0, [3], 2)
    assert choose({7: [1.0], 5: [2.0]}, 2, is_last=True) == Choice([5, 7], 0, [], 2), "a group of one compares nothing"


def test_a_last_round_that_brought_too_few_groups_keeps_them_all():
    assert choose({3: [1.0, 1.0], 1: [0.0, 1.0]}, 4, is_last=True) == Choice([1, 3], 0, [], 1)


def test_the_choice_does_not_depend_on_the_order_of_the_rows():
    rows = [(group, reward) for group, rewards in REWARDS.items() for reward in rewards]
    generator = random.Random(0)
    for _ in range(5):
        generator.shuffle(rows)
        found = choose_groups([group for group, _ in rows], [reward for _, reward in rows], 4, is_last=False)
        assert found == choose(REWARDS, 4, is_last=False)


def test_parts_that_differ_count_though_their_sum_is_equal():
    parts = {0: [(1.0, 0.0), (0.0, 1.0)], 1: [(1.0, 0.0), (1.0, 0.0)]}
    assert choose(parts, 1, is_last=False) == Choice([0], 0, [1], 0)


def test_no_row_is_lost_or_taken_twice():
    for is_last in (False, True):
        found = choose(REWARDS, 3, is_last=is_last)
        assert sorted(found.kept + found.replaced) == sorted(REWARDS)


def test_more_groups_than_places_are_a_bug_of_the_caller():
    with pytest.raises(AssertionError, match="2 groups with different rewards for 1 places"):
        choose(REWARDS, 1, is_last=False)
