"""LearnerActor: one rank of the gang that trains a model under DeepSpeed, whatever the objective."""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from transformers import PreTrainedTokenizerBase

from actors.engines.receiving import Channel
from actors.faults.vitals import HEALTH, Vitals, vitals
from actors.learners.sending import Order, Published, Sender, WeightsMovedOn
from rlaif.config.checks import UserError
from rlaif.config.learner import LearnerConfig
from rlaif.config.train import ModelConfig
from rlaif.learning.completion_model import CompletionModel, examine
from rlaif.learning.critic import Critic, ValueHead
from rlaif.learning.judging_objective import JudgingObjective, JudgingOptions
from rlaif.learning.learner import Learner
from rlaif.learning.lora import add_lora
from rlaif.learning.objectives import (
    Objective,
    PolicyObjective,
    PolicyOptions,
    PreferenceObjective,
    SupervisedObjective,
)
from rlaif.metrics import Metric
from rlaif.modeling.models import (
    load_causal_lm,
    load_judge,
    load_tokenizer,
    scratch_causal_lm,
    scratch_judge,
    without_dropout,
)
from rlaif.modeling.products import use_fast_products
from rlaif.policy.controllers import MovingBaseline
from rlaif.policy.preference_loss import PreferenceOptions
from rlaif.running.manifest import Entry


@dataclass(frozen=True)
class LearnerSpec:
    """What a gang of learners trains. `objective` is None for supervised training."""

    model: ModelConfig
    tokenizer: str                          # folder or name
    learner: LearnerConfig
    total_steps: int                        # optimizer steps of the whole run, for the schedule
    seed: int
    objective: PolicyOptions | JudgingOptions | PreferenceOptions | None = None


def _objective(spec: LearnerSpec, tokenizer: PreTrainedTokenizerBase) -> Objective:
    if isinstance(spec.objective, PolicyOptions):
        return PolicyObjective(spec.objective)
    if isinstance(spec.objective, PreferenceOptions):
        return PreferenceObjective(spec.objective)
    if isinstance(spec.objective, JudgingOptions):
        return JudgingObjective(tokenizer, spec.objective)
    return SupervisedObjective()


@ray.remote(concurrency_groups=HEALTH)
class LearnerActor:
    """Verbs: `join`, `ping`; `update`, `measure`, `judge` (supervised, preference and reward training);
    `update_policy` and `drift`; `save`; `save_state` and `load_state` (to go on where another gang stopped); `publish`
    (weights to the object store) or `open_channel` and `send` (straight to the engines)."""

    def __init__(self, spec: LearnerSpec, rank: int, world_size: int) -> None:
        self._spec, self._rank, self._world_size = spec, rank, world_size

    @ray.method(concurrency_group="health")
    def ping(self, with_stacks: bool = False) -> Vitals:
        return vitals(with_stacks)

    def address(self) -> tuple[str, int]:
        """Host and a free port for the gang to meet at; asked of rank 0."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def join(self, host: str, port: int) -> str:
        """Meets the other ranks and builds the model under DeepSpeed; says how rows are read if not the fast way."""
        # Imported here, in the actor: the driver needs no DeepSpeed.
        from actors.learners.zero import ZeroEngine, init_distributed

        spec = self._spec
        device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
        os.environ |= {"RANK": str(self._rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(self._world_size),
                       "MASTER_ADDR": host, "MASTER_PORT": str(port)}
        init_distributed("nccl" if device.type == "cuda" else "gloo")
        if device.type == "cpu":
            use_fast_products()
        torch.manual_seed(spec.seed)
        self._tokenizer = load_tokenizer(spec.tokenizer)
        objective = _objective(spec, self._tokenizer)
        self._model = self._build()
        module, reference, why = self._modules(objective, device)
        self._engine = ZeroEngine(module, self._model, spec.learner, device)
        self._learner = Learner(spec.learner, objective, module, self._engine, seed=spec.seed,
                                total_steps=spec.total_steps, rank=self._rank, world_size=self._world_size,
                                reference=reference)
        self._weights = Sender(self._rank, self._engine.shapes(), self._engine.changing(),
                               self._engine.each_whole_weight)
        self._published: tuple[int, int] | None = None      # version and optimizer steps of the last `publish`
        return why

    def _build(self) -> Any:
        spec = self._spec
        if isinstance(spec.objective, JudgingOptions):
            head = spec.objective.template.head, spec.objective.template.num_classes
            if spec.model.model is None:
                return scratch_judge(spec.model.scratch, self._tokenizer, spec.seed, *head)
            return load_judge(spec.model.model, spec.learner.dtype, spec.seed, *head)
        if spec.model.model is None:
            return scratch_causal_lm(spec.model.scratch, self._tokenizer, spec.seed)
        return load_causal_lm(spec.model.model, spec.learner.dtype)

    def _modules(self, objective: Objective, device: torch.device
                 ) -> tuple[torch.nn.Module, CompletionModel | None, str]:
        """What the engine wraps, the reference policy if it has weights of its own, and how rows are not read fast."""
        spec, model = self._spec, self._model.to(device)
        config = spec.learner
        if isinstance(objective, JudgingObjective):
            if config.lora.rank is not None:
                raise UserError(f"learner.lora.rank must be null for a reward model, got {config.lora.rank}")
            freeze(model, config.frozen)
            if config.activation_checkpointing:
                model.gradient_checkpointing_enable({"use_reentrant": False})
            return objective.module(model), None, ""
        critic = None
        if isinstance(objective, PolicyObjective) and objective.has_critic:
            critic = self._critic().to(device)
        if config.lora.rank is not None:
            add_lora(model, config.lora, spec.seed)
        if not isinstance(objective, SupervisedObjective):
            without_dropout(model)
        freeze(model, config.frozen)
        reading = examine(model, critic, packing=config.packing)
        reference = None
        needs_reference = isinstance(objective, PreferenceObjective) or (
            isinstance(objective, PolicyObjective) and objective.kl_coefficient > 0)
        if needs_reference and config.lora.rank is None:
            copy = self._build().to(device).eval().requires_grad_(False)
            reference = CompletionModel(copy, reading=examine(copy, packing=config.packing)).eval()
        if config.activation_checkpointing:
            for part in (model, critic.base) if isinstance(critic, Critic) else (model,):
                part.gradient_checkpointing_enable({"use_reentrant": False})
        return CompletionModel(model, critic, reading), reference, reading.why

    def _critic(self) -> ValueHead | Critic:
        config, policy = self._spec.learner.critic, self._model
        if config.model is None:
            return ValueHead(policy.config.get_text_config().hidden_size, policy.dtype)
        base = self._build() if config.model == "policy" else load_causal_lm(config.model, self._spec.learner.dtype)
        without_dropout(base)
        return Critic(base.base_model)

    def update(self, rows: pa.Table) -> dict[str, Metric]:
        """One optimizer step on `rows` (the same on every rank; each trains its share)."""
        return self._learner.update(rows)

    def measure(self, rows: pa.Table) -> dict[str, Metric]:
        """The loss and its metrics on `rows`, nothing trained; each rank takes its share."""
        return self._learner.measure(rows)

    def update_policy(self, chosen: pa.Table, kl_coefficient: float, *scored: pa.Table) -> dict[str, Metric]:
        """The policy update of a step. chosen: group_id and sample of the rows to train, out of the SCORED batches."""
        return self._learner.update_policy(chosen, kl_coefficient, scored)

    def release(self) -> None:
        """Gives back the GPU memory that torch keeps for later, to an engine that shares the GPU."""
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def judge(self, rows: pa.Table) -> tuple[list[int], np.ndarray, np.ndarray]:
        """This rank's share of JUDGED `rows`: their numbers, class logits and scores of both sides of a pair."""
        return self._learner.judge(rows)

    def drift(self, *scored: pa.Table) -> dict[str, Metric]:
        """Logprob gap to the engine and KL to the reference on `scored` rows, nothing trained; alike on all ranks."""
        return self._learner.drift(scored)

    def open_channel(self, channel: Channel, address: tuple[str, int],
                     rollouts: Sequence[ray.actor.ActorHandle]) -> None:
        """Opens the channel to the engines, where the backend has one; every rank must call."""
        self._weights.open(channel, address, rollouts)

    def publish(self, order: Order, rollouts: Sequence[ray.actor.ActorHandle]) -> Published | None:
        """Sends the weights of now to the engines and tells what became of each; None on other ranks than 0. Every rank
        must call.

        Raises WeightsMovedOn where a version is asked for again that has been trained on since.
        """
        now = order.version, self._learner.num_steps
        if order.is_again and now != self._published:
            raise WeightsMovedOn(f"version {order.version} must be the learners' to be sent again, got one of "
                                 f"{self._learner.num_steps} optimizer steps; the next sync brings it")
        self._published = now
        return self._weights.publish(order, rollouts)

    def _whole_on_cpu(self) -> Iterator[tuple[str, torch.Tensor]]:
        """CPU copies of the whole weights, one after the other, on rank 0; the other ranks have taken part on return.

        Under ZeRO-3 a weight is whole only while it is looked at.
        """
        if self._rank == 0:
            return ((name, tensor.detach().cpu().clone()) for name, tensor in self._engine.each_whole_weight())
        for _ in self._engine.each_whole_weight():
            pass
        return iter(())

    def save_state(self, folder: str) -> dict[str, Entry]:
        """Writes weights, critic, optimizer and what else a step depends on into `folder`; every rank must call.

        Returns the files of this rank, which are on the disk then, by their path in `folder`.
        """
        return self._engine.save_state(folder, {"num_steps": self._learner.num_steps,
                                                "baseline": dataclasses.asdict(self._learner.baseline)})

    def load_state(self, folder: str) -> None:
        """Goes on from what `save_state` of a gang wrote, of whatever size; every rank must call, before any step.

        DeepSpeed keeps its states as pickles: only a folder of this run, verified, may be taken up.
        """
        state = self._engine.load_state(folder)
        self._learner.num_steps = state["num_steps"]
        self._learner.baseline = MovingBaseline(**state["baseline"])

    def save(self, folder: str) -> None:
        """Writes model and tokenizer as a Hugging Face folder (written beside and renamed); every rank must call."""
        state = dict(self._whole_on_cpu())
        if self._rank != 0:
            return
        target = Path(folder)
        beside = target.with_name(target.name + ".partial")
        self._model.save_pretrained(beside, state_dict=state)
        self._tokenizer.save_pretrained(beside)
        beside.rename(target)


def freeze(model: torch.nn.Module, parts: Sequence[str]) -> None:
    """Takes the weights whose names hold one of `parts` out of training. Raises UserError for a part no name holds."""
    for part in parts:
        chosen = [weight for name, weight in model.named_parameters() if part in name]
        if not chosen:
            some = ", ".join(name for name, _ in list(model.named_parameters())[:3])
            raise UserError(f"learner.frozen must be parts of the names of weights, such as {some}; got {part!r}, "
                            "which is in none")
        for weight in chosen:
            weight.requires_grad_(False)
