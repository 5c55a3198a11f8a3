"""A causal LM as training sees it: rows of prompts and completions in, what is predicted of the completions out."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlaif.learning.critic import Critic, ValueHead
from rlaif.modeling.collate import sequences
from rlaif.modeling.logprobs import chosen_logprobs, token_entropy, token_logprobs
from rlaif.modeling.packed_attention import ATTENTION
from rlaif.modeling.packing import Packed, pack

__all__ = ["CompletionModel", "Predicted", "Reading", "examine"]


@dataclass(frozen=True)
class Predicted:
    """Of every completion token, N in all in the order of the rows, given what stands before it."""

    logprobs: Tensor            # [N] float32 at least, nats
    entropy: Tensor | None      # [N] likewise, of the distribution that the token is from; None where not asked for
    values: Tensor | None       # [N] likewise, the reward that the critic expects; None without one


@dataclass(frozen=True)
class Reading:
    """How a model's rows are read, found out once by `examine`."""

    is_packed: bool             # end to end, else padded
    is_chunked: bool            # logits a chunk at a time from the last states, else whole by the model's own forward
    why: str                    # in words, where either is not so; "" where both are


class CompletionModel(nn.Module):
    """A model whose forward gives `Predicted`: a training engine gathers and reduces around `forward`.

    critic: rlaif.learning.critic, or None. reading: None takes the plain way, padded and with whole logits.
    """

    def __init__(self, model: PreTrainedModel, critic: nn.Module | None = None, reading: Reading | None = None) -> None:
        super().__init__()
        self.model, self.critic = model, critic
        self.reading = reading or Reading(False, False, "")
        self._head = model.get_output_embeddings()

    @property
    def shares_prompts(self) -> bool:
        """Whether a prompt that several rows of a micro-batch share is read once."""
        return self.reading.is_packed and self.model.device.type == "cpu"

    def forward(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], *,
                temperature: float = 1.0, with_entropy: bool = False, with_values: bool = False) -> Predicted:
        """prompts, completions: B rows of token ids each, no prompt empty. temperature: logits are divided by it.

        Everything carries the gradient. with_values: needs a critic.
        """
        laid = self._laid(prompts, completions)
        states = None
        if self.reading.is_chunked:
            states = _states(self.model.base_model, laid)
            logprobs, entropy = self._head(states, functools.partial(
                chosen_logprobs, labels=laid.labels, temperature=temperature, with_entropy=with_entropy))
        else:
            logits, states = self._logits(laid)
            logits, labels = logits.unsqueeze(0), laid.labels.unsqueeze(0)
            logprobs = token_logprobs(logits, labels, temperature=temperature)[0]
            entropy = token_entropy(logits, temperature=temperature)[0] if with_entropy else None
        values = None
        if with_values:
            assert self.critic is not None, "values need a critic"
            has_head_only = isinstance(self.critic, ValueHead)
            values = self.critic(states if has_head_only else functools.partial(_states, laid=laid))
        return Predicted(logprobs, entropy, values)

    def _laid(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> _Laid:
        device = next(self.model.parameters()).device
        if self.reading.is_packed:
            return _packed(pack(prompts, completions, share=self.shares_prompts).to(device))
        return _padded(prompts, completions, device)

    def _logits(self, laid: _Laid) -> tuple[Tensor, Tensor]:
        """Logits `[N, V]` at the places that are read, and the states `[N, H]` that they are of."""
        seen: list[Tensor] = []

        def only_read(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
            seen.append(inputs[0].flatten(0, 1)[laid.read])
            return (seen[-1],)

        hook = self._head.register_forward_pre_hook(only_read)
        try:
            logits = self.model(**laid.inputs, use_cache=False).logits
        finally:
            hook.remove()
        return logits.reshape(len(laid.read), -1), seen[0]


@dataclass(frozen=True)
class _Laid:
    """Rows as a model takes them, and the N places of its flattened states from which completions are predicted."""

    inputs: dict[str, Any]
    read: Tensor                # [N] int64
    labels: Tensor              # [N] int64


def _packed(packed: Packed) -> _Laid:
    return _Laid({"input_ids": packed.input_ids, "position_ids": packed.position_ids, "packed": packed}, packed.read,
                 packed.labels)


def _padded(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], device: torch.device) -> _Laid:
    # Whatever fills up is masked: any id will do.
    batch = sequences(prompts, completions, pad_id=0)
    where = torch.zeros(batch.input_ids.shape, dtype=torch.bool)
    where[:, :-1] = batch.completion_mask
    return _Laid({"input_ids": batch.input_ids.to(device), "attention_mask": batch.attention_mask.to(device)},
                 where.flatten().nonzero().flatten().to(device), batch.labels[batch.completion_mask].to(device))


def _states(base: PreTrainedModel, laid: _Laid) -> Tensor:
    """The last states `[N, H]` at the places that are read."""
    return base(**laid.inputs, use_cache=False)[0].flatten(0, 1)[laid.read]


# --- what a model can ---------------------------------------------------------------------------------------------


def examine(model: PreTrainedModel, critic: nn.Module | None = None, *, packing: bool = True) -> Reading:
    """How `model` can be read, and the critic with it; what can be packed attends by it from now on.

    It is tried out on a few rows, without a gradient: end to end they must give the states that they give padded, and
    the output matrix on its own the logits of the whole model. So whatever a model does with positions, masks, states
    that run on from token to token, or logits, it is either seen here or does not matter.
    """
    models = [model, critic.base] if isinstance(critic, Critic) else [model]
    before = [(part, part.training, part.config._attn_implementation) for part in models]
    for part in models:
        part.eval()
    try:
        with torch.no_grad():
            why_whole = _why_not_chunked(model)
            reasons = [_why_not_packed(part) for part in models] if packing else ["learner.packing is false"]
    finally:
        for part, was_training, _ in before:
            part.train(was_training)
    why_padded = next(filter(None, reasons), "")
    if why_padded:
        for part, _, attention in before:
            part.set_attn_implementation(attention)
    return Reading(not why_padded, not why_whole, "; ".join(
        [f"rows are padded: {why_padded}"] * bool(why_padded) + [f"logits are whole: {why_whole}"] * bool(why_whole)))


def _why_not_chunked(model: PreTrainedModel) -> str:
    """Why logits cannot be computed in chunks; "" where they can, and from now on are."""
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or head.bias is not None:
        return f"the output matrix is a {type(head).__name__} with a bias or of its own kind"
    laid = _padded(*_rows(model), model.device)
    try:
        states = _states(model.base_model, laid)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        return _first_line(error)
    logits = model(**laid.inputs, use_cache=False).logits.flatten(0, 1)[laid.read]
    if states.shape[-1] != head.weight.shape[1] or not _are_close(states @ head.weight.T, logits):
        return "logits are not the last states times the output matrix"
    # Called with what is to be made of its states, the matrix does that inside its own forward, where a training engine
    # has gathered its weight.
    head.forward = types.MethodType(_head_forward, head)
    return ""


def _head_forward(head: nn.Linear, states: Tensor, read: Callable[..., Any] | None = None) -> Any:
    return nn.Linear.forward(head, states) if read is None else read(states, head.weight)


def _why_not_packed(model: PreTrainedModel) -> str:
    """Why rows cannot lie end to end; "" where they can, and from now on the model expects them to."""
    rows = _rows(model)
    want = _states(model.base_model, _padded(*rows, model.device))
    try:
        model.set_attn_implementation(ATTENTION)
        for share in (False, True):
            got = _states(model.base_model, _packed(pack(*rows, share=share).to(model.device)))
            if not _are_close(got, want):
                return "end to end, rows see each other or stand at wrong positions"
    except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        return _first_line(error)
    return ""


def _rows(model: PreTrainedModel) -> tuple[list[list[int]], list[list[int]]]:
    """Rows that would notice each other: unequal lengths, a shared prompt, completions of one token and more."""
    generator = torch.Generator().manual_seed(0)
    size = model.get_input_embeddings().weight.shape[0]

    def draw(length: int) -> list[int]:
        return torch.randint(0, size, (length,), generator=generator).tolist()

    first, second = draw(5), draw(3)
    return [first, second, first, draw(9)], [draw(4), draw(6), draw(2), draw(1)]


def _are_close(got: Tensor, want: Tensor) -> bool:
    if got.shape != want.shape or not bool(torch.isfinite(want).all()):
        return False
    share = 1e-4 if want.dtype in (torch.float32, torch.float64) else 5e-2
    return bool((got - want).abs().max() <= share * want.abs().max())


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
