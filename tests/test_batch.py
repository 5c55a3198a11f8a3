import itertools

import pyarrow as pa
import pytest

from rlaif.batch import (
    EXPLAINED,
    JUDGED,
    PARTS,
    PREFERENCE,
    PROMPT,
    ROLLOUT,
    SCORED,
    SUMMARY_COLUMNS,
    SUPERVISED,
    check,
    from_rows,
    with_columns,
)
from tests.helpers.batch_examples import ROW, row, table

CHAIN = {"PROMPT": PROMPT, "ROLLOUT": ROLLOUT, "EXPLAINED": EXPLAINED, "SCORED": SCORED}
SCHEMAS = CHAIN | {"SUPERVISED": SUPERVISED, "PREFERENCE": PREFERENCE, "JUDGED": JUDGED, "PARTS": PARTS}


def unchecked(schema, *rows):
    """As pyarrow makes it: nulls, unknown keys and absent keys pass."""
    return pa.Table.from_pylist(list(rows), schema=schema)


@pytest.mark.parametrize(("first", "second"), list(itertools.pairwise(CHAIN)))
def test_every_schema_begins_with_the_one_before(first, second):
    longer = CHAIN[second]
    assert pa.schema(list(longer)[: len(CHAIN[first])]).equals(CHAIN[first], check_metadata=True)
    assert len(longer) > len(CHAIN[first])


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_field_says_what_an_entry_stands_for_and_its_role(name):
    for field in SCHEMAS[name]:
        said = {key.decode(): value.decode() for key, value in field.metadata.items()}
        assert said["axis"] in ("row", "prompt tokens", "completion tokens", "explanations", "slots",
                                "slot classes"), field.name
        assert said["role"] in ("identity", "text", "tokens", "signal"), field.name
        assert pa.types.is_list(field.type) == (said["axis"] != "row"), field.name


@pytest.mark.parametrize("name", SCHEMAS)
def test_only_a_reference_another_side_and_a_part_that_did_not_judge_may_be_null(name):
    for field in SCHEMAS[name]:
        assert field.nullable == (field.name in ("reference", "other", "value"))
        if pa.types.is_list(field.type):
            assert not field.type.value_field.nullable


def test_the_driver_reads_columns_that_a_scored_batch_has():
    assert set(SUMMARY_COLUMNS) < set(SCORED.names)


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_right_batch_passes_unchanged_whole_and_sliced(name):
    batch = table(SCHEMAS[name])
    assert check(batch, SCHEMAS[name]) is batch
    assert check(batch.slice(1), SCHEMAS[name]).num_rows == 1
    assert check(SCHEMAS[name].empty_table(), SCHEMAS[name]).num_rows == 0


def replaced(column, values, kind=None):
    batch = table(SCORED)
    place = SCORED.names.index(column)
    return batch.set_column(place, column, pa.array(values, kind or SCORED.field(column).type))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: table(SCORED).drop_columns(["prompt"]), "batch must have column prompt, got columns"),
        (lambda: table(EXPLAINED), "batch must have column slot_probabilities"),
        (lambda: table(SCORED).append_column("colour", [["red", "blue"]]), "batch must not have column colour"),
        (lambda: table(SCORED).select(SCORED.names[::-1]), "batch columns must be in the order"),
        (lambda: replaced("reward", [0.5, 0.5], pa.float64()), "column reward must be float, got double"),
        (lambda: replaced("completion_ids", [[1, 2, 3]] * 2, pa.list_(pa.int64())), "column completion_ids must be"),
        (lambda: unchecked(SCORED, ROW, ROW | {"source": None}), "column source must not hold null, got .* in row 1"),
        (lambda: unchecked(SCORED, ROW, ROW | {"completion_ids": [6, None, 1]}),
         r"column completion_ids must not hold null inside a list, got \[6, None, 1\] in row 1"),
        (lambda: unchecked(SCORED, ROW, ROW | {"reward_parts": [("esfp", 0.5), ("gold", None)]}),
         r"column reward_parts must not hold null inside a list, got .*gold.* in row 1"),
        (lambda: unchecked(SCORED, ROW, ROW | {"rollout_logprobs": [-1.0]}),
         "column rollout_logprobs must be as long as completion_ids, got 1 in row 1"),
        (lambda: unchecked(SCORED, ROW | {"rollout_logprobs": []}, ROW),
         "column rollout_logprobs must be as long as completion_ids, got 0 in row 0"),
    ],
)
def test_a_wrong_batch_is_refused_by_column_rule_and_row(make, message):
    with pytest.raises(ValueError, match=message):
        check(make(), SCORED)


def test_the_row_is_counted_over_all_chunks():
    batch = pa.concat_tables([table(PROMPT), unchecked(PROMPT, ROW, ROW | {"prompt": None})])
    with pytest.raises(ValueError, match=r"column prompt must not hold null, got null in row 3"):
        check(batch, PROMPT)


def test_rows_with_an_unknown_or_a_missing_key_are_refused():
    with pytest.raises(ValueError, match=r"row 1 must have exactly the columns of its schema, differs in \['colour'\]"):
        from_rows([row(PROMPT), row(PROMPT, colour="red")], PROMPT)
    short = row(PROMPT)
    del short["source"]
    with pytest.raises(ValueError, match=r"row 0 must have exactly .* differs in \['source'\]"):
        from_rows([short], PROMPT)


def test_rows_come_back_as_they_went_in():
    assert table(SCORED, {}, {"sample": 1, "reference": "so"}).to_pylist() == [
        row(SCORED), row(SCORED, sample=1, reference="so")]


def test_columns_are_added_up_to_the_next_schema_and_no_further():
    new = {name: [ROW[name]] * 2 for name in EXPLAINED.names if name not in ROLLOUT.names}
    explained = with_columns(table(ROLLOUT), EXPLAINED, new)
    assert explained.to_pylist() == [row(EXPLAINED)] * 2
    del new["explanations"]
    with pytest.raises(ValueError, match=r"batch must have column explanations"):
        with_columns(table(ROLLOUT), EXPLAINED, new)
