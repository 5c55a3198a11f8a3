import random

import pytest
import torch

from rlaif.modeling.bucketing import RowSizes
from rlaif.modeling.collate import pad_right, place, plan, plan_packed, sequences, spread


def test_padding_goes_to_the_right_and_is_masked_by_length():
    ids, mask = pad_right([[7, 8, 9], [0], []], pad_id=0)
    assert ids.tolist() == [[7, 8, 9], [0, 0, 0], [0, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 0]]
    assert pad_right([[7], [8, 9]], pad_id=5)[0].tolist() == [[7, 5], [8, 9]]


def test_masks_and_labels_line_up_with_the_logits_that_predict_them():
    batch = sequences([[1, 2], [3]], [[4, 5], [6]], pad_id=9)
    assert batch.input_ids.tolist() == [[1, 2, 4, 5], [3, 6, 9, 9]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.labels.tolist() == [[2, 4, 5], [6, 9, 9]]
    # the last prompt token predicts the first of the completion
    assert batch.completion_mask.tolist() == [[False, True, True], [True, False, False]]
    assert batch.labels[batch.completion_mask].tolist() == [4, 5, 6]


def test_a_pad_id_inside_a_row_is_a_token_like_any_other():
    batch = sequences([[9, 1]], [[9, 9]], pad_id=9)
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1]]
    assert batch.completion_mask.tolist() == [[False, True, True]]


def test_a_completion_without_tokens_has_nothing_to_learn():
    batch = sequences([[1, 2], [3]], [[], [4]], pad_id=0)
    assert batch.completion_mask.tolist() == [[False], [True]]


def test_values_are_spread_over_the_tokens_of_their_row():
    mask = sequences([[1, 2], [3]], [[4, 5], [6]], pad_id=0).completion_mask
    assert spread([[0.5, 0.25], [2.0]], mask).tolist() == [[0.0, 0.5, 0.25], [2.0, 0.0, 0.0]]
    assert spread([[True, False], [True]], mask, torch.bool).tolist() == [[False, True, False], [True, False, False]]
    with pytest.raises(RuntimeError):
        spread([[0.5], [2.0]], mask)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 7])
@pytest.mark.parametrize("max_tokens", [1, 40, 10_000])
def test_a_plan_holds_every_row_once_and_as_many_micro_batches_on_every_rank(num_ranks, max_tokens):
    generator = random.Random(0)
    for num_rows in (1, 2, 5, 40):
        lengths = [generator.randint(1, 30) for _ in range(num_rows)]
        found = plan(lengths, num_ranks, max_tokens)
        assert len(found) == num_ranks
        assert len({len(batches) for batches in found}) == 1
        assert sorted(row for batches in found for batch in batches for row in batch) == list(range(num_rows))
        for batches in found:
            for batch in batches:
                assert len(batch) <= 1 or len(batch) * max(lengths[row] for row in batch) <= max_tokens
            filled = [bool(batch) for batch in batches]
            assert filled == sorted(filled, reverse=True), "empty micro-batches come last"
        assert found == plan(lengths, num_ranks, max_tokens)


def test_a_rank_without_rows_gets_empty_micro_batches():
    assert plan([5], 3, 8) == [[[0]], [[]], [[]]]
    # 8 and 7 fill a rank each; the third row goes to the lighter one, which then has two micro-batches
    assert plan([8, 7, 6], 2, 8) == [[[0], []], [[1], [2]]]


def test_no_rows_make_no_micro_batches():
    assert plan([], 2, 8) == [[], []]


def test_values_are_placed_at_the_true_entries_with_their_gradient():
    flat = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    placed = place(flat, torch.tensor([[True, False], [True, True]]))
    assert placed.tolist() == [[1.0, 0.0], [2.0, 3.0]]
    (placed * torch.tensor([[1.0, 5.0], [2.0, 4.0]])).sum().backward()
    assert flat.grad.tolist() == [1.0, 2.0, 4.0]


@pytest.mark.parametrize("share", [False, True])
def test_a_packed_plan_holds_every_row_once_and_as_many_micro_batches_on_every_rank(share):
    generator = random.Random(0)
    numbers = [number // 4 for number in range(22)]
    sizes = RowSizes([generator.randint(1, 30) for _ in numbers], [5 + number for number in numbers], numbers)
    for num_ranks in (1, 2, 3, 30):
        found = plan_packed(sizes, num_ranks, 60, share=share)
        assert len(found) == num_ranks and len({len(batches) for batches in found}) == 1
        assert sorted(row for batches in found for batch in batches for row in batch) == list(range(22))
