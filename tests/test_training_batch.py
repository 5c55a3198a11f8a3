import random

import pyarrow as pa
import pytest

from rlaif.batch import SCORED, SUMMARY_COLUMNS, TRAINING, check
from rlaif.training_batch import advantages, training_rows
from tests.batch_examples import table

REWARDS = {(2, 0): 1.0, (2, 1): 0.0, (0, 0): 0.5, (0, 1): 0.5, (1, 0): 0.0, (1, 1): 3.0}


def scored(keys):
    """Rows of (group, sample), completions of `sample + 1` tokens."""
    return table(SCORED, *({
        "group_id": group, "sample": sample, "reward": REWARDS[group, sample], "completion": f"{group}/{sample}",
        "completion_ids": [5] * (sample + 1), "rollout_logprobs": [-0.5] * (sample + 1)} for group, sample in keys))


def summary(keys):
    return scored(keys).select(list(SUMMARY_COLUMNS))


def test_every_row_gets_the_advantage_of_its_own_reward_in_order():
    found = advantages(summary(list(REWARDS)), "dr_grpo").to_pylist()
    assert [(row["group_id"], row["sample"]) for row in found] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert [row["advantages"] for row in found] == [0.0, 0.0, -1.5, 1.5, 0.5, -0.5]


def test_training_rows_do_not_depend_on_which_rollout_arrived_first():
    keys = list(REWARDS)
    want = training_rows([scored(keys)], advantages(summary(keys), "grpo"))
    generator = random.Random(0)
    for _ in range(5):
        generator.shuffle(keys)
        cut = generator.randint(1, 5)
        found = training_rows([scored(keys[:cut]), scored(keys[cut:])], advantages(summary(keys[::-1]), "grpo"))
        assert found.to_pylist() == want.to_pylist()


def test_a_training_row_is_its_scored_row_with_an_advantage_and_a_mask_over_its_tokens():
    keys = [(1, 1), (1, 0)]
    rows = check(training_rows([scored(keys)], advantages(summary(keys), "dr_grpo")), TRAINING).to_pylist()
    assert [row["completion"] for row in rows] == ["1/0", "1/1"]
    assert [row["advantages"] for row in rows] == [-1.5, 1.5]
    assert [row["loss_mask"] for row in rows] == [[True], [True, True]]
    for row, plain in zip(rows, scored([(1, 0), (1, 1)]).to_pylist(), strict=True):
        assert {name: row[name] for name in SCORED.names} == plain


@pytest.mark.parametrize(
    ("there", "advantages_of"),
    [
        (list(REWARDS), list(REWARDS)[:-1]),                        # a row without an advantage
        (list(REWARDS)[:-1], list(REWARDS)),                        # an advantage without a row
        ([(0, 0), (1, 0)], [(0, 0), (1, 1)]),                       # another sample
        ([(0, 0), (0, 0)], [(0, 0), (1, 0)]),                       # a row twice
    ],
)
def test_rows_and_advantages_that_do_not_match_one_to_one_are_refused(there, advantages_of):
    with pytest.raises(ValueError, match=r"advantages must cover the scored rows one to one, .* differs: "):
        training_rows([scored(there)], advantages(summary(advantages_of), "dr_grpo"))


def test_batches_that_are_not_scored_are_refused():
    rows = scored(list(REWARDS))
    with pytest.raises(ValueError, match=r"batch must have column reward_version"):
        training_rows([rows.drop_columns(["reward_version"])], advantages(summary(list(REWARDS)), "grpo"))


def test_a_reward_that_is_not_a_number_is_refused():
    wrong = summary([(0, 0), (0, 1)]).drop_columns(["reward"]).append_column(
        "reward", pa.array([0.5, float("nan")], pa.float32()))
    with pytest.raises(ValueError, match=r"rewards must be finite, got nan in row 1"):
        advantages(wrong, "grpo")
