"""Attention of rows that lie end to end, for every model that uses transformers' attention interface.

On a CPU by whole products of pieces of similar length; on a GPU by torch's flash attention over rows of any length, or
piece by piece with its other kernels. rlaif.learning.completion_model looks whether a model can do with it.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

from rlaif.modeling.packing import Block, Packed

__all__ = ["ATTENTION"]

ATTENTION = "packed_rows"   # its name in transformers' attention interface
_MAX_SCORES = 1 << 25       # of a block, 128 MB: above them torch's fused kernel is taken on a CPU too

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
