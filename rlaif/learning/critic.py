"""The critic of PPO: which reward is to be expected before every token of a completion."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

__all__ = ["Critic", "ValueHead"]


class ValueHead(nn.Module):
    """One number a state: V = w h + b, in the reward's unit. It begins at zero: no noise in the first advantages."""

    def __init__(self, hidden_size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.read = nn.Linear(hidden_size, 1, dtype=dtype)
        nn.init.zeros_(self.read.weight)
        nn.init.zeros_(self.read.bias)

    def forward(self, states: Tensor) -> Tensor:
        """Values `[N]`, float32 at least, of states `[N, H]`."""
        values = self.read(states).squeeze(-1)
        return values.to(torch.promote_types(values.dtype, torch.float32))


class Critic(nn.Module):
    """A value head on a transformer with weights of its own. base: the model without its output matrix."""

    def __init__(self, base: PreTrainedModel) -> None:
        super().__init__()
        self.base = base
        self.head = ValueHead(base.config.get_text_config().hidden_size, base.dtype)

    def forward(self, states_of: Callable[[PreTrainedModel], Tensor]) -> Tensor:
        """Values `[N]`; states_of: gives the states `[N, H]` of a model on the rows at hand."""
        return self.head(states_of(self.base))
