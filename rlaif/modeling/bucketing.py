"""Which rows go together: batches under a token budget, padded or packed, and an even split over ranks."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from rlaif.metrics import Mean

__all__ = ["RowSizes", "balance", "balance_packed", "packed_batches", "padding_share", "token_budget_batches"]


@dataclass(frozen=True)
class RowSizes:
    """Tokens of N rows that may have their prompts in common."""

    own: list[int]              # [N] of the completions
    prompt: list[int]           # [N]
    prompt_number: list[int]    # [N], equal for equal prompts
    num_completions: int = 1    # completions a row

    @property
    def lengths(self) -> list[int]:
        """Tokens of every row read on its own."""
        return [own + self.num_completions * prompt for own, prompt in zip(self.own, self.prompt, strict=True)]

    def together(self, rows: Sequence[int]) -> int:
        """Tokens of `rows` where equal prompts are read once."""
        prompts = {self.prompt_number[row]: self.prompt[row] for row in rows}
        return sum(self.own[row] for row in rows) + sum(prompts.values())


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


def balance_packed(sizes: RowSizes, num_ranks: int, *, share: bool) -> list[list[int]]:
    """As `balance`, for rows that lie end to end.

    share: equal prompts of a rank's rows are read once, and rows are kept together by prompt where that leaves the
    fullest rank with fewer tokens than a split row by row.
    """
    by_row = balance(sizes.lengths, num_ranks)
    if not share:
        return by_row
    groups: dict[int, list[int]] = {}
    for row, number in enumerate(sizes.prompt_number):
        groups.setdefault(number, []).append(row)
    members = list(groups.values())
    by_group = [sorted(row for group in rank for row in members[group])
                for rank in balance([sizes.together(rows) for rows in members], num_ranks)]
    return min(by_group, by_row, key=lambda ranks: max(map(sizes.together, ranks)))


def packed_batches(rows: Sequence[int], sizes: RowSizes, max_tokens: int, *, share: bool) -> list[list[int]]:
    """Batches of `rows` of about equal size with at most max_tokens tokens, every row exactly once.

    A row longer than max_tokens gets a batch of its own. share: rows with equal prompts follow each other, and each
    batch reads such a prompt once; else rows keep their order.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be >= 1, got {max_tokens}; it is the size of one batch")
    first = {sizes.prompt_number[row]: place for place, row in reversed(list(enumerate(rows)))}
    order = sorted(rows, key=lambda row: first[sizes.prompt_number[row]]) if share else list(rows)
    lengths = sizes.lengths
    total = sizes.together(order) if share else sum(lengths[row] for row in order)
    target = total / max(1, -(-total // max_tokens))
    batches: list[list[int]] = []
    filled, seen = 0, -1
    for row in order:
        number = sizes.prompt_number[row]
        cost = lengths[row] - (sizes.num_completions - 1) * sizes.prompt[row] if share else lengths[row]
        more = cost - sizes.prompt[row] if share and number == seen else cost
        if not batches or filled + more > max_tokens or filled >= target:
            batches.append([])
            filled, more = 0, cost
        batches[-1].append(row)
        filled, seen = filled + more, number
    return batches


def padding_share(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> Mean:
    """The share of padding among the cells of all batches, each padded to its longest row."""
    cells = sum(len(rows) * max(lengths[row] for row in rows) for rows in batches if rows)
    tokens = sum(lengths[row] for rows in batches for row in rows)
    return Mean(cells - tokens, cells)


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
