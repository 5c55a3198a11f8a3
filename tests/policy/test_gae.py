import math
import statistics

import pytest
import torch

from rlaif.policy.gae import discounted_sums, gae, whiten


def example():
    generator = torch.Generator().manual_seed(0)
    num_tokens = torch.tensor([3, 0, 1, 7, 2, 0])
    rewards, values = torch.randn(2, int(num_tokens.sum()), generator=generator, dtype=torch.float64)
    return rewards, values, num_tokens


def plain(rewards, values, num_tokens, gamma, lam):
    """The estimator by its definition: a weighted sum of the temporal differences ahead."""
    out, start = [], 0
    for size in num_tokens:
        r, v = rewards[start : start + size], [*values[start : start + size], 0.0]
        deltas = [r[t] + gamma * v[t + 1] - v[t] for t in range(size)]
        out += [sum((gamma * lam) ** (s - t) * deltas[s] for s in range(t, size)) for t in range(size)]
        start += size
    return out


def test_gae_by_hand():
    # rewards 0, 0, 1; values 0.5, 0.4, 0.8; gamma 1, lam 0.5: differences -0.1, 0.4, 0.2
    rewards = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    values = torch.tensor([0.5, 0.4, 0.8], dtype=torch.float64)
    advantages, returns = gae(rewards, values, torch.tensor([3]), gamma=1.0, lam=0.5)
    assert advantages.tolist() == pytest.approx([-0.1 + 0.5 * 0.5, 0.4 + 0.5 * 0.2, 0.2])
    assert returns.tolist() == pytest.approx([0.15 + 0.5, 0.5 + 0.4, 0.2 + 0.8])


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)])
def test_gae_agrees_with_its_definition_on_rows_of_any_length(gamma, lam):
    rewards, values, num_tokens = example()
    advantages, returns = gae(rewards, values, num_tokens, gamma=gamma, lam=lam)
    want = plain(rewards.tolist(), values.tolist(), num_tokens.tolist(), gamma, lam)
    assert advantages.tolist() == pytest.approx(want, rel=1e-9)
    torch.testing.assert_close(returns, advantages + values)


def test_lambda_one_is_the_reward_to_go_less_the_value_whatever_the_critic():
    rewards, values, num_tokens = example()
    advantages, returns = gae(rewards, values, num_tokens, gamma=0.9, lam=1.0)
    torch.testing.assert_close(returns, discounted_sums(rewards, num_tokens, 0.9))
    torch.testing.assert_close(advantages, returns - values)


def test_a_row_knows_nothing_of_its_neighbours():
    rewards, values, num_tokens = example()
    advantages, _ = gae(rewards, values, num_tokens, gamma=0.9, lam=0.8)
    start = 0
    for size in num_tokens.tolist():
        part = slice(start, start + size)
        alone, _ = gae(rewards[part], values[part], torch.tensor([size]), gamma=0.9, lam=0.8)
        torch.testing.assert_close(advantages[part], alone)
        start += size


def test_no_tokens_give_no_advantages():
    for num_tokens in (torch.tensor([0, 0]), torch.tensor([], dtype=torch.int64)):
        advantages, returns = gae(torch.empty(0), torch.empty(0), num_tokens, gamma=1.0, lam=1.0)
        assert advantages.shape == returns.shape == (0,)


def test_whitening_by_hand_and_over_what_counts():
    values = torch.tensor([1.0, 2.0, 6.0, 100.0], dtype=torch.float64)
    counted = torch.tensor([True, True, True, False])      # mean 3, sample variance 7
    got = whiten(values, counted, eps=0.0)
    assert got.tolist() == pytest.approx([x / math.sqrt(7) for x in (-2, -1, 3, 97)])
    got = whiten(values, eps=0.5).tolist()
    spread = statistics.stdev(values.tolist()) + 0.5
    assert got == pytest.approx([(x - statistics.mean(values.tolist())) / spread for x in values.tolist()])
    torch.testing.assert_close(whiten(10 * values + 3, eps=0.0), whiten(values, eps=0.0))


@pytest.mark.parametrize("values", [[0.1] * 3, [5.0], []])
def test_equal_values_whiten_to_exactly_zero(values):
    values = torch.tensor(values)
    assert whiten(values).tolist() == [0.0] * len(values)
    assert whiten(torch.tensor([0.1, 0.1, 7.0]), torch.tensor([True, True, False])).tolist() == [0.0] * 3
    assert whiten(torch.tensor([1.0, 2.0]), torch.tensor([False, False])).tolist() == [0.0] * 2
