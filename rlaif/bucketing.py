"""Which rows go together: batches of similar length under a token budget, and an even split over ranks."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from rlaif.metrics import Mean

__all__ = ["balance", "padding_share", "token_budget_batches"]


def token_budget_batches(
    lengths: Sequence[int], max_tokens: int, max_rows: int | None = None
) -> list[list[int]]:
    """Batches of row indices with rows * longest <= max_tokens, every row exactly once, longest rows first.

    lengths: tokens of each row, >= 0. max_tokens: padded tokens a batch may hold, >= 1. max_rows: rows a
    batch may hold, or None. A row longer than max_tokens gets a batch of its own. Equal lengths keep their
    order, so the result depends on the lengths only; the widest batch comes first, so that running out of
    memory happens at once.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be >= 1, got {max_tokens}; it is the padded size of one batch")
    if max_rows is not None and max_rows < 1:
        raise ValueError(f"max_rows must be >= 1, got {max_rows}; leave it out for no limit")
    assert all(length >= 0 for length in lengths), "lengths must be >= 0"
    batches: list[list[int]] = []
    room = 0  # rows that still fit into the last batch
    for row in _longest_first(lengths):
        if room == 0:
            batches.append([])
            room = max(1, max_tokens // max(1, lengths[row]))
            room = room if max_rows is None else min(room, max_rows)
        batches[-1].append(row)
        room -= 1
    return batches


def balance(lengths: Sequence[int], num_ranks: int) -> list[list[int]]:
    """Row indices for each rank, `num_ranks` lists in ascending order, with nearly equal sums of lengths.

    Greedy: the longest row left goes to the rank with the fewest tokens (then fewest rows, then lowest
    number). Every row appears exactly once; with fewer rows than ranks some lists are empty.

    Source: longest processing time first, Graham 1969, Bounds on Multiprocessing Timing Anomalies: the
    fullest rank has at most 4/3 - 1/(3 num_ranks) times the tokens it has in the best split.
    """
    if num_ranks < 1:
        raise ValueError(f"num_ranks must be >= 1, got {num_ranks}; it is the number of learners")
    assert all(length >= 0 for length in lengths), "lengths must be >= 0"
    ranks: list[list[int]] = [[] for _ in range(num_ranks)]
    heap = [(0, 0, rank) for rank in range(num_ranks)]  # (tokens, rows, rank)
    for row in _longest_first(lengths):
        tokens, rows, rank = heap[0]
        ranks[rank].append(row)
        heapq.heapreplace(heap, (tokens + lengths[row], rows + 1, rank))
    return [sorted(rows) for rows in ranks]


def padding_share(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> Mean:
    """The share of padding among the cells of all batches, each padded to its longest row."""
    cells = sum(len(rows) * max(lengths[row] for row in rows) for rows in batches if rows)
    tokens = sum(lengths[row] for rows in batches for row in rows)
    return Mean(cells - tokens, cells)


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
