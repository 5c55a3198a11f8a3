"""How fast this machine multiplies matrices of an encoder's shapes, and how much of that an encoder needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional
from transformers import BertConfig


class MatrixRate:
    """Products of one encoder layer's shapes, [T, H] x [H, H] four times, [T, H] x [H, I] and [T, I] x [I, H]."""

    def __init__(self, config: BertConfig, dtype: torch.dtype, multiply: Callable[..., Tensor], *,
                 num_tokens: int, num_layers: int) -> None:
        torch.manual_seed(0)
        hidden, inner = config.hidden_size, config.intermediate_size
        sizes = [(hidden, hidden)] * 4 + [(hidden, inner), (inner, hidden)]
        self._products = [(torch.randn(num_tokens, wide, dtype=dtype), torch.randn(out, wide, dtype=dtype),
                           torch.randn(out, dtype=dtype)) for wide, out in sizes]
        self._multiply, self._num_layers = multiply, num_layers
        self.num_operations = num_layers * 2 * num_tokens * sum(wide * out for wide, out in sizes)

    @torch.no_grad()
    def run(self) -> None:
        for _ in range(self._num_layers):
            for product in self._products:
                self._multiply(*product)


def one_dnn_linear(states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")


MULTIPLIERS = {"torch": functional.linear, "onednn": one_dnn_linear}


def operations(lengths: Sequence[int], num_slots: int, config: BertConfig) -> int:
    """Multiplications and additions of the linear layers and the attention of a BERT over rows of these lengths, as
    `rlaif.esfp.encoder` takes them: of the last layer the keys and values for every token, the rest for the slots."""
    hidden, inner, total = config.hidden_size, config.intermediate_size, 0
    per_token = 2 * (4 * hidden * hidden + 2 * hidden * inner)
    for length in lengths:
        total += (config.num_hidden_layers - 1) * (per_token * length + 4 * length * length * hidden)
        total += 4 * hidden * hidden * length + 4 * num_slots * length * hidden
        total += num_slots * 2 * (2 * hidden * hidden + 2 * hidden * inner)
    return total
