"""The prompt stream: rows in an order drawn anew each epoch from the seed, with a cursor that says where it stands."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from rlaif.batch import PROMPT, from_rows
from rlaif.config import PromptsConfig, UserError
from rlaif.tables import read_rows


def prompt_rows(config: PromptsConfig, split: str, tokenizer: PreTrainedTokenizerBase, max_prompt_tokens: int
                ) -> list[dict]:
    """Rows of the `split` ("train" or "test") with prompt, prompt_ids, reference and source.

    Raises UserError if any prompt is empty or longer than max_prompt_tokens: how many, and the first.
    """
    source = getattr(config, split)
    columns = [config.prompt_column] + ([config.reference_column] if config.reference_column else [])
    rows = read_rows(source, columns=columns, num_rows=getattr(config, f"num_{split}"), seed=config.seed,
                     key=f"prompts.{split}")
    texts = [row[config.prompt_column] for row in rows]
    ids = tokenizer(texts, add_special_tokens=True)["input_ids"]
    lengths = [len(tokens) for tokens in ids]
    if 0 in lengths:
        raise UserError(f"prompts.{split} must hold prompts of at least one token, got none in row "
                        f"{lengths.index(0)} of {source!r}")
    long = [row for row, length in enumerate(lengths) if length > max_prompt_tokens]
    if long:
        raise UserError(f"prompts.{split} must fit into {max_prompt_tokens} tokens (max_model_len less "
                        f"rollout.max_tokens), got {len(long)} longer ones, first row {long[0]} with "
                        f"{lengths[long[0]]}; raise rollout.engine.max_model_len or shorten them")
    return [{"prompt": text, "prompt_ids": tokens, "source": source,
             "reference": row[config.reference_column] if config.reference_column else None}
            for text, tokens, row in zip(texts, ids, rows, strict=True)]


class PromptStream:
    """Endless PROMPT batches over `rows`: every row once an epoch, in the order that (seed, epoch) draws.

    group_id is the place in the stream, so that a cursor is one number.
    """

    def __init__(self, rows: Sequence[dict], seed: int, cursor: int = 0) -> None:
        self._rows, self._seed, self.cursor = rows, seed, cursor
        self._epoch, self._order = -1, np.arange(0)     # of the epoch drawn last

    def next(self, num_prompts: int) -> pa.Table:
        """The next `num_prompts` prompts; moves the cursor."""
        picked = [self._at(self.cursor + offset) for offset in range(num_prompts)]
        self.cursor += num_prompts
        return from_rows(picked, PROMPT)

    def _at(self, place: int) -> dict:
        epoch, offset = divmod(place, len(self._rows))
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self._seed, epoch]).permutation(len(self._rows))
        prompt_id = int(self._order[offset])
        return {"prompt_id": prompt_id, "epoch": epoch, "group_id": place, **self._rows[prompt_id]}


def in_order(rows: Sequence[dict]) -> pa.Table:
    """All `rows` as one PROMPT batch in file order, for evaluation."""
    return from_rows([{"prompt_id": number, "epoch": 0, "group_id": number, **row}
                      for number, row in enumerate(rows)], PROMPT)
