import math
import statistics

import pytest
import torch

from rlaif.advantages import ADVANTAGES, dr_grpo, group_statistics, grpo, rloo
from rlaif.metrics import values


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


@pytest.mark.parametrize("name", ADVANTAGES)
def test_advantages_agree_with_plain_python_on_unequal_groups(name):
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(40, generator=generator)
    group_index = (
        torch.randint(0, 9, (40,), generator=generator) * 1000 - 7
    )  # any numbers, any order, unequal sizes
    got = ADVANTAGES[name](rewards, group_index)
    torch.testing.assert_close(got, torch.tensor(plain(name, rewards.tolist(), group_index.tolist())))
    assert got.dtype == rewards.dtype


@pytest.mark.parametrize("name", ADVANTAGES)
def test_advantages_follow_a_permutation_of_the_rows(name):
    rewards = torch.tensor([0.1, 0.9, 0.4, 0.3, 0.3, 5.0])
    group_index = torch.tensor([0, 0, 1, 1, 0, 1])
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(
        ADVANTAGES[name](rewards[order], group_index[order]), ADVANTAGES[name](rewards, group_index)[order]
    )


@pytest.mark.parametrize("name", ADVANTAGES)
def test_advantages_do_not_change_when_a_group_is_shifted(name):
    rewards = torch.tensor([0.0, 1.0, 2.0, 5.0])
    group_index = torch.tensor([0, 0, 1, 1])
    shifted = rewards + torch.tensor([10.0, 10.0, -3.0, -3.0])
    torch.testing.assert_close(ADVANTAGES[name](shifted, group_index), ADVANTAGES[name](rewards, group_index))


@pytest.mark.parametrize("name", ADVANTAGES)
def test_equal_rewards_and_groups_of_one_give_exactly_zero(name):
    # 0.1 * 3 / 3 is not 0.1 in binary: the zero must not depend on luck
    rewards = torch.tensor([0.1, 0.1, 0.1, 7.0, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7], dtype=torch.float64)
    group_index = torch.tensor([0, 0, 0, 1, 2, 2, 2, 2, 2, 2])
    assert ADVANTAGES[name](rewards, group_index).tolist() == [0.0] * 10


@pytest.mark.parametrize("name", ADVANTAGES)
def test_no_rows_give_no_advantages(name):
    assert ADVANTAGES[name](torch.empty(0), torch.empty(0, dtype=torch.int64)).shape == (0,)
    assert values(group_statistics(torch.empty(0), torch.empty(0, dtype=torch.int64))) == {}


@pytest.mark.parametrize("name", ADVANTAGES)
def test_a_reward_that_is_not_finite_is_refused_with_its_row(name):
    with pytest.raises(ValueError, match=r"rewards must be finite, got nan in row 1"):
        ADVANTAGES[name](torch.tensor([0.0, math.nan]), torch.tensor([0, 0]))


def test_group_statistics_count_groups_not_rows():
    rewards = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 2.0, 3.0])
    group_index = torch.tensor([5, 5, 5, 5, 2, 2, 9])
    got = values(group_statistics(rewards, group_index))
    # groups 5 and 9 (one row) are equal; group 2 has a sample std of sqrt(2)
    assert got == pytest.approx({"equal_reward_group_share": 2 / 3, "group_reward_std": math.sqrt(2) / 3})
