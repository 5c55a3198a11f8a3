"""Packed rows against the same rows on their own, by brute force on places and masks."""

import pytest
import torch
from torch import nn

from rlaif.modeling.packed_attention import _attention
from rlaif.modeling.packing import pack

PROMPTS = [[1, 2, 3], [4, 5], [1, 2, 3], [6], [1, 2, 3], [4, 5], [7, 8]]
COMPLETIONS = [[11, 12], [13], [14, 15, 16, 17], [18, 19, 20], [21], [22] * 30, []]


class Causal(nn.Module):
    is_causal = True


@pytest.mark.parametrize("share", [False, True])
def test_every_completion_token_is_predicted_from_the_place_of_the_token_before_it(share):
    packed = pack(PROMPTS, COMPLETIONS, share=share)
    ids, positions = packed.input_ids[0].tolist(), packed.position_ids[0].tolist()
    want_ids, want_positions = [], []
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
        whole = prompt + completion
        want_ids += [whole[len(prompt) - 1 + t] for t in range(len(completion))]
        want_positions += [len(prompt) - 1 + t for t in range(len(completion))]
    assert [ids[place] for place in packed.read.tolist()] == want_ids
    assert [positions[place] for place in packed.read.tolist()] == want_positions
    assert packed.labels.tolist() == [token for row in COMPLETIONS for token in row]
    assert len(ids) == sum(sum(block.sizes) for block in packed.blocks)


def test_shared_prompts_are_laid_down_once_and_last_tokens_not_at_all():
    # rows of their own: 4 + 2 + 6 + 3 + 3 + 31; shared: prompts 3 + 2, then 1 + 0 + 3 + (1 + 2) + 0 + 29
    assert pack(PROMPTS, COMPLETIONS, share=False).input_ids.shape == (1, 49)
    assert pack(PROMPTS, COMPLETIONS, share=True).input_ids.shape == (1, 41)


def test_rows_without_completions_leave_one_prompt():
    packed = pack([[1, 2], [3]], [[], []], share=True)
    assert packed.input_ids.tolist() == [[1, 2]] and packed.read.tolist() == packed.labels.tolist() == []


def alone(query, key, value, window, scaling):
    """Plain causal attention of one row, `[N, L, D]`."""
    groups = query.shape[0] // key.shape[0]
    key, value = key.repeat_interleave(groups, 0), value.repeat_interleave(groups, 0)
    places = torch.arange(query.shape[1])
    distance = places.unsqueeze(1) - places
    seen = (distance >= 0) & (distance < (window or 1 << 20))
    scores = (query @ key.transpose(1, 2) * scaling).masked_fill(~seen, -torch.inf)
    return torch.softmax(scores, -1) @ value


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("is_fused", [False, True])
def test_attention_is_that_of_each_row_alone_gradient_included(heads, window, share, is_fused, monkeypatch):
    if is_fused:
        monkeypatch.setattr("rlaif.modeling.packed_attention._MAX_SCORES", 0)
    packed = pack(PROMPTS, COMPLETIONS, share=share)
    size, width = packed.input_ids.shape[1], 8
    # States follow token and position, so that equal prefixes have equal states.
    generator = torch.Generator().manual_seed(0)
    tables = [torch.randn(64, 64, count, width, generator=generator, dtype=torch.float64)
              for count in (heads[0], heads[1], heads[1])]
    states = [table[packed.input_ids[0], packed.position_ids[0]].transpose(0, 1).unsqueeze(0).requires_grad_()
              for table in tables]
    upstream = torch.randn(64, 64, heads[0], width, generator=generator, dtype=torch.float64)
    found, _ = _attention(Causal(), *states, None, packed=packed, scaling=0.3, sliding_window=window)
    assert found.shape == (1, size, heads[0], width)
    read = found[0, packed.read]
    rows = [(prompt + completion[:-1], len(prompt) - 1) for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)
            if completion]
    wants, leaves = [], []
    for ids, first in rows:
        ids, positions = torch.tensor(ids), torch.arange(len(ids))
        leaf = [table[ids, positions].transpose(0, 1).requires_grad_() for table in tables]
        wants.append(alone(*leaf, window, 0.3).transpose(0, 1)[first:])
        leaves.append((ids, leaf))
    want = torch.cat(wants)
    torch.testing.assert_close(read, want, atol=1e-12, rtol=1e-12)
    weights = upstream[packed.labels % 64, packed.read.argsort() % 64]
    (read * weights).sum().backward()
    (want * weights).sum().backward()
    # The gradient of a token at a position, summed over all rows that hold it there.
    for number, (state, count) in enumerate(zip(states, (heads[0], heads[1], heads[1]), strict=True)):
        mine = torch.zeros(64, 64, count, width, dtype=torch.float64)
        mine.index_put_((packed.input_ids[0], packed.position_ids[0]), state.grad[0].transpose(0, 1), accumulate=True)
        theirs = torch.zeros_like(mine)
        for ids, leaf in leaves:
            theirs.index_put_((ids, torch.arange(len(ids))), leaf[number].grad.transpose(0, 1), accumulate=True)
        torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=1e-12)


def test_padded_rows_attend_causally_without_a_mask():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 2, 5, 4, generator=generator) for _ in range(3))
    found, _ = _attention(Causal(), query, key, value, None, sliding_window=2)
    for row in range(2):
        torch.testing.assert_close(found[row].transpose(0, 1), alone(query[row], key[row], value[row], 2, 0.5))


@pytest.mark.parametrize("odd", [{"softcap": 30.0}, {"s_aux": torch.zeros(2)}])
def test_what_it_cannot_do_is_refused(odd):
    states = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ValueError, match="attention must be plain and causal"):
        _attention(Causal(), states, states, states, None, **odd)
    with pytest.raises(ValueError, match="attention must be plain and causal"):
        _attention(Causal(), states, states, states, torch.zeros(1, 1, 3, 3))
