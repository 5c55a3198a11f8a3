"""One rank of those that train a model: steps on rows, whatever the objective and the engine that holds the weights."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from rlaif.batch import SCORED, check
from rlaif.config.learner import LearnerConfig
from rlaif.learning.completion_model import CompletionModel
from rlaif.learning.judging_objective import JudgingObjective
from rlaif.learning.lora import lora_off
from rlaif.learning.non_finite import refuse_columns, refused_step, row_at_fault
from rlaif.learning.objectives import Objective, PolicyObjective, PreferenceObjective
from rlaif.learning.policy_update import Columns, advantage_inputs, columns_of_step, minibatches, needed_columns
from rlaif.learning.schedule import learning_rate_factor
from rlaif.metrics import Max, Mean, Metric, Sum, merge
from rlaif.modeling.collate import plan, plan_packed
from rlaif.policy.controllers import MovingBaseline
from rlaif.policy.estimation import estimate
from rlaif.policy.training_batch import training_rows

__all__ = ["Engine", "Learner"]


class Engine(Protocol):
    """What holds the weights: actors.learners.zero.ZeroEngine."""

    module: Any     # callable as the objective's module

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Accumulates the gradient; the last micro-batch of a step adds it up over the ranks."""

    def step(self, rate_factor: float) -> float | None:
        """Updates the weights, returns the gradient's norm; None where that is not finite: then nothing is changed."""

    def watch(self) -> AbstractContextManager[list[tuple[str, float]]]:
        """Inside, a list of the weights whose gradients are not finite, with such an entry, as they come."""


class Learner:
    """Steps of one rank. `module` is what `engine` wraps. reference: a copy of the policy as it was at the start, or
    None; where adapters are trained, the policy without them stands for it.

    Every verb must be called on all ranks, with the same rows.
    """

    def __init__(self, config: LearnerConfig, objective: Objective, module: nn.Module, engine: Engine, *,
                 seed: int, total_steps: int, rank: int = 0, world_size: int = 1,
                 reference: CompletionModel | None = None) -> None:
        self._config, self._objective, self._module, self._engine = config, objective, module, engine
        self._seed, self._total_steps, self._rank, self._world_size = seed, total_steps, rank, world_size
        self._reference = reference
        self.num_steps = 0                  # optimizer steps taken
        self.baseline = MovingBaseline()    # of algorithm.advantage: reinforce

    # --- what is asked -------------------------------------------------------------------------------------------

    def update(self, rows: pa.Table) -> dict[str, Metric]:
        """One optimizer step on `rows`."""
        check(rows, self._objective.schema)
        return self._step(self._objective, rows, self._reference_sums(rows))

    def measure(self, rows: pa.Table) -> dict[str, Metric]:
        """The loss and its metrics on `rows`, nothing trained; each rank takes its share."""
        check(rows, self._objective.schema)
        frozen = self._reference_sums(rows)
        self._module.eval()
        total = max(1, sum(self._objective.weights(rows)))
        parts = []
        for batch in self._plan(rows):
            with torch.no_grad():
                _, metrics = self._objective.loss(self._engine.module, rows.take(batch or [0]), total,
                                                  _of_rows(frozen, batch or [0]))
            parts += [metrics] if batch else []
        return merge(parts) | {"loss": self._loss_share(parts)}

    def update_policy(self, chosen: pa.Table, kl_coefficient: float, scored: Sequence[pa.Table]) -> dict[str, Metric]:
        """The policy update of a step: num_epochs passes of num_minibatches optimizer steps.

        chosen: group_id and sample of the rows to train. scored: SCORED batches; their sample_weight says how much a
        row counts in the loss. kl_coefficient: reward per nat, as the controller holds it.
        """
        assert isinstance(self._objective, PolicyObjective)
        options = self._objective.options
        algorithm = options.algorithm
        rows = training_rows(scored, chosen)
        prepared = self._prepared(rows, needed_columns(algorithm, kl_coefficient))
        estimated = estimate(advantage_inputs(rows, prepared, options, kl_coefficient), algorithm, self.baseline)
        parts = [estimated.metrics] if self._rank == 0 else []      # of the whole step already
        objective = PolicyObjective(options, kl_coefficient)
        for epoch in range(algorithm.num_epochs):
            seed = [self._seed, self.num_steps, epoch]
            for part in minibatches(rows["group_id"].to_pylist(), algorithm.num_minibatches, seed):
                kept, columns = columns_of_step(rows, part, estimated, prepared, options)
                parts.append(self._step(objective, rows.take(pa.array(kept, pa.int64())), columns))
        self.baseline = estimated.state
        return merge(parts)

    def drift(self, scored: Sequence[pa.Table]) -> dict[str, Metric]:
        """Logprob gap to the engine and KL to the reference on `scored` rows, nothing trained; alike on all ranks."""
        assert isinstance(self._objective, PolicyObjective)
        rows = check(pa.concat_tables(scored), SCORED)
        names = ["proximal_logprobs"] + ["reference_logprobs"] * self.has_reference
        found = self._computed(rows, names)
        return self._objective.drift(rows, found["proximal_logprobs"], found.get("reference_logprobs"))

    def judge(self, rows: pa.Table) -> tuple[list[int], np.ndarray, np.ndarray]:
        """This rank's share of JUDGED `rows`: their numbers, class logits `[n, S, K]` and scores `[n, 2]` of both sides
        of a pair, NaN where there is none."""
        assert isinstance(self._objective, JudgingObjective)
        self._module.eval()
        chosen, logits, scores = [], [], []
        for batch in self._plan(rows):
            # An empty micro-batch keeps this rank in step with the others.
            found = self._objective.logits(self._engine.module, rows.take(batch or [0]))
            if batch:
                chosen += batch
                logits.append(found[0].numpy())
                scores.append(found[1].numpy())
        if not chosen:
            return [], np.zeros((0, 1, 1)), np.zeros((0, 2))
        return chosen, np.concatenate(logits), np.concatenate(scores)

    @property
    def has_reference(self) -> bool:
        """Whether there is a policy that the trained one is held to."""
        if isinstance(self._objective, PreferenceObjective):
            return True
        return isinstance(self._objective, PolicyObjective) and self._objective.kl_coefficient > 0

    # --- what models compute without gradient --------------------------------------------------------------------

    def _prepared(self, rows: pa.Table, names: Sequence[str]) -> Columns:
        found = self._computed(rows, names)
        refuse_columns(found, rows, self.num_steps)
        return found

    def _computed(self, rows: pa.Table, names: Sequence[str]) -> Columns:
        """Columns with an entry a completion token. Each rank computes its share, and all get the whole."""
        objective = self._objective
        assert isinstance(objective, PolicyObjective)
        sizes = rows["completion_ids"].combine_chunks().value_lengths().to_pylist()
        with_values = "values" in names
        found: Columns = {}
        if with_values or "proximal_logprobs" in names:
            # One pass gives both; what was not asked for is of no use to the caller, and left out.
            of_policy = self._by_shares(rows, sizes, ["logprobs"] + ["values"] * with_values, lambda part: (
                objective.predicted(self._engine.module, part, with_values=with_values)))
            of_policy["proximal_logprobs"] = of_policy.pop("logprobs")
            found |= {name: values for name, values in of_policy.items() if name in names}
        if "reference_logprobs" in names:
            with self._reference_model() as model:
                found["reference_logprobs"] = self._by_shares(rows, sizes, ["logprobs"], lambda part: (
                    objective.predicted(model, part)))["logprobs"]
        return found

    def _reference_sums(self, rows: pa.Table) -> Columns:
        """What the reference says of PREFERENCE rows; nothing for other objectives."""
        objective = self._objective
        if not isinstance(objective, PreferenceObjective):
            return {}
        with self._reference_model() as model:
            found = self._by_shares(rows, [2] * rows.num_rows, ["reference_sums"], lambda part: {
                "reference_sums": objective.reference_sums(model, part)})
        refuse_columns(found, rows, self.num_steps)
        return found

    @contextlib.contextmanager
    def _reference_model(self) -> Iterator[Any]:
        if self._reference is not None:
            yield self._reference
        else:
            assert isinstance(self._module, CompletionModel)
            with lora_off(self._module.model):
                yield self._engine.module

    def _by_shares(self, rows: pa.Table, sizes: Sequence[int], names: Sequence[str],
                   compute: Callable[[pa.Table], dict[str, list[list[float]]]]) -> Columns:
        """The columns `names` of all rows, `sizes` entries a row: computed by shares, and added up over the ranks."""
        self._module.eval()
        starts = list(accumulate(sizes, initial=0))
        whole = torch.zeros(len(names), starts[-1], dtype=torch.float64)
        for batch in self._plan(rows):
            found = compute(rows.take(batch or [0]))
            for number, name in enumerate(names):
                for row, values in zip(batch, found[name], strict=False):
                    whole[number, starts[row] : starts[row + 1]] = torch.tensor(values, dtype=torch.float64)
        if self._world_size > 1:
            device = next(self._module.parameters()).device
            shared = whole.to(device)
            torch.distributed.all_reduce(shared)
            whole = shared.cpu()
        return {name: [part.tolist() for part in column.split(list(sizes))]
                for name, column in zip(names, whole, strict=True)}

    # --- one optimizer step --------------------------------------------------------------------------------------

    def _step(self, objective: Objective, rows: pa.Table, frozen: Columns) -> dict[str, Metric]:
        """Trains on `rows`, each rank on its share. Raises UserError, on all ranks, where something is not finite."""
        if not rows.num_rows:       # every row of a minibatch was masked out
            self.num_steps += 1
            return {"num_empty_steps": Sum(1 / self._world_size)}
        total = max(1, sum(objective.weights(rows)))
        batches = self._plan(rows)
        parts: list[dict[str, Metric]] = []
        faults: list[tuple[str, float, list[int]]] = []

        def after(batch: list[int], value: float, metrics: dict[str, Metric]) -> None:
            if not math.isfinite(value):
                faults.append(("loss", value, batch))
            parts.extend([metrics] if batch else [])

        self._accumulate(objective, rows, frozen, total, batches, after)
        factor = learning_rate_factor(self._config, self.num_steps, self._total_steps)
        norm = self._engine.step(factor)
        if norm is None:
            self._refuse(objective, rows, frozen, total, batches, faults)
        loss = self._loss_share(parts)
        self.num_steps += 1
        return merge(parts) | {"loss": loss, "grad_norm": Max(norm), "learning_rate_factor": Mean(factor, 1),
                               "num_tokens_read": Sum(self._num_tokens_read(rows, batches))}

    def _accumulate(self, objective: Objective, rows: pa.Table, frozen: Columns, total: int, batches: list[list[int]],
                    after: Callable[[list[int], float, dict[str, Metric]], None]) -> None:
        """Gradients of all micro-batches; after each, `after` is told its rows, its loss and its metrics."""
        # What a step draws (dropout, hidden tokens) follows from its number: a resumed run draws the same.
        torch.manual_seed(int(np.random.default_rng([self._seed, self.num_steps]).integers(1 << 62)))
        # A policy has no dropout: it must be the function that its engine samples from. Layers are computed again in
        # training mode only.
        self._module.train()
        for number, batch in enumerate(batches):
            # An empty micro-batch keeps this rank in step with the others: any row, at no weight.
            chosen = batch or [0]
            loss, metrics = objective.loss(self._engine.module, rows.take(chosen), total, _of_rows(frozen, chosen))
            value = float(loss.detach())
            # A loss that is no number must spoil the gradient on every rank, so that none takes the step.
            weight = (1.0 if math.isfinite(value) else math.nan) if batch else 0.0
            self._engine.backward(loss * weight, is_last=number == len(batches) - 1)
            after(batch, value if batch else 0.0, metrics)

    def _refuse(self, objective: Objective, rows: pa.Table, frozen: Columns, total: int, batches: list[list[int]],
                faults: list[tuple[str, float, list[int]]]) -> None:
        """Finds out why a step was not taken, and raises the same UserError on every rank."""
        def loss_of(chosen: list[int]) -> float:
            with torch.no_grad():
                return float(objective.loss(self._engine.module, rows.take(chosen), total, _of_rows(frozen, chosen))[0])

        if faults and self._config.zero_stage < 3:      # there a pass needs all ranks
            faults = [(what, value, row_at_fault(loss_of, batch)) for what, value, batch in faults[:1]]
        found = [fault for rank in self._everywhere(faults[:1]) for fault in rank]
        if not found:
            # Every loss was a number: once more, watching the gradients.
            with self._engine.watch() as seen:
                def after(batch: list[int], value: float, metrics: dict[str, Metric]) -> None:
                    if seen and not faults:
                        faults.append((f"gradient of {seen[0][0]}", seen[0][1], batch or [0]))

                self._accumulate(objective, rows, frozen, total, batches, after)
                self._engine.step(0.0)
            found = [fault for rank in self._everywhere(faults) for fault in rank]
        what, value, batch = found[0] if found else ("norm of the gradient", math.inf, list(range(rows.num_rows)))
        raise refused_step(what, value, self.num_steps, rows, batch)

    def _everywhere(self, mine: list) -> list[list]:
        """What each rank has, by rank."""
        if self._world_size == 1:
            return [mine]
        gathered: list[Any] = [None] * self._world_size
        torch.distributed.all_gather_object(gathered, mine)
        return gathered

    def _plan(self, rows: pa.Table) -> list[list[int]]:
        """This rank's micro-batches; as many on every rank."""
        budget = self._config.micro_batch_tokens
        if self._is_packed:
            ranks = plan_packed(self._objective.sizes(rows), self._world_size, budget,
                                share=self._module.shares_prompts)
        else:
            ranks = plan(self._objective.lengths(rows), self._world_size, budget)
        return ranks[self._rank]

    @property
    def _is_packed(self) -> bool:
        return isinstance(self._module, CompletionModel) and self._module.reading.is_packed

    def _num_tokens_read(self, rows: pa.Table, batches: list[list[int]]) -> int:
        """Tokens that the model computes for these micro-batches, padding included, shared prompts once."""
        lengths = self._objective.lengths(rows)
        if not self._is_packed:
            return sum(len(batch) * max(lengths[row] for row in batch) for batch in batches if batch)
        if not self._module.shares_prompts:
            return sum(lengths[row] for batch in batches for row in batch)
        return sum(map(self._objective.sizes(rows).together, batches))

    def _loss_share(self, parts: Sequence[dict[str, Metric]]) -> Mean:
        """This rank's share of the loss of one pass: shares of all ranks merge into it, passes into their mean."""
        return Mean(sum(part["loss"].value for part in parts), 1 / self._world_size)


def _of_rows(columns: Columns, chosen: Sequence[int]) -> Columns:
    return {name: [values[row] for row in chosen] for name, values in columns.items()}
