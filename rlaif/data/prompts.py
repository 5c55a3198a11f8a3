"""The prompts of a run: read from their sets, checked row by row, tokenized as the policy reads them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlaif.config.checks import UserError
from rlaif.config.prompts import ChatConfig, PromptsConfig, PromptSourceConfig
from rlaif.data.chat import (
    BadConversation,
    conversation,
    judged_text,
    refuse_without_template,
    templated,
    text_fault,
)
from rlaif.data.data_sets import Part
from rlaif.data.prompt_stream import PromptStream, in_order
from rlaif.data.tables import read_table

__all__ = ["PromptSet", "PromptStream", "in_order", "read_prompts"]


@dataclass(frozen=True)
class PromptSet:
    """All prompts of a split: set after set, row after row; a prompt's number in here is its prompt_id.

    rows: prompt (what a judge reads), prompt_ids (what the policy reads), reference, source and sample_weight, as in
    PROMPT.
    names: the data's own id of each prompt; None where its set has no column of ids.
    places: file and row number there of each prompt.
    sizes, weights: prompts of each set, and times each of them is drawn in an epoch.
    num_bad, num_too_long: rows that were dropped.
    """

    rows: list[dict[str, Any]]
    names: list[str | None]
    places: list[tuple[str, int]]
    sizes: list[int]
    weights: list[float]
    num_bad: int = 0
    num_too_long: int = 0

    def where(self, prompt_id: int) -> str:
        """As "row 3 of 'a.parquet'", for an error."""
        file, row = self.places[prompt_id]
        return f"row {row} of {file!r}"


def read_prompts(config: PromptsConfig, split: str, tokenizer: PreTrainedTokenizerBase, max_prompt_tokens: int
                 ) -> PromptSet:
    """The prompts of the `split` ("train" or "test").

    Raises UserError, naming set, file, row and column: no text where one must be, bad messages, an id twice, no chat
    template, a prompt without a token or with more than max_prompt_tokens. As `config` says, a bounded number of bad
    rows and the prompts that are too long are dropped and counted instead.
    """
    found: list[_Prompt] = []
    sizes, weights, num_bad, num_too_long = [], [], 0, 0
    for key, source in config.sets(split).items():
        before = num_bad
        prompts, num_bad = _texts(source, config, split, tokenizer, key, num_bad)
        kept = _fitting(prompts, tokenizer, max_prompt_tokens, config.too_long, key)
        if not kept:
            raise UserError(f"{key} must keep prompts, got none in {source.path!r}: {num_bad - before} bad and "
                            f"{len(prompts)} longer than {max_prompt_tokens} tokens")
        sizes.append(len(kept))
        weights.append(source.weight)
        num_too_long += len(prompts) - len(kept)
        found += kept
    return PromptSet([prompt.row for prompt in found], [prompt.name for prompt in found],
                     [prompt.place for prompt in found], sizes, weights, num_bad, num_too_long)


@dataclass
class _Prompt:
    """A prompt on its way. written: what the policy goes on from; is_templated: with the special tokens in it."""

    row: dict[str, Any]
    name: str | None
    place: tuple[str, int]
    written: str
    is_templated: bool


class _BadRow(ValueError):
    """What is wrong with a row, and what to do about it."""

    def __init__(self, fault: str, cure: str = "mend the row or raise prompts.max_bad_rows") -> None:
        super().__init__(fault)
        self.cure = cure


def _texts(source: PromptSourceConfig, config: PromptsConfig, split: str, tokenizer: PreTrainedTokenizerBase, key: str,
           num_bad: int) -> tuple[list[_Prompt], int]:
    """What a set's rows say, and how many rows say nothing, `num_bad` of the sets before among them."""
    columns = source.columns
    table = read_table(source.path, columns=list(columns.values()), num_rows=source.num_rows, seed=config.seed, key=key,
                       part=Part(source.split, split, source.subset, source.revision), is_narrow=True)
    if "messages" in columns or config.chat.wrap_prompts:
        refuse_without_template(tokenizer, key)
    prompts: list[_Prompt] = []
    numbers: dict[str, int] = {}    # of the rows, by name
    for number, row in enumerate(table.rows):
        try:
            prompt = _prompt(row, table.place(number), source, config.chat, tokenizer)
        except _BadRow as error:
            num_bad += 1
            if num_bad > config.max_bad_rows:
                allowed = f" as bad row {num_bad}" if config.max_bad_rows else ""
                raise UserError(f"{key} {error} in {table.where(number)}{allowed}; {error.cure}") from error
            continue
        if prompt.name is not None and numbers.setdefault(prompt.name, number) != number:
            raise UserError(f"{key} column {columns['id']!r} must tell rows apart, got {prompt.name!r} in "
                            f"{table.where(numbers[prompt.name])} and in {table.where(number)}")
        prompts.append(prompt)
    return prompts, num_bad


def _prompt(row: dict[str, Any], place: tuple[str, int], source: PromptSourceConfig, chat: ChatConfig,
            tokenizer: PreTrainedTokenizerBase) -> _Prompt:
    cells = {name: _cell(name, column, row) for name, column in source.columns.items()}
    messages, written = cells.get("messages"), cells.get("prompt")
    if messages is None and chat.wrap_prompts:
        messages = [{"role": "user", "content": written}]
    read = written
    if messages is not None:
        read = judged_text(messages, chat.judge_reads)
        try:
            written = templated(messages, tokenizer, chat)
        except BadConversation as error:
            raise _BadRow(f"column {source.columns.get('messages', source.columns.get('prompt'))!r} {error}") from error
    return _Prompt({"prompt": read, "source": cells.get("source", source.path), "reference": cells.get("reference"),
                    "sample_weight": cells.get("sample_weight", 1.0)},
                   cells.get("id"), place, written, messages is not None)


def _cell(name: str, column: str, row: dict[str, Any]) -> Any:
    """What `row` has for our column `name`: messages, or text that says something."""
    if column not in row:
        raise _BadRow(f"must have the column {column!r}, got {sorted(row)}", "map it in the config")
    value = row[column]
    if name == "messages":
        try:
            return conversation(value)
        except BadConversation as error:
            raise _BadRow(f"column {column!r} {error}") from error
    if name == "id" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if name == "sample_weight":
        return _weight(column, value)
    fault = text_fault(value)
    if fault:
        raise _BadRow(f"column {column!r} {fault}")
    return value


def _weight(column: str, value: Any) -> float:
    """A number, or, of a CSV, its text."""
    try:
        found = math.nan if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not 0 <= found < math.inf:
        raise _BadRow(f"column {column!r} must hold a finite number >= 0, got {value!r}")
    return found


def _fitting(prompts: Sequence[_Prompt], tokenizer: PreTrainedTokenizerBase, max_prompt_tokens: int, too_long: str,
             key: str) -> list[_Prompt]:
    """`prompts` with their tokens, less those that are too long."""
    if not prompts:
        return []
    is_templated = prompts[0].is_templated      # of one set: all or none
    ids = tokenizer([prompt.written for prompt in prompts], add_special_tokens=not is_templated)["input_ids"]
    long = [number for number, tokens in enumerate(ids) if len(tokens) > max_prompt_tokens]
    for prompt, tokens in zip(prompts, ids, strict=True):
        if not tokens:
            raise UserError(f"{key} must hold prompts of at least one token, got none in row {prompt.place[1]} of "
                            f"{prompt.place[0]!r}")
        prompt.row["prompt_ids"] = tokens
    if long and too_long == "refuse":
        file, row = prompts[long[0]].place
        raise UserError(f"{key} must fit into {max_prompt_tokens} tokens (max_model_len less rollout.max_tokens), got "
                        f"{len(long)} longer ones, first row {row} with {len(ids[long[0]])}; raise "
                        f"rollout.engine.max_model_len, shorten them in {file!r}, or set prompts.too_long=drop")
    left_out = set(long)
    return [prompt for number, prompt in enumerate(prompts) if number not in left_out]
