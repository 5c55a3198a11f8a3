"""Hidden states of an encoder at the slots, with no work done for padding or for a state nobody reads.

    rows of ids -> packed end to end, rows of one length together -> layers, each row attending to itself -> last
    layer at the slots only

Architectures whose attention cannot be replaced (DeBERTa), other devices than a CPU, and training with activation
checkpointing take the padded way, where rows of similar length should come together.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, PreTrainedModel

from rlaif.modeling.collate import pad_right

__all__ = ["states_at"]


def states_at(model: PreTrainedModel, input_ids: Sequence[Sequence[int]], slot_positions: Sequence[Sequence[int]],
              pad_id: int) -> Tensor:
    """The last hidden states `[B, S, H]` of the model's encoder at the slots, in the model's dtype.

    input_ids: B rows of token ids, unpadded, none empty. slot_positions: B rows of S positions. Equal to the model's
    own padded forward up to rounding, gradient included; a row's states do not depend on the other rows, up to
    rounding. Dropout is drawn as the model's mode says. Without a gradient, layers on a CPU run as `_Products` says.
    """
    assert len(input_ids) == len(slot_positions) and all(input_ids), "rows must have tokens and positions"
    is_on_cpu = model.device.type == "cpu"
    # Recomputed in the backward pass, a layer would find the model's own attention and see no row's end.
    is_recomputed = model.is_gradient_checkpointing and model.training and torch.is_grad_enabled()
    can_pack = (is_on_cpu and model.config.model_type in _FAMILIES and not getattr(model.config, "is_decoder", False)
                and not is_recomputed)
    # Other layers than those known here may not take float32 where the model is bfloat16.
    is_known = can_pack or model.dtype == torch.float32
    # A training engine may have put a linear layer of its own in torch's place, as DeepSpeed does for ZeRO 3.
    is_replaced = functional.linear is not torch._C._nn.linear
    is_plain = (not is_on_cpu or not is_known or is_replaced or torch.is_grad_enabled()
                or torch.is_autocast_enabled("cpu"))
    with nullcontext() if is_plain else _Products():
        if can_pack:
            return _packed_states(model.base_model, _pack(input_ids, slot_positions)).to(model.dtype)
        return _padded_states(model.base_model, input_ids, slot_positions, pad_id)


def _padded_states(base: PreTrainedModel, input_ids: Sequence[Sequence[int]], slot_positions: Sequence[Sequence[int]],
                   pad_id: int) -> Tensor:
    ids, mask = (part.to(base.device) for part in pad_right(input_ids, pad_id))
    hidden = base(input_ids=ids, attention_mask=mask).last_hidden_state
    positions = torch.tensor(slot_positions, device=base.device)
    return hidden[torch.arange(len(positions), device=base.device).unsqueeze(1), positions]


@dataclass(frozen=True)
class _Packed:
    """Rows laid end to end, rows of one length side by side. T tokens, B rows, S slots a row."""

    input_ids: Tensor  # [1, T]
    positions: Tensor  # [1, T], the place of each token in its row
    blocks: list[tuple[int, int]]  # (rows, length of each), in packed order
    slots: Tensor  # [B, S], places in [0, T), in packed order
    order: Tensor  # [B], the row that lies at each place


def _pack(input_ids: Sequence[Sequence[int]], slot_positions: Sequence[Sequence[int]]) -> _Packed:
    order = sorted(range(len(input_ids)), key=lambda row: len(input_ids[row]))
    lengths = [len(input_ids[row]) for row in order]
    ids = torch.tensor([token for row in order for token in input_ids[row]])
    positions = torch.cat([torch.arange(length) for length in lengths])
    ends = torch.tensor(lengths).cumsum(0)
    slots = torch.tensor([slot_positions[row] for row in order]) + (ends - torch.tensor(lengths)).unsqueeze(1)
    blocks = [(len(list(same)), length) for length, same in groupby(lengths)]
    return _Packed(ids.unsqueeze(0), positions.unsqueeze(0), blocks, slots, torch.tensor(order))


def _packed_states(base: PreTrainedModel, packed: _Packed) -> Tensor:
    family = _FAMILIES[base.config.model_type]
    with _attending_by_rows(base.config):
        states = family(base, packed)       # [1, B * S, H]
    return states.view(*packed.slots.shape, -1)[packed.order.argsort()]


# --- attention ---------------------------------------------------------------------------------------------------

_NAME = "rows_of_slots"
_LOCK = threading.RLock()
_MAX_SCORES = 1 << 21    # 4 MB
_REGISTER = 32      # bfloat16 numbers in 512 bits


@contextmanager
def _attending_by_rows(config: Any) -> Iterator[None]:
    """Inside, the layers of models with this configuration attend by `_row_attention`; one thread at a time."""
    with _LOCK:
        before = config._attn_implementation
        config._attn_implementation = _NAME
        try:
            yield
        finally:
            config._attn_implementation = before


def _row_attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, *,
                   packed: _Packed, dropout: float = 0.0, scaling: float | None = None,
                   sliding_window: int | None = None, **kwargs: Any) -> tuple[Tensor, None]:
    """Every row's tokens to the row's tokens, `[1, T, N, D]`; the signature is transformers'.

    query, key, value: `[1, N, T, D]`. sliding_window: tokens this far apart and farther do not see each other.
    """
    assert attention_mask is None
    parts, start = [], 0
    for num_rows, length in packed.blocks:
        mask = None
        if sliding_window is not None and length > sliding_window:
            places = torch.arange(length)
            mask = (places.unsqueeze(1) - places).abs() < sliding_window
        cut = slice(start, start + num_rows * length)
        parts.append(_attend(*(part[0, :, cut].unflatten(1, (num_rows, length)) for part in (query, key, value)),
                             dropout, scaling, mask))
        start = cut.stop
    return torch.cat(parts).unsqueeze(0), None


def _slot_attention(query: Tensor, key: Tensor, value: Tensor, packed: _Packed, dropout: float, num_heads: int
                    ) -> Tensor:
    """Every row's slots to the row's tokens, `[1, B * S, H]`. query: `[1, B * S, H]`. key, value: `[1, T, H]`."""
    query, key, value = (part[0].unflatten(-1, (num_heads, -1)).transpose(0, 1) for part in (query, key, value))
    num_slots = packed.slots.shape[1]
    parts, row, start = [], 0, 0
    for num_rows, length in packed.blocks:
        asked = query[:, row * num_slots : (row + num_rows) * num_slots].unflatten(1, (num_rows, num_slots))
        told = (part[:, start : start + num_rows * length].unflatten(1, (num_rows, length)) for part in (key, value))
        parts.append(_attend(asked, *told, dropout, None, None))
        row, start = row + num_rows, start + num_rows * length
    return torch.cat(parts).flatten(1).unsqueeze(0)


def _attend(query: Tensor, key: Tensor, value: Tensor, dropout: float, scaling: float | None, mask: Tensor | None
            ) -> Tensor:
    """Attention `[R * Q, N, D]` of R rows of one length. query: `[N, R, Q, D]`. key, value: `[N, R, L, D]`."""
    query, key, value = (part.transpose(0, 1) for part in (query, key, value))
    if torch.is_grad_enabled() and mask is None:
        found = _attend_with_gradient(query, key, value, dropout, scaling)
    elif query.dtype != torch.bfloat16 or mask is not None:
        found = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout,
                                                        scale=scaling)
    else:
        found = _attend_in_bfloat16(query, key, value, query.shape[-1] ** -0.5 if scaling is None else scaling)
    return found.transpose(1, 2).flatten(0, 1)


def _attend_with_gradient(query: Tensor, key: Tensor, value: Tensor, dropout: float, scaling: float | None) -> Tensor:
    """Attention `[R, N, Q, D]` by whole products: on a CPU the fused kernel's gradient takes several times as long."""
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    return functional.dropout(torch.softmax(scores, dim=-1), dropout) @ value


def _attend_in_bfloat16(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Attention `[R, N, Q, D]` by whole products, which on a CPU takes half the time of the fused kernel.

    query: `[R, N, Q, D]`. key, value: `[R, N, L, D]`. Some rows at a time, so that the scores stay in the cache. The
    keys are filled up to whole vector registers: softmax takes three times as long over an odd number.
    """
    length = key.shape[2]
    missing = -length % _REGISTER
    rows = max(1, _MAX_SCORES // (query.shape[1] * query.shape[2] * (length + missing)))
    parts = []
    for part in zip(query.split(rows), key.split(rows), value.split(rows), strict=True):
        q = part[0].flatten(0, 1)
        k, v = (functional.pad(whole, (0, 0, 0, missing)).flatten(0, 1) for whole in part[1:])
        scores = torch.baddbmm(q.new_empty(1), q, k.transpose(1, 2), beta=0, alpha=scaling)
        scores[:, :, length:] = -math.inf
        parts.append(torch.bmm(torch.softmax(scores, dim=-1), v).unflatten(0, part[0].shape[:2]))
    return torch.cat(parts)


AttentionInterface.register(_NAME, _row_attention)


# --- architectures: (encoder, packed rows) -> states at the slots, [1, B * S, H] -----------------------------------


def _bert(base: PreTrainedModel, packed: _Packed, first_position: int = 0) -> Tensor:
    hidden = base.embeddings(input_ids=packed.input_ids, position_ids=packed.positions + first_position)
    *layers, last = base.encoder.layer
    for layer in layers:
        hidden = layer(hidden, packed=packed)
    reader, slots = last.attention.self, hidden[:, packed.slots.flatten()]
    dropout = reader.dropout.p if reader.training else 0.0
    context = _slot_attention(reader.query(slots), reader.key(hidden), reader.value(hidden), packed, dropout,
                              reader.num_attention_heads)
    return last.feed_forward_chunk(last.attention.output(context, slots))


def _roberta(base: PreTrainedModel, packed: _Packed) -> Tensor:
    return _bert(base, packed, first_position=base.embeddings.padding_idx + 1)


def _distilbert(base: PreTrainedModel, packed: _Packed) -> Tensor:
    hidden = base.embeddings(packed.input_ids, position_ids=packed.positions)
    *layers, last = base.transformer.layer
    for layer in layers:
        hidden = layer(hidden, packed=packed)
    reader, slots = last.attention, hidden[:, packed.slots.flatten()]
    dropout = reader.dropout.p if reader.training else 0.0
    context = _slot_attention(reader.q_lin(slots), reader.k_lin(hidden), reader.v_lin(hidden), packed, dropout,
                              reader.n_heads)
    slots = last.sa_layer_norm(reader.out_lin(context) + slots)
    return last.output_layer_norm(last.ffn(slots) + slots)


def _modernbert(base: PreTrainedModel, packed: _Packed) -> Tensor:
    hidden = base.embeddings(packed.input_ids)
    turns = {kind: base.rotary_emb(hidden, packed.positions, kind) for kind in set(base.config.layer_types)}
    for layer in base.layers:
        hidden = layer(hidden, position_embeddings=turns[layer.attention_type], packed=packed)
    return base.final_norm(hidden[:, packed.slots.flatten()])


_FAMILIES: dict[str, Callable[[PreTrainedModel, _Packed], Tensor]] = {
    "bert": _bert, "distilbert": _distilbert, "modernbert": _modernbert, "roberta": _roberta, "xlm-roberta": _roberta}


# --- products ----------------------------------------------------------------------------------------------------


class _Products(TorchFunctionMode):
    """Inside, and in this thread, layers on a CPU multiply and norm as is best there. Knows no gradient.

    float32: linear layers are multiplied by oneDNN instead of MKL, which keeps to its AVX2 kernels on processors that
    are not Intel's: 2.3 times as fast on an AMD EPYC with AVX-512, and equal up to rounding.
    bfloat16: products are bfloat16's, but norms give float32, so that what is added up from layer to layer is not
    rounded each time: about half the error, for 5 % of the time.
    """

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        return _BETTER.get(func, func)(*args, **(kwargs or {}))


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    is_float32 = all(part is None or part.dtype == torch.float32 for part in (input, weight, bias))
    if is_float32 and _HAS_ONE_DNN:
        return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    return functional.linear(input.to(weight.dtype), weight, bias)


def _layer_norm(input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None,
                bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    input, weight, bias = (None if part is None else part.float() for part in (input, weight, bias))
    return functional.layer_norm(input, normalized_shape, weight, bias, eps)


# As torch calls them; the arguments have torch's names.
_BETTER: dict[Any, Callable[..., Tensor]] = {torch._C._nn.linear: _linear, functional.layer_norm: _layer_norm}
_HAS_ONE_DNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
