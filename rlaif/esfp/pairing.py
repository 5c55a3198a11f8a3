"""Pairwise judging: which of two completions is better, asked in both orders, and what that makes of a group."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlaif.esfp.slots import Slot

__all__ = ["both_orders", "from_other_side", "round_robin", "round_robin_means", "tie_scores"]


def both_orders(forward: Tensor, backward: Tensor, centres: Tensor) -> Tensor:
    """Scores `[N, S]` of the first completion over the second, freed of the order they were read in.

        score(x over y) = (s(x, y) + 2 c - s(y, x)) / 2

    forward, backward: `[N, S]`, s(x, y) and s(y, x). centres: `[S]`, c, the score of a tie; 0 for a margin. Swapping
    the two gives 2 c - score. Source: position bias and its remedy, Zheng et al. 2023 (arXiv 2306.05685), section 3.4.
    """
    assert forward.shape == backward.shape and forward.shape[1:] == centres.shape, (forward.shape, centres.shape)
    return (forward + 2 * centres - backward) / 2


def tie_scores(slots: Sequence[Slot]) -> Tensor:
    """Scores `[S]` of a tie in pairwise slots: the middle of the values, or no margin."""
    return torch.tensor([0.0 if slot.score == "margin" else (slot.values[0] + slot.values[-1]) / 2 for slot in slots])


def from_other_side(probabilities: Tensor, slots: Sequence[Slot]) -> Tensor:
    """Probabilities `[N, S, K]` of pairwise classes as the other completion sees them: each slot's classes reversed."""
    seen = probabilities.clone()
    for s, slot in enumerate(slots):
        seen[:, s, : len(slot.classes)] = probabilities[:, s, : len(slot.classes)].flip(-1)
    return seen


def round_robin(group_ids: Sequence[int]) -> tuple[list[int], list[int]]:
    """Rows of every unordered pair inside a group, first < second; a group of n has n (n - 1) / 2 pairs."""
    groups: dict[int, list[int]] = {}
    for row, group in enumerate(group_ids):
        groups.setdefault(group, []).append(row)
    pairs = [(a, b) for rows in groups.values() for i, a in enumerate(rows) for b in rows[i + 1 :]]
    return [a for a, _ in pairs], [b for _, b in pairs]


def round_robin_means(of_first: Tensor, of_second: Tensor, first: Sequence[int], second: Sequence[int],
                      alone: Tensor, num_rows: int) -> Tensor:
    """`[num_rows, ...]`: each row's mean over its pairs; `alone` `[...]` for a row in none.

    of_first, of_second: `[P, ...]`, what pair p says of row first[p] and of row second[p].
    """
    assert len(of_first) == len(of_second) == len(first) == len(second), (of_first.shape, of_second.shape, len(first))
    sums = torch.zeros(num_rows, *alone.shape)
    counts = torch.zeros(num_rows)
    for rows, part in ((first, of_first), (second, of_second)):
        index = torch.tensor(rows, dtype=torch.int64)
        sums.index_add_(0, index, part)
        counts.index_add_(0, index, torch.ones(len(rows)))
    counts = counts.view(-1, *[1] * alone.ndim)
    return torch.where(counts > 0, sums / counts.clamp(min=1), alone.expand_as(sums))
