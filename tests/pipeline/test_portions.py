"""How groups are cut into portions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.batch import SCORED
from rlaif.pipeline.portions import ScoredPortion, aligned, portion_size, rows_of, shares
from tests.helpers.batch_examples import table


@pytest.mark.parametrize(("groups", "engines", "given_size", "size"),
                         [(16, 1, None, 4), (16, 2, None, 2), (16, 8, None, 1), (512, 8, None, 16), (16, 1, 7, 7)])
def test_a_portion_is_a_quarter_of_an_engines_share_unless_told(groups, engines, given_size, size):
    assert portion_size(groups, engines, given_size) == size


@pytest.mark.parametrize(("groups", "engines", "given_size", "size"),
                         [(16, 1, None, 8), (16, 2, None, 4), (3, 1, None, 1), (1, 2, None, 1), (16, 1, 7, 7)])
def test_portions_that_are_explained_in_turn_are_half_a_share(groups, engines, given_size, size):
    assert portion_size(groups, engines, given_size, in_turn=True) == size


def test_shares_are_even_and_in_order():
    assert shares(range(8), 3) == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert shares([5, 9], 4) == [[5], [9]], "fewer than there are engines"
    assert shares([], 2) == []


def test_no_portion_goes_over_the_end_of_a_step():
    assert aligned(range(10, 20), 3, 5) == [[10, 11, 12], [13, 14], [15, 16, 17], [18, 19]]


@given(groups=st.lists(st.integers(), unique=True), size=st.integers(1, 9), step=st.integers(1, 9))
def test_every_group_is_in_one_portion(groups, size, step):
    for cut in (aligned(groups, size, step), shares(groups, size)):
        assert [group for part in cut for group in part] == groups and all(cut)
    assert all(len(part) <= min(size, step) for part in aligned(groups, size, step))


def test_rows_of_some_groups_keep_their_order():
    rows = table(SCORED, {"group_id": 4}, {"group_id": 2}, {"group_id": 4, "sample": 1}, {"group_id": 9})
    assert rows_of(rows, [4, 9])["group_id"].to_pylist() == [4, 4, 9]


def test_a_portion_without_small_columns_is_not_combined():
    assert not ScoredPortion([1], ["table"], None, 4).is_combined
    assert ScoredPortion([1], ["table"], table(SCORED), 4).is_combined
