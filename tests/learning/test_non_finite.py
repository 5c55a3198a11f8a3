import math

import pytest

from rlaif.batch import SCORED, SUPERVISED
from rlaif.config.checks import UserError
from rlaif.learning.non_finite import refuse_columns, refused_step, row_at_fault
from tests.helpers.batch_examples import table

ROWS = table(SCORED, {"group_id": 4, "sample": 0}, {"group_id": 4, "sample": 1})


def test_finite_columns_pass():
    refuse_columns({"values": [[0.0, 1e300], []]}, ROWS, 3)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_first_entry_that_is_not_finite_is_named(value):
    with pytest.raises(UserError) as error:
        refuse_columns({"values": [[0.0], [1.0]], "reference_logprobs": [[0.0, 1.0], [0.5, value]]}, ROWS, 3)
    assert str(error.value).startswith(f"reference_logprobs must be finite, got {value} at update 3 in row 1 (group 4, "
                                       "sample 1), token 1; the weights are those of the update before")


def test_the_row_at_fault_is_found_and_all_are_where_none_is():
    losses = {3: 0.5, 5: math.nan, 6: math.inf}
    assert row_at_fault(lambda rows: losses[rows[0]], [3, 5, 6]) == [5]
    assert row_at_fault(lambda rows: 0.0, [3, 5]) == [3, 5]


def test_a_step_that_was_not_taken_names_tensor_rows_and_update():
    message = str(refused_step("gradient of a.weight", math.inf, 7, ROWS, [0, 1]))
    assert message.startswith("gradient of a.weight must be finite, got inf at update 7 in 2 rows, row 0 (group 4, "
                              "sample 0) to row 1 (group 4, sample 1); no weight was changed")
    assert "in row 1;" in str(refused_step("loss", math.nan, 7, table(SUPERVISED), [1]))
