"""The Arrow batches that walk between actors: every schema, in pipeline order, and the one `check`.

    PROMPT < ROLLOUT < EXPLAINED < SCORED

Each schema extends the one before it, so a row keeps its whole history. Field metadata says what a column is: `axis`
(what one entry stands for), `unit`, and `role` (identity, text, tokens, signal). pyarrow itself fills absent columns
with null and drops unknown ones, hence `check` at both ends of every actor call.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa


def _field(name: str, kind: pa.DataType, *, axis: str, role: str, unit: str = "", nullable: bool = False) -> pa.Field:
    metadata = {"axis": axis, "role": role} | ({"unit": unit} if unit else {})
    return pa.field(name, kind, nullable=nullable, metadata=metadata)


def _tokens(kind: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("item", kind, nullable=False))


def _extend(schema: pa.Schema, *fields: pa.Field) -> pa.Schema:
    for field in fields:
        schema = schema.append(field)
    return schema


PROMPT = pa.schema([
    _field("prompt_id", pa.int64(), axis="row", role="identity"),          # row number in the prompt file
    _field("epoch", pa.int32(), axis="row", role="identity", unit="passes"),
    _field("group_id", pa.int64(), axis="row", role="identity"),           # place in the stream, unique in a run
    _field("prompt", pa.string(), axis="row", role="text"),
    _field("prompt_ids", _tokens(pa.int32()), axis="prompt tokens", role="tokens"),
    _field("reference", pa.string(), axis="row", role="text", nullable=True),
    _field("source", pa.string(), axis="row", role="identity"),
    _field("sample_weight", pa.float32(), axis="row", role="signal"),      # what its rows count in the loss; usually 1
])

ROLLOUT = _extend(
    PROMPT,
    _field("sample", pa.int32(), axis="row", role="identity"),             # 0 .. group_size - 1
    _field("completion", pa.string(), axis="row", role="text"),
    _field("completion_ids", _tokens(pa.int32()), axis="completion tokens", role="tokens"),
    _field("rollout_logprobs", _tokens(pa.float32()), axis="completion tokens", role="signal", unit="nats"),
    _field("finish_reason", pa.string(), axis="row", role="identity"),     # "stop" or "length"
    _field("policy_version", pa.int64(), axis="row", role="identity", unit="syncs"),        # the oldest of a token's
    # Of every token: a weight update may come while a completion is being written.
    _field("policy_versions", _tokens(pa.int32()), axis="completion tokens", role="identity", unit="syncs"),
)

EXPLAINED = _extend(
    ROLLOUT,
    # Every sample that was asked for, and how it ended: "stop", "length", "input_cut" or "failed". None where the
    # reward asks for no explanations.
    _field("explanations", _tokens(pa.string()), axis="explanations", role="text"),
    _field("explanation_finish_reasons", _tokens(pa.string()), axis="explanations", role="identity"),
    _field("num_explanation_tokens", pa.int32(), axis="row", role="signal", unit="tokens"),
)

SCORED = _extend(
    EXPLAINED,
    # Probabilities of the classes of every slot, slot after slot in the template's order.
    _field("slot_probabilities", _tokens(pa.float32()), axis="slot classes", role="signal", unit="probability"),
    _field("slot_scores", _tokens(pa.float32()), axis="slots", role="signal"),
    _field("slot_entropy", _tokens(pa.float32()), axis="slots", role="signal", unit="nats"),
    # What every part of the reward said of the row, as it said it; a part that did not judge the row is absent.
    _field("reward_parts", pa.map_(pa.string(), pa.float32()), axis="row", role="signal"),
    # The same transformed and gated, without weight, of the parts that are added: see rlaif.rewards.combine.
    _field("reward_terms", pa.map_(pa.string(), pa.float32()), axis="row", role="signal"),
    _field("reward", pa.float32(), axis="row", role="signal"),
    # What a judge that only watches says; never part of the reward.
    _field("judge_verdicts", pa.map_(pa.string(), pa.float32()), axis="row", role="signal"),
    _field("reward_version", pa.string(), axis="row", role="identity"),
)

# What parts of the reward say of ROLLOUT rows before they are combined: one row a part and rollout.
PARTS = pa.schema([
    _field("group_id", pa.int64(), axis="row", role="identity"),
    _field("sample", pa.int32(), axis="row", role="identity"),
    _field("part", pa.string(), axis="row", role="identity"),
    _field("value", pa.float32(), axis="row", role="signal", nullable=True),         # null: not judged
    _field("reward_version", pa.string(), axis="row", role="identity"),
])

# Supervised training: the loss is on completion_ids.
SUPERVISED = pa.schema([
    _field("prompt_ids", _tokens(pa.int32()), axis="prompt tokens", role="tokens"),
    _field("completion_ids", _tokens(pa.int32()), axis="completion tokens", role="tokens"),
])
# Preference training: two completions of a prompt, the better one first.
PREFERENCE = pa.schema([
    _field("prompt_ids", _tokens(pa.int32()), axis="prompt tokens", role="tokens"),
    _field("chosen_ids", _tokens(pa.int32()), axis="completion tokens", role="tokens"),
    _field("rejected_ids", _tokens(pa.int32()), axis="completion tokens", role="tokens"),
])

# Reward training and evaluation: a completion with labels, or a pair with a preference, or both.
JUDGED = pa.schema([
    _field("prompt", pa.string(), axis="row", role="text"),
    _field("completion", pa.string(), axis="row", role="text"),
    _field("explanations", _tokens(pa.string()), axis="explanations", role="text"),
    _field("other", pa.string(), axis="row", role="text", nullable=True),            # the other side of a pair
    _field("other_explanations", _tokens(pa.string()), axis="explanations", role="text"),
    _field("labels", _tokens(pa.int8()), axis="slots", role="signal"),               # class of each slot, -1 = none
    _field("preference", pa.float32(), axis="row", role="signal"),      # 1: completion, 0: other, 0.5: tie, -1: none
    _field("source", pa.string(), axis="row", role="identity"),
])

# What the driver reads of a scored batch; the payload itself stays in the object store.
SUMMARY_COLUMNS = ("group_id", "sample", "policy_version", "reward", "reward_parts", "reward_terms", "judge_verdicts",
                   "finish_reason", "explanation_finish_reasons", "num_explanation_tokens")


def check(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Returns `table` unchanged if it is exactly of `schema`.

    Refuses missing, extra and reordered columns, other types, nulls where the schema has none (inside lists too),
    and token columns whose lengths differ within a row. Raises ValueError naming the column, the rule and the row.
    """
    names = [name for name in schema.names if name not in table.schema.names]
    if names:
        raise ValueError(f"batch must have column {names[0]}, got columns {table.schema.names}")
    for field in table.schema:
        if field.name not in schema.names:
            raise ValueError(f"batch must not have column {field.name}, its schema has {schema.names}")
    if table.schema.names != schema.names:
        raise ValueError(f"batch columns must be in the order {schema.names}, got {table.schema.names}")
    for field, column in zip(schema, table.columns, strict=True):
        if column.type != field.type:
            raise ValueError(f"column {field.name} must be {field.type}, got {column.type}")
        _check_nulls(field, column)
    _check_token_lengths(table)
    return table


def _check_nulls(field: pa.Field, column: pa.ChunkedArray) -> None:
    if not field.nullable and column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise ValueError(f"column {field.name} must not hold null, got null in row {row}")
    if pa.types.is_list(field.type) or pa.types.is_map(field.type):
        for row, entries in enumerate(column.to_pylist() if _has_inner_null(column) else ()):
            if entries and any(entry is None or (isinstance(entry, tuple) and None in entry) for entry in entries):
                raise ValueError(f"column {field.name} must not hold null inside a list, got {entries} in row {row}")


def _has_inner_null(column: pa.ChunkedArray) -> bool:
    if pa.types.is_list(column.type):
        return any(chunk.flatten().null_count for chunk in column.chunks)
    # items is of the whole array that a slice is part of.
    spans = [(chunk.items, chunk.offsets) for chunk in column.chunks]
    return any(items.slice(offsets[0].as_py(), offsets[-1].as_py() - offsets[0].as_py()).null_count
               for items, offsets in spans)


def _check_token_lengths(table: pa.Table) -> None:
    lengths: dict[str, list[int]] = {}
    for name in ("completion_ids", "rollout_logprobs", "policy_versions"):
        if name in table.schema.names:
            lengths[name] = table[name].combine_chunks().value_lengths().to_pylist()
    first = lengths.get("completion_ids")
    for name, other in lengths.items():
        if other != first:
            row = next(i for i, (a, b) in enumerate(zip(first or [], other, strict=True)) if a != b)
            raise ValueError(f"column {name} must be as long as completion_ids, got {other[row]} in row {row}")


def from_rows(rows: Sequence[dict], schema: pa.Schema) -> pa.Table:
    """A checked table of `rows`; unlike pyarrow's own `from_pylist` it refuses unknown and missing keys."""
    names = set(schema.names)
    for number, row in enumerate(rows):
        if row.keys() != names:
            odd = sorted(names ^ row.keys())
            raise ValueError(f"row {number} must have exactly the columns of its schema, differs in {odd}")
    return check(pa.Table.from_pylist(list(rows), schema=schema), schema)


def with_columns(table: pa.Table, schema: pa.Schema, columns: dict[str, Sequence]) -> pa.Table:
    """`table` extended by `columns` to the next `schema`, checked."""
    for name, values in columns.items():
        field = schema.field(name)
        table = table.append_column(field, pa.array(values, type=field.type))
    return check(table.cast(schema) if table.schema.names == schema.names else table, schema)
