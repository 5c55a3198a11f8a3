"""Low-rank adapters through peft: put into a model, switched off for the reference, merged for who reads weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rlaif.config.checks import UserError
from rlaif.config.learner import LoraConfig

__all__ = ["WholeWeight", "add_lora", "lora_off", "refuse_unknown_targets", "whole_weights"]


@dataclass(frozen=True)
class WholeWeight:
    """A weight as others know it, made of parameters: the weight alone, or it and the two factors of its adapter."""

    name: str                                       # as without adapters
    parts: list[nn.Parameter]                       # the first has its shape and dtype
    merge: Callable[..., Tensor]                    # of the parts, once they are whole


def add_lora(model: PreTrainedModel, config: LoraConfig, seed: int) -> None:
    """Puts adapters into `model`, their weights drawn from `seed`; nothing else is trained from then on.

        W <- W + alpha / rank * B A,   A: [rank, in] random, B: [out, rank] zero

    Raises UserError for target modules that the model does not have.

    Source: Hu et al. 2021 (arXiv 2106.09685), section 4.1.
    """
    # Imported here: most runs need no peft, and it takes seconds.
    import peft

    assert config.rank is not None
    refuse_unknown_targets(model, config)
    torch.manual_seed(seed)
    options = peft.LoraConfig(
        r=config.rank, lora_alpha=2 * config.rank if config.alpha is None else config.alpha,
        lora_dropout=config.dropout, target_modules=list(config.target_modules) or "all-linear", bias="none",
        task_type="CAUSAL_LM")
    peft.inject_adapter_in_model(options, model)


def refuse_unknown_targets(model: PreTrainedModel, config: LoraConfig) -> None:
    """Raises UserError for a target in which no linear layer's name of `model` ends: beside one that is known, peft
    takes no notice of it. The model may be without weights."""
    names = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear | Conv1D)]
    for target in config.target_modules:
        if not any(f".{name}".endswith(f".{target}") for name in names):
            ends = sorted({name.rpartition(".")[2] for name in names})
            raise UserError("learner.lora.target_modules must be ends of names of linear layers, such as "
                            f"{', '.join(ends)}; got {target!r}")
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    tied = [name for name, layer in model.named_modules()
            if layer is output and embedding is not None and layer.weight is embedding.weight]
    for target in config.target_modules:
        if any(f".{name}".endswith(f".{target}") for name in tied):
            # An adapter changes the layer alone, and who reads the weights finds one matrix for both.
            raise UserError("learner.lora.target_modules must not name an output layer that shares its weight with "
                            f"the embedding (tie_word_embeddings), got {target!r}; leave it out, or untie the model")


@contextlib.contextmanager
def lora_off(model: nn.Module) -> Iterator[None]:
    """Inside, the model is the one that the adapters were put into. Without adapters nothing changes."""
    layers = [layer for layer in model.modules() if hasattr(layer, "lora_A")]
    for layer in layers:
        layer._disable_adapters = True      # enable_adapters would touch requires_grad, which engines hold on to
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def whole_weights(model: nn.Module) -> list[WholeWeight]:
    """Every weight of `model`, adapters merged, in the order of its parameters; tied ones once."""
    layers = {name: layer for name, layer in model.named_modules() if hasattr(layer, "lora_A")}
    found = []
    for name, parameter in model.named_parameters():
        layer_name, _, own = name.rpartition(".base_layer.")
        if ".lora_" in name:
            continue
        if layer_name not in layers:
            found.append(WholeWeight(name, [parameter], _itself))
            continue
        layer = layers[layer_name]
        if own != "weight":
            found.append(WholeWeight(f"{layer_name}.{own}", [parameter], _itself))
            continue
        found.append(WholeWeight(f"{layer_name}.weight", [
            parameter, layer.lora_A["default"].weight, layer.lora_B["default"].weight], _Merge(
                layer.scaling["default"], bool(layer.fan_in_fan_out))))
    return found


def _itself(weight: Tensor) -> Tensor:
    return weight.detach()


@dataclass(frozen=True)
class _Merge:
    scaling: float
    is_transposed: bool         # the layer keeps its weight as [in, out]

    def __call__(self, weight: Tensor, first: Tensor, second: Tensor) -> Tensor:
        wide = torch.promote_types(weight.dtype, torch.float32)
        change = second.detach().to(wide) @ first.detach().to(wide) * self.scaling
        return (weight.detach().to(wide) + (change.T if self.is_transposed else change)).to(weight.dtype)
