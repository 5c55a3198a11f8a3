"""LearnerActor: one rank of the gang that trains a model under DeepSpeed, whatever the objective."""

from __future__ import annotations

import math
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

from actors.sync_client import SyncClient
from rlaif.batch import TRAINING, check
from rlaif.collate import plan
from rlaif.config import LearnerConfig, ModelConfig, UserError
from rlaif.judging_objective import JudgingObjective, JudgingOptions
from rlaif.metrics import Max, Mean, Metric, merge
from rlaif.models import load_causal_lm, load_judge, load_tokenizer, scratch_causal_lm, scratch_judge
from rlaif.objectives import Objective, PolicyObjective, PolicyOptions, SupervisedObjective
from rlaif.schedule import learning_rate_factor
from rlaif.training_batch import training_rows
from rlaif.weights import Manifest, pack


@dataclass(frozen=True)
class LearnerSpec:
    """What a gang of learners trains. `objective` is None for supervised training."""

    model: ModelConfig
    tokenizer: str                          # folder or name
    learner: LearnerConfig
    total_steps: int                        # optimizer steps of the whole run, for the schedule
    seed: int
    objective: PolicyOptions | JudgingOptions | None = None
    num_epochs: int = 1                     # policy: passes over an update's rows
    num_minibatches: int = 1                # policy: optimizer steps a pass


def _objective(spec: LearnerSpec, tokenizer: PreTrainedTokenizerBase) -> Objective:
    if isinstance(spec.objective, PolicyOptions):
        return PolicyObjective(tokenizer, spec.objective)
    if isinstance(spec.objective, JudgingOptions):
        return JudgingObjective(tokenizer, spec.objective)
    return SupervisedObjective(tokenizer)


@ray.remote
class LearnerActor:
    """Verbs: `join`; `update`, `measure`, `judge` (supervised and reward training); `update_policy`, `drift`; `save`;
    `save_state` and `load_state` (to go on where another gang stopped); `publish` (weights to the object store) or
    `open_channel` and `send` (straight to the engines)."""

    def __init__(self, spec: LearnerSpec, rank: int, world_size: int) -> None:
        self._spec, self._rank, self._world_size = spec, rank, world_size
        self._num_steps = 0

    def address(self) -> tuple[str, int]:
        """Host and a free port for the gang to meet at; asked of rank 0."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def join(self, host: str, port: int) -> None:
        """Meets the other ranks and builds the model under DeepSpeed."""
        # Imported here, in the actor: the driver needs no DeepSpeed.
        from actors.zero import ZeroEngine, init_distributed

        spec = self._spec
        device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
        os.environ |= {"RANK": str(self._rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(self._world_size),
                       "MASTER_ADDR": host, "MASTER_PORT": str(port)}
        init_distributed("nccl" if device.type == "cuda" else "gloo")
        torch.manual_seed(spec.seed)
        self._tokenizer = load_tokenizer(spec.tokenizer)
        self._objective = _objective(spec, self._tokenizer)
        self._model = self._build()
        freeze(self._model, spec.learner.frozen)
        self._engine = ZeroEngine(self._objective.module(self._model), self._model, spec.learner, device)
        self._reference = None
        if isinstance(self._objective, PolicyObjective) and spec.objective.loss.kl_coefficient > 0:
            self._reference = self._build().to(device).eval().requires_grad_(False)

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

    def update(self, rows: pa.Table) -> dict[str, Metric]:
        """One optimizer step on `rows` (the same on every rank; each trains its share)."""
        return self._step(check(rows, self._objective.schema), {})

    def measure(self, rows: pa.Table) -> dict[str, Metric]:
        """The loss and its metrics on `rows`, nothing trained; each rank takes its share."""
        check(rows, self._objective.schema)
        self._model.eval()
        total = max(1, sum(self._objective.weights(rows)))
        parts = []
        for batch in plan(self._objective.lengths(rows), self._world_size, self._spec.learner.micro_batch_tokens
                          )[self._rank]:
            with torch.no_grad():
                _, metrics = self._objective.loss(self._engine.module, rows.take(batch or [0]), total, {})
            parts += [metrics] if batch else []
        return merge(parts) | {"loss": self._loss_share(parts)}

    def update_policy(self, advantages: pa.Table, *scored: pa.Table) -> dict[str, Metric]:
        """The policy update of a step: `num_epochs` passes of `num_minibatches` optimizer steps.

        `advantages` has group_id, sample and advantages of every row to train; `scored` are the SCORED batches.
        """
        rows = check(training_rows(scored, advantages), TRAINING)
        frozen: dict[str, list] = {}
        num_minibatches = min(self._spec.num_minibatches, rows.num_rows)
        if self._spec.num_epochs * num_minibatches > 1:
            frozen["proximal_logprobs"] = self._in_batches(self._engine.module, rows)
        parts = []
        for epoch in range(self._spec.num_epochs):
            order = np.arange(rows.num_rows)
            if num_minibatches > 1:     # the same on every rank
                order = np.random.default_rng([self._spec.seed, self._num_steps, epoch]).permutation(rows.num_rows)
            for chosen in np.array_split(order, num_minibatches):
                parts.append(self._step(rows.take(chosen), {
                    name: [values[row] for row in chosen] for name, values in frozen.items()}))
        return merge(parts)

    def judge(self, rows: pa.Table) -> tuple[list[int], np.ndarray, np.ndarray]:
        """This rank's share of JUDGED `rows`: their numbers, class logits `[n, S, K]` and scores `[n, 2]` of both sides
        of a pair, NaN where there is none."""
        assert isinstance(self._objective, JudgingObjective)
        self._model.eval()
        chosen, logits, scores = [], [], []
        for batch in plan(self._objective.lengths(rows), self._world_size, self._spec.learner.micro_batch_tokens
                          )[self._rank]:
            # An empty micro-batch keeps this rank in step with the others, as in `measure`.
            found = self._objective.logits(self._engine.module, rows.take(batch or [0]))
            if batch:
                chosen += batch
                logits.append(found[0].numpy())
                scores.append(found[1].numpy())
        if not chosen:
            return [], np.zeros((0, 1, 1)), np.zeros((0, 2))
        return chosen, np.concatenate(logits), np.concatenate(scores)

    def drift(self, *scored: pa.Table) -> dict[str, Metric]:
        """Logprob gap to the engine and KL to the reference on `scored` rows, nothing trained; rank by rank."""
        rows = pa.concat_tables(scored)
        policy = self._in_batches(self._engine.module, rows)
        reference = None if self._reference is None else self._in_batches(self._reference, rows)
        return self._objective.drift(rows, policy, reference)

    def _in_batches(self, model: Any, rows: pa.Table) -> list[list[float]]:
        """Logprobs of every row. Each rank computes all rows, so that ZeRO-3's gathers stay in step."""
        self._model.eval()
        found: list[list[float]] = [[] for _ in range(rows.num_rows)]
        for batch in plan(self._objective.lengths(rows), 1, self._spec.learner.micro_batch_tokens)[0]:
            for row, logprobs in zip(batch, self._objective.logprobs(model, rows.take(batch)), strict=True):
                found[row] = logprobs
        return found

    def _step(self, rows: pa.Table, frozen: dict[str, list]) -> dict[str, Metric]:
        # What a step draws (dropout, hidden tokens) follows from its number: a resumed run draws the same.
        torch.manual_seed(int(np.random.default_rng([self._spec.seed, self._num_steps]).integers(1 << 62)))
        # Dropout is for supervised training: a policy must be the function that its engine samples from.
        self._model.train(not isinstance(self._objective, PolicyObjective))
        weights = self._objective.weights(rows)
        batches = plan(self._objective.lengths(rows), self._world_size, self._spec.learner.micro_batch_tokens)
        parts = []
        for number, batch in enumerate(batches[self._rank]):
            # An empty micro-batch keeps this rank in step with the others: any row, at no weight.
            chosen = batch or [0]
            part = rows.take(chosen)
            fixed = {name: [values[row] for row in chosen] for name, values in frozen.items()}
            if self._reference is not None:
                fixed["reference_logprobs"] = self._objective.logprobs(self._reference, part)
            loss, metrics = self._objective.loss(self._engine.module, part, max(1, sum(weights)), fixed)
            refuse_non_finite(loss, f"{chosen[0]}..{chosen[-1]}", self._num_steps)
            self._engine.backward(loss if batch else loss * 0.0, is_last=number == len(batches[self._rank]) - 1)
            if batch:
                parts.append(metrics)
        loss = self._loss_share(parts)
        factor = learning_rate_factor(self._spec.learner, self._num_steps, self._spec.total_steps)
        norm = self._engine.step(factor)
        self._num_steps += 1
        return merge(parts) | {"loss": loss, "grad_norm": Max(norm), "learning_rate_factor": Mean(factor, 1)}

    def _loss_share(self, parts: Sequence[dict[str, Metric]]) -> Mean:
        """This rank's share of the loss of one pass: shares of all ranks merge into it, passes into their mean."""
        return Mean(sum(part["loss"].value for part in parts), 1 / self._world_size)

    def publish(self, bucket_bytes: int) -> tuple[Manifest, list[ray.ObjectRef]] | None:
        """The weights as safetensors buckets in the object store, with their manifest; None on other ranks than 0."""
        weights = self._whole_on_cpu()
        if self._rank != 0:
            return None
        manifest, packed = pack(weights, bucket_bytes)
        return manifest, [ray.put(bucket) for bucket in packed]

    def _whole_on_cpu(self) -> Iterator[tuple[str, torch.Tensor]]:
        """CPU copies of the whole weights, one after the other, on rank 0; the other ranks have taken part on return.

        Under ZeRO-3 a weight is whole only while it is looked at.
        """
        if self._rank == 0:
            return ((name, tensor.detach().cpu().clone()) for name, tensor in self._engine.each_whole_weight())
        for _ in self._engine.each_whole_weight():
            pass
        return iter(())

    def open_channel(self, backend: str, address: tuple[str, int], rollouts: Sequence[ray.actor.ActorHandle],
                     num_workers: int) -> None:
        """Opens the direct channel (nccl, ipc) to the engines' `num_workers` GPUs; every rank must call."""
        from actors.engine import open_sender

        self._client = SyncClient(rollouts, num_workers // len(rollouts))
        self._send = open_sender(backend, rank=self._rank, address=address, num_workers=num_workers,
                                 client=self._client, shapes=self._engine.shapes(),
                                 whole=self._engine.each_whole_weight)

    def send(self, version: int) -> None:
        """Sends the weights over the direct channel; every rank must call."""
        self._client.version = version
        self._send()

    def save_state(self, folder: str) -> None:
        """Writes weights, optimizer and the number of steps into `folder`; every rank must call."""
        self._engine.save_state(folder, self._num_steps)

    def load_state(self, folder: str) -> None:
        """Goes on from what `save_state` of a gang of the same size wrote; every rank must call."""
        self._num_steps = self._engine.load_state(folder)

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


def refuse_non_finite(loss: torch.Tensor, rows: str, step: int) -> None:
    """Raises UserError before a gradient is taken of a loss that is not a number."""
    value = float(loss.detach())
    if not math.isfinite(value):
        raise UserError(f"loss must be finite, got {value} at update {step} in rows {rows}; no weight was changed by "
                        "them: start again with a lower learner.learning_rate, or look at those rows")
