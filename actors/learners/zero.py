"""The one door to DeepSpeed: a ZeRO engine that accumulates, steps, and gives its weights whole.

What is used of DeepSpeed: init_distributed, initialize, the engine's call / backward / accumulation boundary / step /
was_step_applied / zero_grad, GatheredParameters; and in actors.learners.zero_state its checkpoints. Nothing else in the
project imports deepspeed.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Container, Iterator
from functools import partial
from typing import Any

import deepspeed
import torch
from torch import Tensor
from transformers import PreTrainedModel

from actors.learners import zero_state
from rlaif.config.learner import LearnerConfig
from rlaif.learning.lora import whole_weights
from rlaif.running.manifest import Entry

# Its shared-memory all-reduce is compiled on first use (40 s and more); gloo does without it.
if "deepspeed_shm_comm" in deepspeed.ops.__compatible_ops__:
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
logging.getLogger("DeepSpeed").setLevel(logging.ERROR)


def init_distributed(backend: str) -> None:
    """Joins the learners' process group; RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are in the environment."""
    deepspeed.init_distributed(dist_backend=backend, verbose=False)


class ZeroEngine:
    """A `module` under DeepSpeed, which is or wraps the checkpointed `model`, and may hold a critic beside it.

    Losses are sums over the micro-batches of all ranks, already divided by a global count.
    """

    def __init__(self, module: torch.nn.Module, model: PreTrainedModel, config: LearnerConfig,
                 device: torch.device) -> None:
        self._config, self._model, self._module = config, model, module.to(device)
        own = {id(weight) for weight in model.parameters()}
        trained = [weight for weight in module.parameters() if weight.requires_grad]
        critic = [weight for weight in trained if id(weight) not in own]
        groups: Any = [weight for weight in trained if id(weight) in own]
        if critic and config.critic.learning_rate is not None:
            groups = [{"params": groups}, {"params": critic, "lr": config.critic.learning_rate}]
        else:
            groups += critic
        self._engine, _, _, _ = deepspeed.initialize(
            model=self._module, model_parameters=groups, config=_deepspeed_config(config), dist_init_required=False)
        if config.zero_stage == 0 and config.dtype == "bfloat16":
            _forget_first_step(self._engine.optimizer.optimizer)
        self._base_rates = [group["lr"] for group in self._engine.optimizer.param_groups]

    @property
    def module(self) -> Any:
        """Callable as the module itself; parameters may be sharded."""
        return self._engine

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Accumulates the gradient of `loss`; the last micro-batch of a step reduces it over the ranks."""
        self._engine.set_gradient_accumulation_boundary(is_last)
        # DeepSpeed averages over ranks, our losses add up to the whole: hence the factor.
        self._engine.backward(loss * torch.distributed.get_world_size(), scale_wrt_gas=False)

    def step(self, rate_factor: float) -> float | None:
        """Updates the weights at `rate_factor` times the configured rates; returns the global gradient norm.

        None where that is not finite: then the gradients are dropped, and nothing is updated.
        """
        for group, rate in zip(self._engine.optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = rate * rate_factor
        if self._config.zero_stage == 0:    # DeepSpeed keeps no norm there; the gradients are whole and reduced
            norm = float(torch.nn.utils.get_total_norm(
                [weight.grad for weight in self._module.parameters() if weight.grad is not None]))
            if not math.isfinite(norm):
                self._engine.zero_grad()
                return None
            self._engine.step()
            return norm
        self._engine.step()
        return float(self._engine.get_global_grad_norm()) if self._engine.was_step_applied() else None

    @contextlib.contextmanager
    def watch(self) -> Iterator[list[tuple[str, float]]]:
        """Inside, a list of the weights whose gradients are not finite, with such an entry, as they come."""
        seen: list[tuple[str, float]] = []

        def note(name: str, gradient: Tensor) -> None:
            odd = gradient[~torch.isfinite(gradient)]
            if len(odd):
                seen.append((name, float(odd[0])))

        hooks = [weight.register_hook(partial(note, name)) for name, weight in self._module.named_parameters()
                 if weight.requires_grad]
        try:
            yield seen
        finally:
            for hook in hooks:
                hook.remove()

    def save_state(self, folder: str, state: dict[str, Any]) -> dict[str, Entry]:
        """Writes this rank's part of weights and optimizer, and `state`, into `folder`; every rank must call.

        Returns the files that are this rank's, on the disk, by their path in `folder`.
        """
        return zero_state.save(self._engine, folder, state, self._config)

    def load_state(self, folder: str) -> dict[str, Any]:
        """Takes up what `save_state` wrote, of as many ranks or of others; returns its `state`. Every rank must call.

        DeepSpeed keeps its states as pickles: only a folder that nobody else can write to may be taken up.
        """
        return zero_state.load(self._engine, folder, self._config)

    def shapes(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        """(name, dtype, whole shape) of every weight, in the order of `each_whole_weight`; gathers nothing."""
        return [(weight.name, weight.parts[0].dtype, tuple(getattr(weight.parts[0], "ds_shape", weight.parts[0].shape)))
                for weight in whole_weights(self._model)]

    def changing(self) -> list[str]:
        """The names of the weights that are trained, themselves or by an adapter."""
        return [weight.name for weight in whole_weights(self._model)
                if any(part.requires_grad for part in weight.parts)]

    def each_whole_weight(self, names: Container[str] | None = None) -> Iterator[tuple[str, Tensor]]:
        """(name, whole tensor, adapters merged) one after the other, never all at once; every rank must iterate.

        names: those that are wanted; None gives all.
        """
        for weight in whole_weights(self._model):
            if names is not None and weight.name not in names:
                continue
            with deepspeed.zero.GatheredParameters(weight.parts, enabled=self._config.zero_stage == 3):
                yield weight.name, weight.merge(*weight.parts)


def _forget_first_step(optimizer: torch.optim.Optimizer) -> None:
    """Without ZeRO, DeepSpeed's copies in float32 begin with a step on gradients of zero; it is not to be counted when
    Adam's moments are corrected for their beginning."""
    for state in optimizer.state.values():
        if "step" in state:
            state["step"].zero_()


def _deepspeed_config(config: LearnerConfig) -> dict[str, Any]:
    rates = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    adam = {"betas": [0.9, config.beta2], "torch_adam": True}
    if config.optimizer == "adamw":
        optimizer = {"type": "AdamW", "params": rates | adam | {"fused": True}}
    else:
        adam_rate = config.learning_rate if config.adam_learning_rate is None else config.adam_learning_rate
        optimizer = {"type": "Muon", "params": rates | adam | {"adam_lr": adam_rate, "momentum": 0.95}}
    zero: dict[str, Any] = {"stage": config.zero_stage}
    if config.optimizer == "muon":      # DeepSpeed's Muon needs whole gradients at stage 3
        zero["reduce_scatter"] = config.zero_stage != 3
    if config.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1,
        "optimizer": optimizer, "gradient_clipping": config.max_grad_norm, "zero_optimization": zero,
        "bf16": {"enabled": config.dtype == "bfloat16"}, "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False, "steps_per_print": 1 << 60, "wall_clock_breakdown": False,
    }
