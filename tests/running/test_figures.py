import random

import pyarrow.compute as pc
import pytest

from rlaif.batch import SCORED, SUMMARY_COLUMNS
from rlaif.running.figures import counts, group_figures, means
from tests.helpers.batch_examples import table

ROWS = [
    {"group_id": 7, "sample": 0, "reward": 0.5, "reward_parts": [("esfp", 0.5), ("length", -1.0)],
     "judge_verdicts": [("gold", 1.0)], "finish_reason": "length"},
    {"group_id": 7, "sample": 1, "reward": 1.0, "reward_parts": [("esfp", 1.0)], "judge_verdicts": [("gold", 0.0)]},
    {"group_id": 9, "sample": 0, "reward": 0.25, "reward_parts": [("esfp", 0.25), ("length", 0.0)],
     "judge_verdicts": [("gold", 1.0)], "completion_ids": [4], "rollout_logprobs": [-1.0]},
    {"group_id": 9, "sample": 1, "reward": 0.25, "reward_parts": [("esfp", 0.25), ("length", -0.5)],
     "judge_verdicts": [("gold", 1.0)]},
]


def small_columns(*rows):
    scored = table(SCORED, *rows)
    return scored.select(list(SUMMARY_COLUMNS)).append_column(
        "num_completion_tokens", pc.list_value_length(scored["completion_ids"]))


@pytest.fixture
def summary():
    return small_columns(*ROWS)


def test_means_are_over_rows_and_of_a_part_over_the_rows_it_judged(summary):
    assert means(summary) == {"reward": 0.5, "part_esfp": 0.5, "part_length": -0.5, "gold": 0.75,
                              "completion_tokens": 2.5}


def test_a_slice_says_nothing_of_the_rows_that_were_cut_off(summary):
    assert means(summary.slice(2, 1)) == {"reward": 0.25, "part_esfp": 0.25, "part_length": 0.0, "gold": 1.0,
                                          "completion_tokens": 1.0}


def test_rows_without_parts_or_verdicts_have_no_mean_of_them():
    plain = small_columns({"reward_parts": [], "judge_verdicts": []})
    assert means(plain) == {"reward": 0.75, "completion_tokens": 3.0}


def test_rollouts_tokens_and_cut_ones_are_counted(summary):
    assert counts(summary) == {"num_rollouts": 4, "num_cut": 1, "num_completion_tokens": 10}


def test_groups_of_equal_rewards_are_a_share_of_the_groups_in_any_order(summary):
    want = {"equal_reward_group_share": 0.5, "group_reward_std": pytest.approx(0.125 * 2 ** 0.5, abs=1e-12)}
    assert group_figures(summary) == want
    order = list(range(4))
    random.Random(0).shuffle(order)
    assert group_figures(summary.take(order)) == group_figures(summary)
