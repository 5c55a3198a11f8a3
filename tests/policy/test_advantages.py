import math
import statistics

import pytest
import torch

from rlaif.metrics import values
from rlaif.policy.advantages import (
    dr_grpo,
    group_statistics,
    grpo,
    grpo_of_parts,
    reinforce,
    reinforce_pp,
    reinforce_pp_baseline,
    rloo,
)

IN_GROUPS = {function.__name__: function for function in (grpo, dr_grpo, rloo)}


def plain(name, rewards, group_index):
    """The estimators once more, row by row in plain Python."""
    out = []
    for i, (reward, group) in enumerate(zip(rewards, group_index, strict=True)):
        mates = [r for r, g in zip(rewards, group_index, strict=True) if g == group]
        others = [
            r for j, (r, g) in enumerate(zip(rewards, group_index, strict=True)) if g == group and j != i
        ]
        if len(set(mates)) == 1:
            out.append(0.0)
        elif name == "grpo":
            out.append((reward - statistics.mean(mates)) / (statistics.stdev(mates) + 1e-6))
        elif name == "dr_grpo":
            out.append(reward - statistics.mean(mates))
        else:
            out.append(reward - statistics.mean(others))
    return out


def test_advantages_of_one_group_by_hand():
    rewards = torch.tensor([1.0, 2.0, 6.0])  # mean 3, sample variance (4 + 1 + 9) / 2 = 7
    group = torch.zeros(3, dtype=torch.int64)
    assert dr_grpo(rewards, group).tolist() == [-2.0, -1.0, 3.0]
    assert rloo(rewards, group).tolist() == pytest.approx([1 - 4, 2 - 3.5, 6 - 1.5])
    assert grpo(rewards, group, eps=0.0).tolist() == pytest.approx([x / math.sqrt(7) for x in (-2, -1, 3)])
    assert grpo(rewards, group, eps=1.0).tolist() == pytest.approx(
        [x / (math.sqrt(7) + 1) for x in (-2, -1, 3)]
    )


@pytest.mark.parametrize("name", IN_GROUPS)
def test_advantages_agree_with_plain_python_on_unequal_groups(name):
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(40, generator=generator)
    group_index = (
        torch.randint(0, 9, (40,), generator=generator) * 1000 - 7
    )  # any numbers, any order, unequal sizes
    got = IN_GROUPS[name](rewards, group_index)
    torch.testing.assert_close(got, torch.tensor(plain(name, rewards.tolist(), group_index.tolist())))
    assert got.dtype == rewards.dtype


@pytest.mark.parametrize("name", IN_GROUPS)
def test_advantages_follow_a_permutation_of_the_rows(name):
    rewards = torch.tensor([0.1, 0.9, 0.4, 0.3, 0.3, 5.0])
    group_index = torch.tensor([0, 0, 1, 1, 0, 1])
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(
        IN_GROUPS[name](rewards[order], group_index[order]), IN_GROUPS[name](rewards, group_index)[order]
    )


@pytest.mark.parametrize("name", IN_GROUPS)
def test_advantages_do_not_change_when_a_group_is_shifted(name):
    rewards = torch.tensor([0.0, 1.0, 2.0, 5.0])
    group_index = torch.tensor([0, 0, 1, 1])
    shifted = rewards + torch.tensor([10.0, 10.0, -3.0, -3.0])
    torch.testing.assert_close(IN_GROUPS[name](shifted, group_index), IN_GROUPS[name](rewards, group_index))


@pytest.mark.parametrize("name", IN_GROUPS)
def test_equal_rewards_and_groups_of_one_give_exactly_zero(name):
    # 0.1 * 3 / 3 is not 0.1 in binary: the zero must not depend on luck
    rewards = torch.tensor([0.1, 0.1, 0.1, 7.0, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7], dtype=torch.float64)
    group_index = torch.tensor([0, 0, 0, 1, 2, 2, 2, 2, 2, 2])
    assert IN_GROUPS[name](rewards, group_index).tolist() == [0.0] * 10


@pytest.mark.parametrize("name", IN_GROUPS)
def test_no_rows_give_no_advantages(name):
    assert IN_GROUPS[name](torch.empty(0), torch.empty(0, dtype=torch.int64)).shape == (0,)
    assert values(group_statistics(torch.empty(0), torch.empty(0, dtype=torch.int64))) == {}


@pytest.mark.parametrize("name", IN_GROUPS)
def test_a_reward_that_is_not_finite_is_refused_with_its_row(name):
    with pytest.raises(ValueError, match=r"rewards must be finite, got nan in row 1"):
        IN_GROUPS[name](torch.tensor([0.0, math.nan]), torch.tensor([0, 0]))


def test_group_statistics_count_groups_not_rows():
    rewards = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 2.0, 3.0])
    group_index = torch.tensor([5, 5, 5, 5, 2, 2, 9])
    got = values(group_statistics(rewards, group_index))
    # groups 5 and 9 (one row) are equal; group 2 has a sample std of sqrt(2)
    assert got == pytest.approx({"equal_reward_group_share": 2 / 3, "group_reward_std": math.sqrt(2) / 3})


def test_reinforce_pp_with_a_group_baseline_by_hand():
    rewards = torch.tensor([1.0, 3.0, 5.0, 5.0, 5.0, 2.0, 6.0], dtype=torch.float64)
    groups = torch.tensor([0, 0, 1, 1, 1, 2, 2])
    # less the mean of the group: -1, 1, 0, 0, 0, -2, 2: mean 0, sample variance (1 + 1 + 4 + 4) / 6
    std = math.sqrt(10 / 6)
    got = reinforce_pp_baseline(rewards, groups, eps=0.0)
    assert got.tolist() == pytest.approx([-1 / std, 1 / std, 0, 0, 0, -2 / std, 2 / std])
    # without the last group in the deviation: variance 2 / 4
    counted = torch.tensor([True] * 5 + [False] * 2)
    got = reinforce_pp_baseline(rewards, groups, is_counted=counted, eps=0.0)
    assert got.tolist() == pytest.approx([x / math.sqrt(0.5) for x in (-1, 1, 0, 0, 0, -2, 2)])


def test_an_equal_group_gets_exactly_zero_though_the_batch_has_another_mean():
    counted = torch.tensor([True, False, True, True])
    got = reinforce_pp_baseline(torch.tensor([0.0, 1.0, 3.0, 3.0]), torch.tensor([0, 0, 1, 1]), is_counted=counted)
    assert got[2:].tolist() == [0.0, 0.0] and got[0] < 0 < got[1]


def test_reinforce_pp_by_hand():
    # rows of 2, 0 and 1 tokens; to go: 0.5 * 2 - 1 = 0, 2 and 4; mean 2, sample deviation 2
    rewards, num_tokens = torch.tensor([-1.0, 2.0, 4.0], dtype=torch.float64), torch.tensor([2, 0, 1])
    assert reinforce_pp(rewards, num_tokens, gamma=0.5, eps=0.0).tolist() == pytest.approx([-1.0, 0.0, 1.0])
    counted = torch.tensor([True, True, False])
    got = reinforce_pp(rewards, num_tokens, gamma=0.5, is_counted=counted, eps=0.0).tolist()
    assert got == pytest.approx([-1 / math.sqrt(2), 1 / math.sqrt(2), 3 / math.sqrt(2)])
    assert reinforce_pp(torch.tensor([0.0, 7.0]), torch.tensor([2])).tolist() == [0.0, 0.0]


def test_reinforce_by_hand():
    rewards = torch.tensor([1.0, 2.0, 6.0])
    assert reinforce(rewards, 2.5).tolist() == [-1.5, -0.5, 3.5]
    assert reinforce(rewards, None).tolist() == [1 - 4, 2 - 3.5, 6 - 1.5]       # the mean of the others
    assert reinforce(rewards[:1], None).tolist() == [1.0]
    assert reinforce(rewards[:0], None).tolist() == []


def test_parts_normalised_one_by_one_by_hand():
    # one group; part 0 is 100 times the size of part 1, and part 2 judges two rows only
    parts = torch.tensor([[0.0, 1.0, 1.0], [100.0, 0.0, math.nan], [200.0, 2.0, 3.0]], dtype=torch.float64)
    weights = torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)
    got = grpo_of_parts(parts, weights, torch.zeros(3, dtype=torch.int64), eps=0.0)
    a = 1 / math.sqrt(2)    # of (1, 3): mean 2, sample deviation sqrt 2
    assert got.tolist() == pytest.approx([-1 + 0.5 * 0 - 2 * a, 0 - 0.5 + 0, 1 + 0.5 + 2 * a])
    # each part alone is grpo, whatever its scale
    for k in range(2):
        alone = grpo_of_parts(1000 * parts[:, k : k + 1], torch.ones(1), torch.zeros(3, dtype=torch.int64), eps=0.0)
        torch.testing.assert_close(alone, grpo(parts[:, k], torch.zeros(3, dtype=torch.int64), eps=0.0))


def test_a_part_that_is_equal_in_a_group_adds_nothing_there():
    parts = torch.tensor([[0.1, 0.0], [0.1, 1.0], [0.3, 5.0], [0.1, 5.0]], dtype=torch.float64)
    got = grpo_of_parts(parts, torch.ones(2, dtype=torch.float64), torch.tensor([0, 0, 1, 1]), eps=0.0)
    a = 1 / math.sqrt(2)
    assert got.tolist() == pytest.approx([-a, a, a, -a])


def test_a_part_that_judges_no_row_adds_nothing():
    parts = torch.full((2, 1), math.nan, dtype=torch.float64)
    assert grpo_of_parts(parts, torch.ones(1), torch.zeros(2, dtype=torch.int64)).tolist() == [0.0, 0.0]
