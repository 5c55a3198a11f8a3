import random

import pytest

from rlaif.batch import SCORED, SUMMARY_COLUMNS, check
from rlaif.policy.training_batch import chosen_rows, training_rows
from tests.helpers.batch_examples import table

KEYS = [(2, 0), (2, 1), (0, 0), (0, 1), (1, 0), (1, 1)]


def scored(keys):
    """Rows of (group, sample), completions of `sample + 1` tokens."""
    return table(SCORED, *({
        "group_id": group, "sample": sample, "completion": f"{group}/{sample}",
        "completion_ids": [5] * (sample + 1), "rollout_logprobs": [-0.5] * (sample + 1)} for group, sample in keys))


def chosen(keys, groups):
    return chosen_rows(scored(keys).select(list(SUMMARY_COLUMNS)), groups)


def pairs(rows):
    return [(row["group_id"], row["sample"]) for row in rows.to_pylist()]


def test_every_row_of_the_chosen_groups_is_named_in_order():
    assert pairs(chosen(KEYS, [2, 0])) == [(0, 0), (0, 1), (2, 0), (2, 1)]
    assert chosen(KEYS, [2]).column_names == ["group_id", "sample"]
    assert pairs(chosen(KEYS, [])) == []


def test_a_chosen_group_without_a_row_is_named():
    with pytest.raises(ValueError, match=r"^chosen groups must have rows, got none of group 3$"):
        chosen(KEYS, [2, 3])
    with pytest.raises(ValueError, match=r"^chosen groups must have rows, got none of group 4 and 1 more$"):
        chosen(KEYS, [9, 4])


def test_training_rows_do_not_depend_on_which_rollout_arrived_first():
    keys = list(KEYS)
    want = training_rows([scored(keys)], chosen(keys, [0, 1, 2]))
    assert pairs(want) == sorted(KEYS)
    generator = random.Random(0)
    for _ in range(5):
        generator.shuffle(keys)
        cut = generator.randint(1, 5)
        found = training_rows([scored(keys[:cut]), scored(keys[cut:])], chosen(keys[::-1], [1, 2, 0]))
        assert found.to_pylist() == want.to_pylist()


def test_a_training_row_is_its_scored_row_and_rows_of_other_groups_are_left_out():
    rows = check(training_rows([scored(KEYS)], chosen(KEYS, [1])), SCORED)
    assert rows.to_pylist() == scored([(1, 0), (1, 1)]).to_pylist()
    assert [row["completion"] for row in rows.to_pylist()] == ["1/0", "1/1"]


@pytest.mark.parametrize(
    ("there", "message"),
    [
        (KEYS[:-1], "got 0 of group 1 sample 1; 5 rows were scored, 6 chosen"),
        ([*KEYS, (2, 1)], "got 2 of group 2 sample 1; 7 rows were scored, 6 chosen"),
    ],
)
def test_a_chosen_row_that_is_not_there_once_is_refused(there, message):
    with pytest.raises(ValueError, match=f"chosen rows must be scored once, {message}"):
        training_rows([scored(there)], chosen(KEYS, [0, 1, 2]))


def test_a_row_that_is_chosen_twice_is_refused():
    with pytest.raises(ValueError, match="chosen rows must be different, got 2 of which 1 are"):
        training_rows([scored([(1, 0)])], chosen([(1, 0), (1, 0)], [1]))


def test_batches_that_are_not_scored_are_refused():
    rows = scored(KEYS)
    with pytest.raises(ValueError, match=r"batch must have column reward_version"):
        training_rows([rows.drop_columns(["reward_version"])], chosen(KEYS, [0]))
