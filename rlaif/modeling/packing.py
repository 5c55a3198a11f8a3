"""Rows laid end to end in one sequence: nothing is computed for padding, and a prompt of several rows only once.

    prompt completion | prompt completion | prompt | its completion | its completion | ...

A row's tokens see the row's earlier tokens and nothing else; positions begin anew in every row. The last token of a
completion is left out: nothing is predicted from it. The attention is rlaif.modeling.packed_attention.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

__all__ = ["Block", "Packed", "pack"]

_NEVER = 1 << 30            # position of a key that no query sees
_STRETCH, _SLACK = 1.25, 8  # pieces of one block: the longest has at most so many times the shortest's places, and some


@dataclass(frozen=True)
class Block:
    """Pieces of similar length, whose attention is computed together. R pieces, Q places each.

    A piece is a row, a shared prompt, or the completion of a row whose prompt is shared. Places are filled up on the
    right; K = P + Q keys, those of the prompts before the pieces' own.
    """

    sizes: tuple[int, ...]      # places of each piece, sum M
    filled: Tensor | None       # [R * Q] int64, the place among the block's M that stands at each; None: all are full
    kept: Tensor | None         # [M] int64, where each of the M stands among the R * Q
    prompts: int                # P, 0 where pieces have no prompt apart
    query_positions: Tensor     # [R or 1, Q]
    key_positions: Tensor       # [R or 1, K]


@dataclass(frozen=True)
class Packed:
    """Rows end to end. T places, N completion tokens in all, in the order of the rows."""

    input_ids: Tensor           # [1, T] int64
    position_ids: Tensor        # [1, T] int64
    read: Tensor                # [N] int64, the place from which each completion token is predicted
    labels: Tensor              # [N] int64, the completion tokens
    blocks: tuple[Block, ...]   # in the order in which they lie
    prompt_places: Tensor       # [sum of R * P] int64, the places of the pieces' prompts, block after block
    lengths: tuple[int, ...] | None     # of the pieces, for a kernel of rows of any length; None: prompts are shared
    masks: dict[Any, Tensor] = field(default_factory=dict)      # made on first use, for all layers

    def to(self, device: torch.device) -> Packed:
        blocks = tuple(Block(block.sizes, _moved(block.filled, device), _moved(block.kept, device), block.prompts,
                             block.query_positions.to(device), block.key_positions.to(device))
                       for block in self.blocks)
        return Packed(self.input_ids.to(device), self.position_ids.to(device), self.read.to(device),
                      self.labels.to(device), blocks, self.prompt_places.to(device), self.lengths)


def _moved(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor.to(device)


@dataclass(frozen=True)
class _Piece:
    ids: tuple[int, ...]
    first: int              # position of its first token
    prompt: int | None      # number of the piece that is its prompt


def pack(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], *, share: bool) -> Packed:
    """Lays B rows, prompts and completions of token ids, end to end. share: equal prompts are laid down once.

    Prompts are not empty. A row whose completion is empty is left out; where all are, one prompt stands for them.
    """
    assert prompts and all(prompts), "a prompt must have tokens: its last one predicts the completion's first"
    rows = [(tuple(prompt), tuple(completion)) for prompt, completion in zip(prompts, completions, strict=True)]
    counts = Counter(prompt for prompt, completion in rows if completion)
    pieces: list[_Piece] = []
    shared: dict[tuple[int, ...], int] = {}
    reads: list[list[tuple[int, int]]] = []     # of every row, the (piece, offset) of each place that is read
    for prompt, completion in rows:
        if not completion:
            reads.append([])
            continue
        if not share or counts[prompt] == 1:
            pieces.append(_Piece(prompt + completion[:-1], 0, None))
            start = len(prompt) - 1
            reads.append([(len(pieces) - 1, start + t) for t in range(len(completion))])
            continue
        if prompt not in shared:
            shared[prompt] = len(pieces)
            pieces.append(_Piece(prompt, 0, None))
        reads.append([(shared[prompt], len(prompt) - 1)])
        if len(completion) > 1:
            pieces.append(_Piece(completion[:-1], len(prompt), shared[prompt]))
            reads[-1] += [(len(pieces) - 1, t) for t in range(len(completion) - 1)]
    if not pieces:
        pieces.append(_Piece(rows[0][0], 0, None))
    return _laid(pieces, reads, [token for _, completion in rows for token in completion])


def _laid(pieces: list[_Piece], reads: list[list[tuple[int, int]]], labels: list[int]) -> Packed:
    """The pieces in blocks: those without a prompt apart first, each kind by length."""
    order = sorted(range(len(pieces)), key=lambda piece: (pieces[piece].prompt is not None, len(pieces[piece].ids)))
    starts = dict(zip(order, accumulate((len(pieces[piece].ids) for piece in order), initial=0), strict=False))
    blocks, prompt_places = [], []
    for members in _similar(pieces, order):
        block, places = _block([pieces[member] for member in members], pieces, starts)
        blocks.append(block)
        prompt_places += places
    read = [starts[piece] + offset for row in reads for piece, offset in row]
    return Packed(
        torch.tensor([[token for piece in order for token in pieces[piece].ids]]),
        torch.cat([pieces[piece].first + torch.arange(len(pieces[piece].ids)) for piece in order]).unsqueeze(0),
        torch.tensor(read, dtype=torch.int64), torch.tensor(labels, dtype=torch.int64), tuple(blocks),
        torch.tensor(prompt_places, dtype=torch.int64),
        None if prompt_places else tuple(len(pieces[piece].ids) for piece in order))


def _similar(pieces: list[_Piece], order: list[int]) -> list[list[int]]:
    """Runs of pieces in `order` that may go into one block."""
    runs: list[list[int]] = []
    for piece in order:
        first = pieces[runs[-1][0]] if runs else None
        if first is None or (first.prompt is None) != (pieces[piece].prompt is None) or (
                len(pieces[piece].ids) > _STRETCH * len(first.ids) + _SLACK):
            runs.append([])
        runs[-1].append(piece)
    return runs


def _block(members: list[_Piece], pieces: list[_Piece], starts: dict[int, int]) -> tuple[Block, list[int]]:
    sizes = tuple(len(member.ids) for member in members)
    longest = max(sizes)
    ends = list(accumulate(sizes))
    filled = kept = None
    if min(sizes) < longest:
        # What fills up repeats the piece's last place.
        filled = torch.tensor([end - size + min(place, size - 1) for end, size in zip(ends, sizes, strict=True)
                               for place in range(longest)])
        kept = torch.tensor([row * longest + place for row, size in enumerate(sizes) for place in range(size)])
    own = torch.arange(longest)
    if members[0].prompt is None:
        return Block(sizes, filled, kept, 0, own.unsqueeze(0), own.unsqueeze(0)), []
    # Filled up, a piece's own keys go on behind its last query, which never sees them.
    firsts = torch.tensor([member.first for member in members]).unsqueeze(1)
    width = int(firsts.max())
    before = torch.arange(width).expand(len(members), -1)
    queries = firsts + own
    keys = torch.cat([torch.where(before < firsts, before, _NEVER), queries], dim=1)
    if int(firsts.min()) == width:
        queries, keys = queries[:1], keys[:1]
    places = [starts[member.prompt] + min(place, member.first - 1) for member in members for place in range(width)]
    return Block(sizes, filled, kept, width, queries, keys), places
