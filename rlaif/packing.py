"""Rows laid end to end in one sequence: nothing is computed for padding, and a prompt of several rows only once.

    prompt completion | prompt completion | prompt | its completion | its completion | ...

A row's tokens see the row's earlier tokens and nothing else; positions begin anew in every row. The last token of a
completion is left out: nothing is predicted from it. transformers' attention interface makes this possible for every
model that uses it; `rlaif.completion_model` looks whether a model does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

__all__ = ["ATTENTION", "Packed", "num_packed_tokens", "pack"]

ATTENTION = "packed_rows"   # its name in transformers' attention interface
_NEVER = 1 << 30            # position of a key that no query sees
_STRETCH, _SLACK = 1.25, 8  # pieces of one block: the longest has at most so many times the shortest's places, and some
_MAX_SCORES = 1 << 25       # of a block, 128 MB: above them torch's fused kernel is taken on a CPU too


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


def num_packed_tokens(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], *, share: bool) -> int:
    """Places that `pack` needs for these rows."""
    kept = [(tuple(prompt), len(completion) - 1) for prompt, completion in zip(prompts, completions, strict=True)
            if completion]
    read = {prompt for prompt, _ in kept} if share else [prompt for prompt, _ in kept]
    return sum(map(len, read)) + sum(size for _, size in kept)


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


# --- attention ---------------------------------------------------------------------------------------------------

# What other attentions take and this one does not: a model that gives one of these cannot be packed.
_REFUSED = ("softcap", "s_aux", "sinks", "position_bias", "head_mask")


def _attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *,
               packed: Packed | None = None, dropout: float = 0.0, scaling: float | None = None,
               sliding_window: int | None = None, **kwargs: Any) -> tuple[Tensor, None]:
    """Every row's tokens to the row's earlier tokens, `[B, T, N, D]`; the signature is transformers'.

    query: `[B, N, T, D]`. key, value: `[B, G, T, D]`, N a multiple of G. Without `packed` rows are whole, or filled up
    on the right, where no token that counts sees what fills up. sliding_window: tokens this far apart and farther do
    not see each other.
    """
    odd = [name for name in _REFUSED if kwargs.get(name) is not None]
    if odd or attention_mask is not None or not getattr(module, "is_causal", True):
        raise ValueError(f"attention must be plain and causal to be packed, got {odd or 'a mask of the model'}")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = sliding_window if sliding_window is not None and sliding_window < query.shape[2] else None
    if packed is None:
        assert query.shape[2] == key.shape[2], "rows are read whole, without a cache"
        found = _fused(query, key, value, _window_mask(query.shape[2], window, query.device), dropout, scaling)
        return found.transpose(1, 2), None
    if _has_row_kernel(query) and packed.lengths is not None and dropout == 0.0:
        return _by_row_kernel(query, key, value, packed, scaling, window), None
    keys, values, sizes = key[0], value[0], [sum(block.sizes) for block in packed.blocks]
    prompt_sizes = [len(block.sizes) * block.prompts for block in packed.blocks]
    prompt_keys, prompt_values = (part.index_select(1, packed.prompt_places).split(prompt_sizes, dim=1)
                                  for part in (keys, values))
    blocks = zip(packed.blocks, query[0].split(sizes, dim=1), keys.split(sizes, dim=1), values.split(sizes, dim=1),
                 prompt_keys, prompt_values, strict=True)
    found = [_attend(number, packed, part, window, dropout, scaling) for number, part in enumerate(blocks)]
    return torch.cat(found, dim=1).transpose(0, 1).unsqueeze(0), None


def _attend(number: int, packed: Packed, part: tuple[Block, Tensor, Tensor, Tensor, Tensor, Tensor],
            window: int | None, dropout: float, scaling: float) -> Tensor:
    """Attention `[N, M, D]` of the block's pieces.

    part: the block, its query `[N, M, D]`, key and value `[G, M, D]`, and those of its prompts `[G, R * P, D]`.
    """
    block, *states = part
    num_rows = len(block.sizes)
    query, key, value = (state if block.filled is None else state.index_select(1, block.filled)
                         for state in states[:3])
    query, key, value, *before = (state.unflatten(1, (num_rows, -1)) for state in (query, key, value, *states[3:]))
    if block.prompts:
        key, value = torch.cat([before[0], key], dim=2), torch.cat([before[1], value], dim=2)
    is_plain = not block.prompts and window is None
    if query.device.type != "cpu" or query.shape[:3].numel() * key.shape[2] > _MAX_SCORES:
        mask = None if is_plain else packed_mask(number, packed, window, torch.bool)
        found = _fused(*(state.transpose(0, 1) for state in (query, key, value)), mask, dropout, scaling)
        found = found.transpose(0, 1)       # [N, R, Q, D]
    else:
        found = _by_products(query, key, value, packed_mask(number, packed, window, torch.float32), dropout, scaling)
    found = found.flatten(1, 2)
    return found if block.kept is None else found.index_select(1, block.kept)


def packed_mask(number: int, packed: Packed, window: int | None, dtype: torch.dtype) -> Tensor:
    """What the queries of block `number` see: `[R or 1, 1, Q, K]` bool, or `[R or 1, Q, K]` to be added."""
    made = packed.masks.get((number, window, dtype))
    if made is None:
        block = packed.blocks[number]
        distance = block.query_positions.unsqueeze(2) - block.key_positions.unsqueeze(1)
        made = distance >= 0 if window is None else (distance >= 0) & (distance < window)
        if dtype == torch.bool:
            made = made.unsqueeze(1)
        else:
            made = torch.zeros(made.shape, dtype=dtype, device=made.device).masked_fill_(~made, -torch.inf)
        packed.masks[number, window, dtype] = made
    return made


def _by_products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout: float, scaling: float) -> Tensor:
    """Attention `[N, R, Q, D]` by whole products: on a CPU the fused kernel's gradient takes several times as long.

    query: `[N, R, Q, D]`. key, value: `[G, R, K, D]`. mask: `[R or 1, Q, K]`.
    """
    num_heads, num_rows, longest, width = query.shape
    groups = len(key)
    # The heads that share a key lie below each other, as if they were more queries.
    query = (query * scaling).unflatten(0, (groups, -1)).transpose(1, 2).reshape(groups * num_rows, -1, width)
    key, value = key.reshape(groups * num_rows, -1, width), value.reshape(groups * num_rows, -1, width)
    scores = torch.bmm(query, key.transpose(1, 2)).view(groups, num_rows, -1, longest, key.shape[1])
    scores += mask.unsqueeze(1).to(scores.dtype)
    shares = torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
    shares = functional.dropout(shares, dropout) if dropout else shares
    found = torch.bmm(shares.view(groups * num_rows, -1, key.shape[1]), value)
    return found.view(groups, num_rows, -1, longest, width).transpose(1, 2).reshape(num_heads, num_rows, longest, width)


def _fused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, scaling: float) -> Tensor:
    """Attention `[B, N, Q, D]` by torch's fused kernels. query: `[B, N, Q, D]`. key, value: `[B, G, K, D]`."""
    return functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1])


def _window_mask(length: int, window: int | None, device: torch.device) -> Tensor | None:
    if window is None:
        return None
    places = torch.arange(length, device=device)
    distance = places.unsqueeze(1) - places
    return (distance >= 0) & (distance < window)


def _has_row_kernel(query: Tensor) -> bool:
    """Whether torch's flash attention over rows of any length takes `query`."""
    return (query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and query.shape[-1] <= 256
            and torch.cuda.get_device_capability(query.device) >= (8, 0))


def _by_row_kernel(query: Tensor, key: Tensor, value: Tensor, packed: Packed, scaling: float, window: int | None
                   ) -> Tensor:
    """Attention `[1, T, N, D]` of all rows in one call."""
    from torch.nn.attention.varlen import varlen_attn

    assert packed.lengths is not None
    ends = packed.masks.get("ends")
    if ends is None:
        ends = packed.masks["ends"] = torch.tensor([0, *accumulate(packed.lengths)], dtype=torch.int32,
                                                   device=query.device)
    longest = max(packed.lengths)
    query, key, value = (part[0].transpose(0, 1).contiguous() for part in (query, key, value))
    seen_before = -1 if window is None else window - 1
    found = varlen_attn(query, key, value, ends, ends, longest, longest, scale=scaling, window_size=(seen_before, 0),
                        enable_gqa=query.shape[1] != key.shape[1])
    return found.unsqueeze(0)


AttentionInterface.register(ATTENTION, _attention)
