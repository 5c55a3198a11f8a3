"""What a model weighs, read from its configuration: no weight is loaded, no network is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
)
from transformers.pytorch_utils import Conv1D

from rlaif.config.checks import UserError
from rlaif.config.learner import LoraConfig

__all__ = ["Models", "Shape", "is_causal", "shape_of"]

Models = Mapping[str, Mapping[str, Any]]    # config.json of models that are not here, by name


@dataclass(frozen=True)
class Shape:
    """Sizes of a model. `weights`: numbers of each parameter, tied ones once. `linear`: (inputs, outputs) by the name
    of each linear layer but the output matrix. kv_width: numbers that a token adds to a layer's keys, and as many to
    its values. num_looked_up: weights of the input embedding, where the output has its own or there is none.
    """

    name: str
    weights: Mapping[str, int]
    matrices: frozenset[str]                # names of the weights with two axes that are neither embedding nor output
    linear: Mapping[str, tuple[int, int]]
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_kv_heads: int
    kv_width: int
    vocab_size: int
    num_looked_up: int

    @property
    def num_weights(self) -> int:
        return sum(self.weights.values())

    @property
    def num_in_products(self) -> int:
        """Weights that every token is multiplied by: an embedding that is only looked up is not among them."""
        return self.num_weights - self.num_looked_up

    def num_trained(self, frozen: list[str], lora: LoraConfig) -> int:
        """Weights that are trained: those whose names hold none of `frozen`, or the adapters alone.

        An adapter of rank r on a layer of `in` inputs and `out` outputs has r (in + out) weights.
        """
        if lora.rank is None:
            return sum(count for name, count in self.weights.items() if not any(part in name for part in frozen))
        return sum(lora.rank * sum(sizes) for name, sizes in self.linear.items() if not lora.target_modules or any(
            f".{name}".endswith(f".{target}") for target in lora.target_modules))


def is_causal(model: str, models: Models, key: str) -> bool:
    """Whether a model that is no folder of ours with a reward.yaml writes text, by `architectures` of its config."""
    config = _config(model, models, key)
    return any("CausalLM" in name or "LMHead" in name for name in config.architectures or ())


def shape_of(model: str, kind: str, models: Models, key: str) -> Shape:
    """The sizes of `model`, a folder, a name whose configuration is on this machine, or one of `models`.

    kind: causal | masked | head (an encoder with a classification head). key: of the configuration, for messages.
    Raises UserError, one line, for a model that is nowhere to be read.
    """
    config = _config(model, models, key)
    auto: Any = {"causal": AutoModelForCausalLM, "masked": AutoModelForMaskedLM,
                 "head": AutoModelForSequenceClassification}[kind]
    try:
        with torch.device("meta"):
            skeleton = auto.from_config(config, trust_remote_code=False)
    except (AssertionError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{key} must have the configuration of a {kind} model, got {model!r}: {reason}") from error
    return _measured(model, skeleton, config.get_text_config())


def _config(model: str, models: Models, key: str) -> PreTrainedConfig:
    if model in models:
        fields = dict(models[model])
        try:
            return AutoConfig.for_model(fields.pop("model_type"), **fields)
        except (ValueError, TypeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"models must describe {model!r} by fields of its config.json, got: {reason}") from error
    try:
        return AutoConfig.from_pretrained(model, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{key} must be a model on this machine or under models in the file of --plan, got {model!r}, "
                        "which is neither; describe it there by name and config (fields of its config.json)") from error


def _measured(name: str, model: nn.Module, config: PreTrainedConfig) -> Shape:
    heads = getattr(config, "num_attention_heads", 1)
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    weights = dict(model.named_parameters())
    looked_up, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    is_tied = head is not None and head.weight is looked_up
    apart = {id(looked_up)} | ({id(head.weight)} if head is not None else set())
    linear = {layer_name: (layer.in_features, layer.out_features) if isinstance(layer, nn.Linear) else
              tuple(layer.weight.shape) for layer_name, layer in model.named_modules()
              if isinstance(layer, nn.Linear | Conv1D) and layer is not head}
    return Shape(
        name, {key: weight.numel() for key, weight in weights.items()},
        frozenset(key for key, weight in weights.items() if weight.ndim == 2 and id(weight) not in apart),
        linear, config.num_hidden_layers, config.hidden_size,
        getattr(config, "intermediate_size", None) or 4 * config.hidden_size, kv_heads, kv_heads * width,
        config.vocab_size, 0 if is_tied else looked_up.numel())
