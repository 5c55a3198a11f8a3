"""The one door to DeepSpeed: a ZeRO engine that accumulates, steps, and gives its weights whole.

What is used of DeepSpeed: init_distributed, initialize, the engine's call / backward / accumulation boundary / step,
save_checkpoint and load_checkpoint, GatheredParameters. Nothing else in the project imports deepspeed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import deepspeed
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlaif.config import LearnerConfig

# Its shared-memory all-reduce is compiled on first use (40 s and more); gloo does without it.
if "deepspeed_shm_comm" in deepspeed.ops.__compatible_ops__:
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
logging.getLogger("DeepSpeed").setLevel(logging.ERROR)

_TAG = "state"


def init_distributed(backend: str) -> None:
    """Joins the learners' process group; RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are in the environment."""
    deepspeed.init_distributed(dist_backend=backend, verbose=False)


class ZeroEngine:
    """A `module` under DeepSpeed, which is or wraps the checkpointed `model`.

    Losses are sums over the micro-batches of all ranks, already divided by a global count.
    """

    def __init__(self, module: torch.nn.Module, model: PreTrainedModel, config: LearnerConfig,
                 device: torch.device) -> None:
        self._config, self._model = config, model
        self._engine, _, _, _ = deepspeed.initialize(
            model=module.to(device), model_parameters=[p for p in model.parameters() if p.requires_grad],
            config=_deepspeed_config(config), dist_init_required=False)
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

    def step(self, rate_factor: float) -> float:
        """Updates the weights at `rate_factor` times the configured rates; returns the global gradient norm."""
        for group, rate in zip(self._engine.optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = rate * rate_factor
        norm = None
        if self._config.zero_stage == 0:    # DeepSpeed keeps no norm there; the gradients are whole and reduced
            norm = torch.nn.utils.get_total_norm([p.grad for p in self._model.parameters() if p.grad is not None])
        self._engine.step()
        return float(self._engine.get_global_grad_norm() if norm is None else norm)

    def save_state(self, folder: str, num_steps: int) -> None:
        """Writes this rank's part of weights and optimizer into `folder`, for `load_state`; every rank must call."""
        self._engine.save_checkpoint(folder, tag=_TAG, client_state={"num_steps": num_steps}, save_latest=False)

    def load_state(self, folder: str) -> int:
        """Takes up what `save_state` of as many ranks wrote; returns its number of steps. Every rank must call.

        DeepSpeed keeps its states as pickles: only a folder that nobody else can write to may be taken up.
        """
        path, state = self._engine.load_checkpoint(folder, tag=_TAG, load_lr_scheduler_states=False)
        assert path is not None, f"no state in {folder}"
        return state["num_steps"]

    def shapes(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        """(name, dtype, whole shape) of every weight, in the order of `each_whole_weight`; gathers nothing."""
        return [(name, tensor.dtype, tuple(getattr(tensor, "ds_shape", tensor.shape)))
                for name, tensor in self._model.named_parameters()]

    def each_whole_weight(self) -> Iterator[tuple[str, Tensor]]:
        """(name, whole tensor) one after the other, never all at once; every rank must iterate."""
        for name, tensor in self._model.named_parameters():
            with deepspeed.zero.GatheredParameters([tensor], enabled=self._config.zero_stage == 3):
                yield name, tensor.data


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
