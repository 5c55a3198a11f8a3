"""From rows to padded tensors and back, and which rows go to which rank and micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlaif.modeling.bucketing import RowSizes, balance, balance_packed, packed_batches, token_budget_batches


@dataclass(frozen=True)
class Sequences:
    """Right-padded prompts with their completions.

    input_ids, attention_mask: `[B, L]`. completion_mask: `[B, L - 1]` bool, True where the *next* token belongs to the
    completion, so that it lines up with the logits at that position.
    """

    input_ids: Tensor
    attention_mask: Tensor
    completion_mask: Tensor

    @property
    def labels(self) -> Tensor:
        """The next token at every position, `[B, L - 1]`."""
        return self.input_ids[:, 1:]


def pad_right(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """`rows` of token ids as input_ids and attention_mask, both `[B, L]` int64, L the longest row's length.

    On the right whatever the tokenizer's own side is: positions in a row keep their meaning.
    """
    shape = len(rows), max(map(len, rows))
    input_ids = torch.full(shape, pad_id, dtype=torch.int64)
    attention_mask = torch.zeros(shape, dtype=torch.int64)
    for number, row in enumerate(rows):
        input_ids[number, : len(row)] = torch.tensor(row, dtype=torch.int64)
        attention_mask[number, : len(row)] = 1
    return input_ids, attention_mask


def sequences(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], pad_id: int) -> Sequences:
    """`Sequences` of non-empty prompts and their completions. Masks come from the lengths, never from pad ids."""
    assert all(prompts), "a prompt must have tokens: the first token of a completion is predicted by its last"
    rows = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
    input_ids, attention_mask = pad_right(rows, pad_id)
    completion_mask = torch.zeros((len(rows), input_ids.shape[1] - 1), dtype=torch.bool)
    for number, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        completion_mask[number, len(prompt) - 1 : len(row) - 1] = True
    return Sequences(input_ids, attention_mask, completion_mask)


def spread(values: Sequence[Sequence[float]], mask: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """`values` (one list a row, one entry a completion token) at the True positions of `mask`, zero elsewhere."""
    placed = torch.zeros(mask.shape, dtype=dtype)
    placed[mask] = torch.tensor([entry for row in values for entry in row], dtype=dtype)
    return placed


def place(flat: Tensor, mask: Tensor) -> Tensor:
    """The entries of `flat` `[N]` at the N True places of `mask` `[B, T]`, zero elsewhere; carries the gradient."""
    return torch.zeros(mask.shape, dtype=flat.dtype, device=mask.device).index_put((mask,), flat)


def plan(lengths: Sequence[int], num_ranks: int, max_tokens: int) -> list[list[list[int]]]:
    """Row indices by rank and micro-batch, for rows that are padded to the longest of their micro-batch.

    Every rank gets the same number of micro-batches: ranks must run collectives in step, so a rank with fewer gets
    empty ones at its end. Deterministic: every rank computes the whole plan by itself.
    """
    ranks = []
    for rows in balance(lengths, num_ranks):
        batches = token_budget_batches([lengths[row] for row in rows], max_tokens)
        ranks.append([[rows[i] for i in batch] for batch in batches])
    return _even(ranks)


def plan_packed(sizes: RowSizes, num_ranks: int, max_tokens: int, *, share: bool) -> list[list[list[int]]]:
    """As `plan`, for rows that lie end to end; share: a prompt of several rows of a micro-batch is read once."""
    return _even([packed_batches(rows, sizes, max_tokens, share=share)
                  for rows in balance_packed(sizes, num_ranks, share=share)])


def _even(ranks: list[list[list[int]]]) -> list[list[list[int]]]:
    deepest = max(len(batches) for batches in ranks)
    return [batches + [[]] * (deepest - len(batches)) for batches in ranks]
