import itertools
import random

import pytest

from rlaif.modeling.bucketing import (
    RowSizes,
    balance,
    balance_packed,
    packed_batches,
    padding_share,
    token_budget_batches,
)


def test_batches_by_hand():
    assert token_budget_batches([3, 9, 4, 1, 4], 12) == [[1], [2, 4, 0], [3]]


@pytest.mark.parametrize("max_tokens", [1, 7, 50, 10_000])
def test_every_row_is_in_one_batch_and_only_a_single_row_breaks_the_budget(max_tokens):
    lengths = [random.Random(0).randint(0, 30) for _ in range(200)]
    batches = token_budget_batches(lengths, max_tokens)
    assert sorted(itertools.chain(*batches)) == list(range(200))
    for rows in batches:
        assert len(rows) == 1 or len(rows) * max(lengths[row] for row in rows) <= max_tokens


def test_rows_per_batch_can_be_bounded():
    assert [len(rows) for rows in token_budget_batches([1] * 7, 100, max_rows=3)] == [3, 3, 1]


def test_batches_hold_rows_of_similar_length():
    lengths = [1, 100] * 10
    batches = token_budget_batches(lengths, 200)
    assert padding_share(lengths, batches).value == 0.0


def test_no_rows_give_no_batches():
    assert token_budget_batches([], 10) == []
    assert padding_share([], []).value is None
    assert balance([], 2) == [[], []]


def test_padding_share_by_hand():
    # 3 x 4 cells hold 3 + 4 + 2 tokens, 1 x 5 holds 5
    assert padding_share([3, 4, 2, 5], [[0, 1, 2], [3]]).value == pytest.approx(3 / 17)


def test_balance_by_hand():
    # 7 | 6 | then 5 to the second (6+5), 4 to the first (7+4), 3 to the first (11 each, two rows each: lowest
    # number)
    assert balance([7, 6, 5, 4, 3], 2) == [[0, 3, 4], [1, 2]]


def test_balance_is_close_to_the_best_split_and_complete():
    lengths = [random.Random(1).randint(1, 9) for _ in range(9)]
    ranks = balance(lengths, 3)
    assert sorted(itertools.chain(*ranks)) == list(range(9))
    best = min(
        max(sum(x for x, rank in zip(lengths, split, strict=True) if rank == r) for r in range(3))
        for split in itertools.product(range(3), repeat=9)
    )
    assert max(sum(lengths[row] for row in rows) for rows in ranks) <= (4 / 3 - 1 / 9) * best


def test_balance_spreads_rows_of_no_length_and_leaves_ranks_empty():
    assert balance([0, 0, 0, 0], 2) == [[0, 2], [1, 3]]
    assert balance([5], 3) == [[0], [], []]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: token_budget_batches([1], 0), "max_tokens must be >= 1, got 0"),
        (lambda: token_budget_batches([1], 1, max_rows=0), "max_rows must be >= 1, got 0"),
        (lambda: balance([1], 0), "num_ranks must be >= 1, got 0"),
    ],
)
def test_bounds_below_one_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- packed rows: completions of 2, 3, 4, 5, 1 tokens; prompts of 10, 10, 10, 6, 6 tokens, the first three one prompt

SIZES = RowSizes([2, 3, 4, 5, 1], [10, 10, 10, 6, 6], [0, 0, 0, 1, 2])


def test_tokens_alone_and_together_by_hand():
    assert SIZES.lengths == [12, 13, 14, 11, 7]
    assert SIZES.together([0, 2, 3]) == 2 + 4 + 10 + 5 + 6
    assert RowSizes([5], [3], [0], num_completions=2).lengths == [11]


def test_packed_batches_by_hand():
    # apart: 57 tokens in batches of at most 30, so about 28 in each
    assert packed_batches([0, 1, 2, 3, 4], SIZES, 30, share=False) == [[0, 1], [2, 3], [4]]
    # together: 19 + 11 + 7 = 37 tokens, about 18 in each
    assert packed_batches([0, 1, 2, 3, 4], SIZES, 30, share=True) == [[0, 1, 2], [3, 4]]
    assert packed_batches([0, 3, 1, 4, 2], SIZES, 30, share=True) == [[0, 1, 2], [3, 4]]
    assert packed_batches([], SIZES, 30, share=True) == []


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("max_tokens", [1, 25, 60, 10_000])
def test_packed_batches_hold_every_row_once_within_the_budget(max_tokens, share):
    draw = random.Random(0)
    numbers = sorted(draw.randint(0, 12) for _ in range(60))
    sizes = RowSizes([draw.randint(0, 20) for _ in numbers], [1 + number for number in numbers], numbers)
    batches = packed_batches(range(60), sizes, max_tokens, share=share)
    assert sorted(itertools.chain(*batches)) == list(range(60))
    for rows in batches:
        cost = sizes.together(rows) if share else sum(sizes.lengths[row] for row in rows)
        assert len(rows) == 1 or cost <= max_tokens


def test_prompts_stay_together_on_a_rank_unless_a_split_is_shorter():
    # 19 | 11 + 7
    assert balance_packed(SIZES, 2, share=True) == [[0, 1, 2], [3, 4]]
    assert balance_packed(SIZES, 2, share=False) == balance(SIZES.lengths, 2)
    # one prompt for all: a group on one rank would leave the other idle
    one = RowSizes([20, 20, 20, 20], [4] * 4, [0] * 4)
    assert sorted(map(len, balance_packed(one, 2, share=True))) == [2, 2]
