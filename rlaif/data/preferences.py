"""Pairs for preference training: a prompt, the better and the worse completion; read, encoded and checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from rlaif.batch import PREFERENCE, from_rows
from rlaif.config.checks import UserError
from rlaif.config.dpo import DpoConfig
from rlaif.data.chat import shown, text_fault
from rlaif.data.supervision import input_ids, is_chat, read_inputs, refuse_long, target_ids

Pair = tuple[str, str, str]     # input, chosen, rejected


def preference_texts(config: DpoConfig, split: str, tokenizer: PreTrainedTokenizerBase) -> list[Pair]:
    """(input, chosen, rejected) texts of the `split` ("train" or "dev"); the sides in chat are all that the template
    puts behind the input.

    Raises UserError naming the key and the row: what `read_inputs` refuses, a completion that is no text, and a pair of
    equal sides, which says nothing.
    """
    rows, inputs = read_inputs(config, split, [], tokenizer)
    key, source = f"data.{split}", getattr(config.data, split)
    found = []
    for number, (row, read) in enumerate(zip(rows, inputs, strict=True)):
        where = f"row {number} of {source!r}"
        chosen, rejected = (_answer(row, column, key, where) for column in (config.chosen_column,
                                                                            config.rejected_column))
        if chosen == rejected:
            raise UserError(f"{key} must have two different sides, got {shown(chosen)} twice in {where}; take the row "
                            "out")
        found.append((read.text, read.target(chosen), read.target(rejected)))
    return found


def _answer(row: dict[str, Any], column: str, key: str, where: str) -> str:
    """The completion in a column: its text, or that of the assistant's message at the end of messages."""
    if column not in row:
        raise UserError(f"{key} must have the column {column!r}, got {sorted(row)} in {where}; map it in the config")
    value = row[column]
    if isinstance(value, list):
        last = value[-1] if value else None
        if not isinstance(last, dict) or last.get("role") != "assistant":
            raise UserError(f"{key} column {column!r} must hold messages that end with the assistant's, got "
                            f"{shown(last)} at the end in {where}")
        value = last.get("content")
    fault = text_fault(value)
    if fault:
        raise UserError(f"{key} column {column!r} {fault} in {where}")
    return value


def preference_rows(pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase, max_tokens: int, key: str, *,
                    is_templated: bool) -> pa.Table:
    """PREFERENCE rows; both completions end as rlaif.data.supervision.target_ids says. is_templated: texts went through
    a chat template.

    Raises UserError if any row is longer than max_tokens, how many and the first, or has an input without a token.
    """
    prompts = input_ids([pair[0] for pair in pairs], tokenizer, key, is_templated=is_templated)
    chosen, rejected = (target_ids([pair[side] for pair in pairs], tokenizer, key, is_templated=is_templated)
                        for side in (1, 2))
    refuse_long([len(prompt) + max(len(a), len(b)) for prompt, a, b in zip(prompts, chosen, rejected, strict=True)],
                max_tokens, key)
    return from_rows([{"prompt_ids": prompt, "chosen_ids": a, "rejected_ids": b}
                      for prompt, a, b in zip(prompts, chosen, rejected, strict=True)], PREFERENCE)


def encoded_pairs(config: DpoConfig, tokenizer: PreTrainedTokenizerBase) -> dict[str, pa.Table]:
    """PREFERENCE rows of both splits."""
    return {split: preference_rows(preference_texts(config, split, tokenizer), tokenizer, config.max_tokens,
                                   f"data.{split}", is_templated=is_chat(config)) for split in ("train", "dev")}
