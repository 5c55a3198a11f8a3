"""What a learner can optimise: a schema of rows, what is read of them, and a loss over a micro-batch.

One learner serves supervised training, reward training, preferences and reinforcement learning; an objective is all
that differs. Every loss is a sum over its micro-batch with weights that are known before anything is split, so that it
does not depend on how rows are split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlaif.batch import PREFERENCE, SCORED, SUPERVISED
from rlaif.config.algorithm import AlgorithmConfig
from rlaif.learning.completion_model import CompletionModel, Predicted, examine
from rlaif.learning.losses import supervised_loss
from rlaif.metrics import Max, Mean, Metric
from rlaif.modeling.bucketing import RowSizes
from rlaif.modeling.collate import place, spread
from rlaif.policy.policy_loss import PolicyBatch, policy_loss, policy_loss_options
from rlaif.policy.preference_loss import PreferenceBatch, PreferenceOptions, preference_loss
from rlaif.policy.value_loss import ValueBatch, value_loss

__all__ = ["Objective", "PolicyObjective", "PolicyOptions", "PreferenceObjective", "SupervisedObjective"]


class Objective(Protocol):
    """What the learner asks of an objective."""

    schema: pa.Schema

    def module(self, model: PreTrainedModel) -> nn.Module:
        """What the training engine wraps: its forward is what `loss` calls."""

    def lengths(self, rows: pa.Table) -> list[int]:
        """Tokens of every row as the model will see it, on its own."""

    def weights(self, rows: pa.Table) -> list[int]:
        """Each row's share of the global count: its tokens with a loss, or 1."""

    def loss(self, model: Any, rows: pa.Table, num_global: int, frozen: dict[str, list]) -> tuple[Tensor, dict]:
        """The loss of a micro-batch and its metrics; `frozen` holds columns computed without gradient, row by row."""


class SupervisedObjective:
    """Cross-entropy of the completion given the prompt."""

    schema = SUPERVISED

    def module(self, model: PreTrainedModel) -> nn.Module:
        return CompletionModel(model, reading=examine(model))

    def lengths(self, rows: pa.Table) -> list[int]:
        return sizes_of_rows(rows).lengths

    def sizes(self, rows: pa.Table) -> RowSizes:
        return sizes_of_rows(rows)

    def weights(self, rows: pa.Table) -> list[int]:
        return _num_tokens(rows, "completion_ids")

    def loss(self, model: Any, rows: pa.Table, num_global: int, frozen: dict[str, list]
             ) -> tuple[Tensor, dict[str, Metric]]:
        logprobs = model(rows["prompt_ids"].to_pylist(), rows["completion_ids"].to_pylist()).logprobs
        mask = _mask(_num_tokens(rows, "completion_ids"), logprobs.device)
        return supervised_loss(place(logprobs, mask), mask, num_global_tokens=num_global)


@dataclass(frozen=True)
class PolicyOptions:
    """What the policy objective needs."""

    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    temperature: float = 1.0            # of the rollouts; the logits are divided by it
    max_tokens: int = 1                 # rollout.max_tokens
    term_weights: Mapping[str, float] | None = None     # of the reward's parts; needed with parts: separate


class PolicyObjective:
    """The policy loss over rollouts, and the critic's where there is one.

    The columns of `frozen`: advantages and loss_mask, a list with an entry a completion token; token_weights, a number
    a row; where they are needed proximal_logprobs, reference_logprobs, values and returns, again an entry a token.
    """

    schema = SCORED

    def __init__(self, options: PolicyOptions, kl_coefficient: float | None = None) -> None:
        """kl_coefficient: reward per nat, as the controller holds it at the step's start; None: as in the options."""
        self.options = options
        self.kl_coefficient = options.algorithm.kl_coefficient if kl_coefficient is None else kl_coefficient
        self._loss = policy_loss_options(options.algorithm, self.kl_coefficient)

    @property
    def has_critic(self) -> bool:
        return self.options.algorithm.advantage == "gae"

    def module(self, model: PreTrainedModel) -> nn.Module:
        return CompletionModel(model, reading=examine(model))

    def lengths(self, rows: pa.Table) -> list[int]:
        return sizes_of_rows(rows).lengths

    def sizes(self, rows: pa.Table) -> RowSizes:
        return sizes_of_rows(rows)

    def weights(self, rows: pa.Table) -> list[int]:
        return [1] * rows.num_rows

    def predicted(self, model: Any, rows: pa.Table, *, with_values: bool = False) -> dict[str, list[list[float]]]:
        """Each row's completion `logprobs` under `model`, nats, and `values` where asked for, without gradient."""
        with torch.no_grad():
            found = self._read(model, rows, with_values=with_values)
        sizes = _num_tokens(rows, "completion_ids")
        columns = {"logprobs": found.logprobs} | ({"values": found.values} if with_values else {})
        return {name: [part.tolist() for part in column.cpu().split(sizes)] for name, column in columns.items()}

    def logprobs(self, model: Any, rows: pa.Table) -> list[list[float]]:
        """Each row's completion logprobs under `model`, nats, without gradient."""
        return self.predicted(model, rows)["logprobs"]

    def loss(self, model: Any, rows: pa.Table, num_global: int, frozen: dict[str, list]
             ) -> tuple[Tensor, dict[str, Metric]]:
        found = self._read(model, rows, with_entropy=True, with_values=self.has_critic)
        device = found.logprobs.device
        whole = _mask(_num_tokens(rows, "completion_ids"), device)
        fixed = {name: spread(values, whole.cpu(), torch.bool if name == "loss_mask" else torch.float32).to(device)
                 for name, values in frozen.items() if name != "token_weights"}
        mask = fixed["loss_mask"]
        weights = torch.tensor(frozen["token_weights"], dtype=torch.float64, device=device)
        # Entropy that is measured alone costs no gradient.
        entropy = found.entropy if self._loss.entropy_coefficient > 0 else found.entropy.detach()
        batch = PolicyBatch(
            policy_logprobs=place(found.logprobs, whole), proximal_logprobs=fixed.get("proximal_logprobs"),
            rollout_logprobs=spread(rows["rollout_logprobs"].to_pylist(), whole.cpu()).to(device),
            reference_logprobs=fixed.get("reference_logprobs"), advantages=fixed["advantages"], loss_mask=mask,
            token_weights=weights, entropy=place(entropy, whole))
        loss, metrics = policy_loss(batch, self._loss)
        if batch.reference_logprobs is not None:
            metrics["kl"] = _kl_of_rows(batch)
        if self.has_critic:
            value, value_metrics = value_loss(
                ValueBatch(values=place(found.values, whole), old_values=fixed["values"], returns=fixed["returns"],
                           loss_mask=mask, token_weights=weights), value_clip=self.options.algorithm.value_clip)
            loss, metrics = loss + self.options.algorithm.value_coefficient * value, metrics | value_metrics
        return loss, metrics

    def drift(self, rows: pa.Table, policy: Sequence[Sequence[float]], reference: Sequence[Sequence[float]] | None
              ) -> dict[str, Metric]:
        """How far `policy` logprobs are from the engine's (max_logprob_gap) and, in nats a completion, from the
        reference: kl = mean over completions of sum(policy - reference), the k1 estimate on the policy's samples."""
        rollout = rows["rollout_logprobs"].to_pylist()
        gaps = [abs(a - b) for mine, theirs in zip(policy, rollout, strict=True)
                for a, b in zip(mine, theirs, strict=True)]
        # Not max(): which of NaN and a number it returns depends on their order.
        metrics: dict[str, Metric] = {"max_logprob_gap": Max(float(np.max(gaps, initial=0.0)))}
        if reference is not None:
            total = sum(sum(mine) - sum(theirs) for mine, theirs in zip(policy, reference, strict=True))
            metrics["kl"] = Mean(total, len(rollout))
        return metrics

    def _read(self, model: Any, rows: pa.Table, **asked: bool) -> Predicted:
        return model(rows["prompt_ids"].to_pylist(), rows["completion_ids"].to_pylist(),
                     temperature=self.options.temperature, **asked)


class PreferenceObjective:
    """Direct preference optimisation of pairs of completions.

    The column of `frozen`: reference_sums, the logprobs of the chosen and of the rejected completion under the
    reference, nats, each summed over its tokens.
    """

    schema = PREFERENCE

    def __init__(self, options: PreferenceOptions) -> None:
        self._options = options

    def module(self, model: PreTrainedModel) -> nn.Module:
        return CompletionModel(model, reading=examine(model))

    def lengths(self, rows: pa.Table) -> list[int]:
        return [2 * prompt + chosen + rejected for prompt, chosen, rejected in zip(
            *(_num_tokens(rows, name) for name in ("prompt_ids", "chosen_ids", "rejected_ids")), strict=True)]

    def sizes(self, rows: pa.Table) -> RowSizes:
        own = [chosen + rejected for chosen, rejected in zip(
            _num_tokens(rows, "chosen_ids"), _num_tokens(rows, "rejected_ids"), strict=True)]
        return RowSizes(own, _num_tokens(rows, "prompt_ids"), _numbered(rows["prompt_ids"].to_pylist()), 2)

    def weights(self, rows: pa.Table) -> list[int]:
        return [1] * rows.num_rows

    def reference_sums(self, model: Any, rows: pa.Table) -> list[list[float]]:
        """Of every row, the chosen and the rejected completion's logprobs under `model`, without gradient."""
        with torch.no_grad():
            return self._sums(model, rows).T.tolist()

    def loss(self, model: Any, rows: pa.Table, num_global: int, frozen: dict[str, list]
             ) -> tuple[Tensor, dict[str, Metric]]:
        chosen, rejected = self._sums(model, rows)
        reference = torch.tensor(frozen["reference_sums"], dtype=torch.float64, device=chosen.device)
        return preference_loss(PreferenceBatch(chosen, rejected, reference[:, 0], reference[:, 1]), self._options,
                               num_global_pairs=num_global)

    def _sums(self, model: Any, rows: pa.Table) -> Tensor:
        """`[2, B]`: logprobs of the chosen and of the rejected completions, in one pass."""
        prompts = rows["prompt_ids"].to_pylist()
        logprobs = model(prompts * 2, rows["chosen_ids"].to_pylist() + rows["rejected_ids"].to_pylist()).logprobs
        sizes = torch.tensor(_num_tokens(rows, "chosen_ids") + _num_tokens(rows, "rejected_ids"))
        row_of_token = torch.arange(len(sizes)).repeat_interleave(sizes).to(logprobs.device)
        return logprobs.new_zeros(len(sizes)).index_add(0, row_of_token, logprobs).view(2, -1)


def sizes_of_rows(rows: pa.Table) -> RowSizes:
    """Of rows with prompt_ids and completion_ids."""
    return RowSizes(_num_tokens(rows, "completion_ids"), _num_tokens(rows, "prompt_ids"),
                    _numbered(rows["prompt_ids"].to_pylist()))


def _kl_of_rows(batch: PolicyBatch) -> Mean:
    """Nats a completion from the reference at the step's start, the k1 estimate, over rows with a token to learn."""
    proximal = batch.policy_logprobs.detach() if batch.proximal_logprobs is None else batch.proximal_logprobs
    gap = torch.where(batch.loss_mask, proximal.double() - batch.reference_logprobs.double(), 0.0)
    return Mean(float(gap.sum()), int(batch.loss_mask.any(dim=1).sum()))


def _mask(sizes: Sequence[int], device: torch.device) -> Tensor:
    """`[B, T]` bool, True at the first tokens of every row, as many as it has."""
    counts = torch.tensor(sizes, device=device)
    return torch.arange(max(sizes, default=0), device=device) < counts.unsqueeze(1)


def _num_tokens(rows: pa.Table, name: str) -> list[int]:
    return rows[name].combine_chunks().value_lengths().to_pylist()


def _numbered(prompts: Sequence[Sequence[int]]) -> list[int]:
    """A number a prompt, the same for equal ones."""
    numbers: dict[tuple[int, ...], int] = {}
    return [numbers.setdefault(tuple(prompt), len(numbers)) for prompt in prompts]
