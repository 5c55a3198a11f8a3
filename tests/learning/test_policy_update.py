import pytest

from rlaif.batch import SCORED
from rlaif.config.algorithm import AlgorithmConfig
from rlaif.learning.objectives import PolicyOptions
from rlaif.learning.policy_update import advantage_inputs, columns_of_step, minibatches, needed_columns
from rlaif.policy.estimation import Estimated
from tests.helpers.batch_examples import table


@pytest.mark.parametrize(("options", "kl", "needed"), [
    ({}, 0.0, []),
    ({}, 0.1, ["reference_logprobs"]),
    ({"num_epochs": 2}, 0.0, ["proximal_logprobs"]),
    ({"num_minibatches": 2}, 0.1, ["proximal_logprobs", "reference_logprobs"]),
    ({"kl_in": "reward"}, 0.1, ["proximal_logprobs", "reference_logprobs"]),
    ({"kl_in": "reward"}, 0.0, []),
    ({"advantage": "gae"}, 0.0, ["values"]),
])
def test_only_what_is_needed_is_computed(options, kl, needed):
    assert needed_columns(AlgorithmConfig(**options), kl) == needed


def test_minibatches_hold_every_row_once_and_whole_groups():
    groups = [0, 0, 1, 1, 2, 2, 5, 5]
    found = minibatches(groups, 2, [0, 1])
    assert sorted(row for part in found for row in part) == list(range(8))
    assert [len(part) for part in found] == [4, 4]
    for part in found:
        assert all(part.count(row ^ 1) == 1 for row in part)
    assert found == minibatches(groups, 2, [0, 1])
    assert any(found != minibatches(groups, 2, [0, seed]) for seed in range(2, 6))


def test_a_group_that_a_cut_goes_through_is_a_group_of_both_parts():
    groups = [group for group in (3, 5, 8) for _ in range(4)]
    parts = minibatches(groups, 2, [0, 1])
    assert sorted(row for part in parts for row in part) == list(range(12))
    rows = table(SCORED, *({"group_id": group, "sample": number % 4, "completion_ids": [4, 5],
                            "rollout_logprobs": [-1.0, -1.0]} for number, group in enumerate(groups)))
    estimated = Estimated([[1.0, 1.0]] * 12, None, [True] * 12, {}, None)
    options = PolicyOptions(AlgorithmConfig(mean="group"), max_tokens=2)
    for part in parts:
        kept, columns = columns_of_step(rows, part, estimated, {}, options)
        assert kept == part
        sizes = sorted([groups[row] for row in part].count(group) for group in {groups[row] for row in part})
        assert sizes == [2, 4]
        # two groups of a half each: of 8 tokens, and of the 4 of the half that is here
        whole = [row for row in part if [groups[other] for other in part].count(groups[row]) == 4]
        assert columns["token_weights"] == pytest.approx([1 / 16 if row in whole else 1 / 8 for row in part])


def test_one_minibatch_keeps_the_order_and_there_are_no_more_than_rows():
    assert minibatches([3, 3, 4], 1, [0]) == [[0, 1, 2]]
    assert sorted(map(len, minibatches([3, 3, 4], 7, [0]))) == [1, 1, 1]


ROWS = [{"group_id": 1, "sample": 0, "completion_ids": [4, 5], "rollout_logprobs": [-1.0, -1.0], "reward": 1.0},
        {"group_id": 1, "sample": 1, "completion_ids": [4], "rollout_logprobs": [-1.0], "reward": 0.5,
         "finish_reason": "length"},
        {"group_id": 2, "sample": 0, "completion_ids": [4, 5, 6], "rollout_logprobs": [-1.0] * 3, "reward": 0.25}]


def test_advantages_are_made_of_the_rows_columns():
    rows = table(SCORED, *ROWS)
    found = advantage_inputs(rows, {"values": [[0.0]]}, PolicyOptions(max_tokens=3), 0.1)
    assert (found.rewards, found.group_index, found.num_tokens, found.is_cut) == (
        [1.0, 0.5, 0.25], [1, 1, 2], [2, 1, 3], [False, True, False])
    assert found.max_tokens == 3 and found.kl_coefficient == 0.1 and found.values == [[0.0]]
    assert found.reward_terms is None
    separate = PolicyOptions(AlgorithmConfig(parts="separate"), max_tokens=3, term_weights={"esfp": 2.0})
    found = advantage_inputs(rows, {}, separate, 0.0)
    assert found.reward_terms == [{"esfp": 0.75}] * 3 and found.term_weights == {"esfp": 2.0}


def test_rows_without_a_token_to_learn_are_left_out_but_weigh_as_they_should():
    rows = table(SCORED, *ROWS)
    estimated = Estimated([[1.0, 1.0], [-1.0], [0.5] * 3], [[0.1, 0.2], [0.3], [0.4] * 3], [True, False, True], {},
                          None)
    options = PolicyOptions(AlgorithmConfig(mean="constant"), max_tokens=10)
    kept, columns = columns_of_step(rows, [2, 1, 0], estimated, {"values": [[1, 2], [3], [4, 5, 6]]}, options)
    assert kept == [2, 0]
    # the sum over tokens over max_tokens times all three rows
    assert columns["token_weights"] == pytest.approx([1 / 30, 1 / 30])
    assert columns["advantages"] == [[0.5] * 3, [1.0, 1.0]] and columns["loss_mask"] == [[True] * 3, [True] * 2]
    assert columns["values"] == [[4, 5, 6], [1, 2]] and columns["returns"] == [[0.4] * 3, [0.1, 0.2]]
    weighted = table(SCORED, *(row | {"sample_weight": weight} for row, weight in zip(ROWS, (1, 1, 3), strict=True)))
    _, columns = columns_of_step(weighted, [2, 0], estimated, {}, PolicyOptions(max_tokens=10))
    assert columns["token_weights"] == pytest.approx([3 / 11, 1 / 11])
