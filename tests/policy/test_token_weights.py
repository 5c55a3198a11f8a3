import math

import pytest
import torch

from rlaif.policy.token_weights import token_weights

MEANS = ("token", "sequence", "group", "constant")
NUM_TOKENS = torch.tensor([3, 1, 4, 0, 2])
GROUPS = torch.tensor([7, 7, 2, 2, 5])


def plain(mean, num_tokens, groups, max_tokens, weights):
    """The global loss as a mean of means in plain Python, with each row's token losses all equal to x_i = i + 1."""
    rows = list(range(len(num_tokens)))
    losses = [[i + 1.0] * num_tokens[i] for i in rows]
    if mean == "constant":
        return sum(weights[i] * sum(losses[i]) for i in rows) / (sum(weights) * max_tokens)
    rows = [i for i in rows if num_tokens[i]]
    if mean == "token":
        return sum(weights[i] * sum(losses[i]) for i in rows) / sum(weights[i] * num_tokens[i] for i in rows)
    if mean == "sequence":
        return sum(weights[i] * sum(losses[i]) / num_tokens[i] for i in rows) / sum(weights[i] for i in rows)
    means, shares = [], []
    for group in sorted({groups[i] for i in rows}):
        mates = [i for i in rows if groups[i] == group]
        size = sum(num_tokens[i] for i in mates)
        means.append(sum(weights[i] * sum(losses[i]) for i in mates) / size)
        shares.append(sum(weights[i] * num_tokens[i] for i in mates) / size)
    return sum(means) / sum(shares)


def test_the_weights_by_hand():
    of = lambda mean: token_weights(mean, NUM_TOKENS, GROUPS, 5).tolist()  # noqa: E731
    assert of("token") == pytest.approx([1 / 10, 1 / 10, 1 / 10, 0, 1 / 10])
    assert of("sequence") == pytest.approx([1 / 12, 1 / 4, 1 / 16, 0, 1 / 8])       # four rows have tokens
    assert of("group") == pytest.approx([1 / 12, 1 / 12, 1 / 12, 0, 1 / 6])         # three groups of 4, 4, 2 tokens
    assert of("constant") == pytest.approx([1 / 25, 1 / 25, 1 / 25, 0, 1 / 25])     # five rows of 5


def test_sample_weights_by_hand():
    weights = torch.tensor([2.0, 1.0, 1.0, 4.0, 0.0])
    of = lambda mean: token_weights(mean, NUM_TOKENS, GROUPS, 5, weights).tolist()  # noqa: E731
    assert of("token") == pytest.approx([2 / 11, 1 / 11, 1 / 11, 0, 0])
    assert of("sequence") == pytest.approx([2 / 4 / 3, 1 / 4, 1 / 4 / 4, 0, 0])
    # the groups' tokens weigh 7/4, 1 and 0 on average
    assert of("group") == pytest.approx([2 / 4 / 2.75, 1 / 4 / 2.75, 1 / 4 / 2.75, 0, 0])
    assert of("constant") == pytest.approx([2 / 40, 1 / 40, 1 / 40, 0, 0])


@pytest.mark.parametrize("mean", MEANS)
def test_the_weighted_sum_is_the_mean_of_means_in_plain_python(mean):
    generator = torch.Generator().manual_seed(0)
    num_tokens = torch.randint(0, 6, (40,), generator=generator)
    groups = torch.randint(0, 9, (40,), generator=generator)
    for weights in (torch.ones(40), torch.rand(40, generator=generator)):
        got = token_weights(mean, num_tokens, groups, 6, weights)
        total = (got * num_tokens * torch.arange(1.0, 41.0)).sum().item()
        assert total == pytest.approx(plain(mean, num_tokens.tolist(), groups.tolist(), 6, weights.tolist()), rel=1e-6)
        if mean != "constant":
            assert (got * num_tokens).sum().item() == pytest.approx(1.0)
    assert got.dtype == torch.float64
    torch.testing.assert_close(token_weights(mean, num_tokens, groups, 6, 3 * weights), got)


@pytest.mark.parametrize("mean", MEANS)
def test_the_weights_follow_the_rows_and_do_not_know_the_groups_numbers(mean):
    got = token_weights(mean, NUM_TOKENS, GROUPS, 5)
    order = torch.tensor([4, 2, 0, 3, 1])
    torch.testing.assert_close(token_weights(mean, NUM_TOKENS[order], GROUPS[order], 5), got[order])
    torch.testing.assert_close(token_weights(mean, NUM_TOKENS, -3 * GROUPS, 5), got)


@pytest.mark.parametrize("mean", MEANS)
def test_nothing_to_learn_weighs_nothing(mean):
    zeros = torch.zeros(3, dtype=torch.int64)
    assert token_weights(mean, zeros, zeros, 5).tolist() == [0.0] * 3
    assert token_weights(mean, zeros[:0], zeros[:0], 5).tolist() == []
    assert token_weights(mean, NUM_TOKENS, GROUPS, 5, torch.zeros(5)).tolist() == [0.0] * 5
    assert token_weights(mean, zeros[:1] + 1, zeros[:1], 1).tolist() == [1.0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_a_sample_weight_out_of_range_is_refused_with_its_row(value):
    with pytest.raises(ValueError, match=f"sample_weights must be finite and >= 0, got {value} in row 3"):
        token_weights("token", NUM_TOKENS, GROUPS, 5, torch.tensor([1, 1, 1, value, 1]))
