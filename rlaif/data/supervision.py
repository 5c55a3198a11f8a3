"""Rows for supervised training: read, encoded, checked, and drawn in batches."""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from rlaif.batch import SUPERVISED, from_rows
from rlaif.config.checks import UserError
from rlaif.config.prompts import ChatConfig
from rlaif.config.train import SftConfig, SupervisedDataConfig
from rlaif.data.chat import BadConversation, Turn, assistants_turn, conversation, refuse_without_template, templated
from rlaif.data.tables import read_rows
from rlaif.modeling.models import stop_ids


class InputConfig(Protocol):
    """The part of a configuration that says what the model reads before the text it learns."""

    data: SupervisedDataConfig
    input_template: str
    messages_column: str | None
    chat: ChatConfig


PLAIN = Turn("", "")     # nothing stands around an answer


@dataclass(frozen=True)
class Input:
    """What the model reads of a row before the text it learns, and what stands around that."""

    text: str
    turn: Turn = PLAIN

    def target(self, answer: str) -> str:
        """What is learnt of `answer`, but for an end token behind."""
        return self.turn.before + answer + self.turn.end


def is_chat(config: InputConfig) -> bool:
    """Whether inputs go through the tokenizer's chat template, which writes their special tokens."""
    return config.messages_column is not None or config.chat.wrap_prompts


def supervised_texts(config: SftConfig, split: str, tokenizer: PreTrainedTokenizerBase | None = None
                     ) -> list[tuple[str, str]]:
    """(input, target) texts of the `split` ("train" or "dev"); a target in chat is all that the template puts behind
    the input. tokenizer: needed for chat, see `read_inputs`."""
    rows, inputs = read_inputs(config, split, [config.target_column], tokenizer)
    return [(each.text, each.target(row[config.target_column])) for each, row in zip(inputs, rows, strict=True)]


def read_inputs(config: InputConfig, split: str, columns: Sequence[str], tokenizer: PreTrainedTokenizerBase | None
                ) -> tuple[list[dict[str, Any]], list[Input]]:
    """The rows of the `split` ("train" or "dev"), which have the text `columns`, and the input of each: any column
    may be a field of `input_template`, whose text is the input or, with chat.wrap_prompts, the user's message; or the
    messages of `messages_column` are. Messages go through the chat template of `tokenizer`.

    Raises UserError naming the key, and the row of what cannot be read.
    """
    key, source = f"data.{split}", getattr(config.data, split)
    fields = set() if config.messages_column else _fields(config.input_template)
    rows = read_rows(source, columns=sorted(fields | set(columns)), num_rows=getattr(config.data, f"num_{split}"),
                     seed=config.data.seed, key=key)
    if not is_chat(config):
        return rows, [Input(config.input_template.format(**row)) for row in rows]
    if tokenizer is None:
        raise UserError("policy.model must name a chat model with messages_column or chat.wrap_prompts, got null: a "
                        "model built from nothing has no chat template")
    refuse_without_template(tokenizer, key)
    inputs = []
    for number, row in enumerate(rows):
        try:
            messages = (conversation(row.get(config.messages_column)) if config.messages_column else
                        [{"role": "user", "content": config.input_template.format(**row)}])
            text = templated(messages, tokenizer, config.chat)
            inputs.append(Input(text, assistants_turn(messages, text, tokenizer, config.chat)))
        except BadConversation as error:
            column = f" column {config.messages_column!r}" if config.messages_column else ""
            raise UserError(f"{key}{column} {error}; row {number} of {source!r}") from error
    return rows, inputs


def _fields(template: str) -> set[str]:
    """The columns that `template` has as fields, one at least."""
    try:
        fields = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise UserError(f"input_template must be a template, got {template!r}: {error}") from error
    if not fields:
        raise UserError(f"input_template must have a {{field}}, got {template!r}")
    return fields


def supervised_rows(texts: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase, max_tokens: int, key: str, *,
                    is_templated: bool = False) -> pa.Table:
    """SUPERVISED rows; the target ends as `target_ids` says. is_templated: texts went through a chat template.

    Raises UserError if any row is longer than max_tokens, how many and the first, or has an input without a token.
    """
    inputs = input_ids([text for text, _ in texts], tokenizer, key, is_templated=is_templated)
    targets = target_ids([text for _, text in texts], tokenizer, key, is_templated=is_templated)
    rows = [{"prompt_ids": ids, "completion_ids": target} for ids, target in zip(inputs, targets, strict=True)]
    refuse_long([len(ids) + len(target) for ids, target in zip(inputs, targets, strict=True)], max_tokens, key)
    return from_rows(rows, SUPERVISED)


def input_ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, key: str, *, is_templated: bool
              ) -> list[list[int]]:
    """The tokens of inputs, with the tokenizer's special ones unless a chat template has written them."""
    found = tokenizer(list(texts), add_special_tokens=not is_templated)["input_ids"]
    empty = [number for number, ids in enumerate(found) if not ids]
    if empty:
        raise UserError(f"{key} must have inputs of at least one token, got {texts[empty[0]]!r} in row {empty[0]}")
    return found


def target_ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, key: str, *, is_templated: bool
               ) -> list[list[int]]:
    """The tokens of what is learnt, each with the tokenizer's end token behind: unless a chat template has ended the
    turn with a token at which engines end a completion of this model too, such as <|im_end|>."""
    if tokenizer.eos_token_id is None:
        raise UserError(f"tokenizer must have an end token for {key}, got none; set eos_token in its folder")
    found = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    ends = stop_ids(tokenizer.name_or_path, tokenizer) if is_templated else set()
    return [ids if ids and ids[-1] in ends else [*ids, tokenizer.eos_token_id] for ids in found]


def refuse_long(lengths: Sequence[int], max_tokens: int, key: str) -> None:
    """Raises UserError for rows of more than `max_tokens`: how many, and the first."""
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
