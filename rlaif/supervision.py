"""Rows for supervised training: encoded, checked, and drawn in batches."""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from rlaif.batch import SUPERVISED, from_rows
from rlaif.config import SftConfig, UserError
from rlaif.tables import read_rows


def supervised_texts(config: SftConfig, split: str) -> list[tuple[str, str]]:
    """(input, target) texts of the `split` ("train" or "dev"); any column of the data may be a field of the input."""
    try:
        fields = {name for _, name, _, _ in string.Formatter().parse(config.input_template) if name is not None}
    except ValueError as error:
        raise UserError(f"input_template must be a template, got {config.input_template!r}: {error}") from error
    if not fields:
        raise UserError(f"input_template must have a {{field}}, got {config.input_template!r}")
    rows = read_rows(getattr(config.data, split), columns=sorted(fields | {config.target_column}),
                     num_rows=getattr(config.data, f"num_{split}"), seed=config.data.seed, key=f"data.{split}")
    return [(config.input_template.format(**row), row[config.target_column]) for row in rows]


def supervised_rows(texts: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase, max_tokens: int, key: str
                    ) -> pa.Table:
    """SUPERVISED rows; the target ends with the tokenizer's end token.

    Raises UserError if any row is longer than max_tokens, how many and the first, or has an input without a token.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(f"tokenizer must have an end token for {key}, got none; set eos_token in its folder")
    inputs = tokenizer([text for text, _ in texts])["input_ids"]
    targets = tokenizer([text for _, text in texts], add_special_tokens=False)["input_ids"]
    rows = [{"prompt_ids": ids, "completion_ids": [*target, tokenizer.eos_token_id]}
            for ids, target in zip(inputs, targets, strict=True)]
    empty = [number for number, row in enumerate(rows) if not row["prompt_ids"]]
    if empty:
        raise UserError(f"{key} must have inputs of at least one token, got {texts[empty[0]][0]!r} in row {empty[0]}")
    _refuse_long([len(row["prompt_ids"]) + len(row["completion_ids"]) for row in rows], max_tokens, key)
    return from_rows(rows, SUPERVISED)


def _refuse_long(lengths: Sequence[int], max_tokens: int, key: str) -> None:
    long = [row for row, length in enumerate(lengths) if length > max_tokens]
    if long:
        raise UserError(f"{key} must fit into max_tokens = {max_tokens}, got {len(long)} longer rows, first row "
                        f"{long[0]} with {lengths[long[0]]} tokens; raise max_tokens or shorten them")


def batches(num_rows: int, batch_size: int, num_batches: int, seed: int) -> Iterator[list[int]]:
    """`num_batches` lists of row indices; every row once an epoch, in an order that (seed, epoch) draws.

    Batches are full: one that an epoch's end falls into goes on with the next epoch.
    """
    batch_size = min(batch_size, num_rows)
    waiting: list[int] = []
    epoch = 0
    for _ in range(num_batches):
        if len(waiting) < batch_size:
            waiting += np.random.default_rng([seed, epoch]).permutation(num_rows).tolist()
            epoch += 1
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]
