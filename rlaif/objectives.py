"""What a learner can optimise: a schema of rows, their encoding, and a loss over a micro-batch.

One learner serves supervised training, reward training and reinforcement learning; an objective is all that differs.
Every loss is a sum over its micro-batch divided by a global count, so that it does not depend on how rows are split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlaif.batch import JUDGED, SUPERVISED, TRAINING
from rlaif.collate import pad_right, sequences, spread
from rlaif.logprobs import token_entropy, token_logprobs
from rlaif.losses import LossOptions, policy_loss, slot_loss, supervised_loss
from rlaif.metrics import Max, Mean, Metric, Sum
from rlaif.slot_scoring import check_model, class_logits
from rlaif.slots import CompiledTemplate, SlotTemplate, compile_template, encode


class Objective(Protocol):
    """What the learner asks of an objective."""

    schema: pa.Schema

    def module(self, model: PreTrainedModel) -> torch.nn.Module:
        """What the training engine wraps: its forward is what `loss` calls."""

    def lengths(self, rows: pa.Table) -> list[int]:
        """Tokens of every row as the model will see it."""

    def weights(self, rows: pa.Table) -> list[int]:
        """Each row's share of the global count: its tokens with a loss, or 1."""

    def loss(self, model: Any, rows: pa.Table, num_global: int, frozen: dict[str, list]) -> tuple[Tensor, dict]:
        """The loss of a micro-batch and its metrics; `frozen` holds per-token columns computed without gradient."""


class SupervisedObjective:
    """Cross-entropy of the completion given the prompt."""

    schema = SUPERVISED

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._pad_id = tokenizer.pad_token_id or 0

    def module(self, model: PreTrainedModel) -> torch.nn.Module:
        return model

    def lengths(self, rows: pa.Table) -> list[int]:
        return _lengths(rows)

    def weights(self, rows: pa.Table) -> list[int]:
        return rows["completion_ids"].combine_chunks().value_lengths().to_pylist()

    def loss(self, model: Any, rows: pa.Table, num_global: int, frozen: dict[str, list]
             ) -> tuple[Tensor, dict[str, Metric]]:
        logprobs, mask = completion_logprobs(model, rows, self._pad_id)
        return supervised_loss(logprobs, mask, num_global_tokens=num_global)


@dataclass(frozen=True)
class PolicyOptions:
    """What the policy objective needs beside the tokenizer."""

    loss: LossOptions = field(default_factory=LossOptions)
    temperature: float = 1.0        # of the rollouts; the logits are divided by it


class PolicyObjective:
    """The clipped policy loss over rollouts with advantages."""

    schema = TRAINING

    def __init__(self, tokenizer: PreTrainedTokenizerBase, options: PolicyOptions) -> None:
        self._pad_id = tokenizer.pad_token_id or 0
        self._options = options

    def module(self, model: PreTrainedModel) -> torch.nn.Module:
        return model

    def lengths(self, rows: pa.Table) -> list[int]:
        return _lengths(rows)

    def weights(self, rows: pa.Table) -> list[int]:
        return [sum(mask) for mask in rows["loss_mask"].to_pylist()]

    def logprobs(self, model: Any, rows: pa.Table) -> list[list[float]]:
        """Each row's completion logprobs under `model`, nats, without gradient."""
        with torch.no_grad():
            logprobs, mask = completion_logprobs(model, rows, self._pad_id, self._options.temperature)
        sizes = mask.sum(dim=1).tolist()
        return [part.tolist() for part in logprobs[mask].split(sizes)]

    def loss(self, model: Any, rows: pa.Table, num_global: int, frozen: dict[str, list]
             ) -> tuple[Tensor, dict[str, Metric]]:
        logprobs, mask, entropy = completion_logprobs(model, rows, self._pad_id, self._options.temperature,
                                                      with_entropy=True)
        device = logprobs.device
        place = {name: spread(values, mask.cpu()).to(device) for name, values in frozen.items()}
        rollout = spread(rows["rollout_logprobs"].to_pylist(), mask.cpu()).to(device)
        keep = spread(rows["loss_mask"].to_pylist(), mask.cpu(), torch.bool).to(device)
        advantages = torch.tensor(rows["advantages"].to_pylist(), dtype=torch.float32, device=device)
        return policy_loss(logprobs, place.get("proximal_logprobs", logprobs.detach()), rollout,
                           place.get("reference_logprobs"), advantages, keep, num_global_tokens=num_global,
                           options=self._options.loss, entropy=entropy)

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


class SlotObjective:
    """Cross-entropy of the label at every slot of the filled template."""

    schema = JUDGED

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: SlotTemplate) -> None:
        self._compiled = compile_template(template, tokenizer)

    def module(self, model: PreTrainedModel) -> torch.nn.Module:
        check_model(model, self._compiled)
        return _SlotForward(model, self._compiled)

    def _encode(self, rows: pa.Table):
        return encode(self._compiled, *(rows[name].to_pylist() for name in ("prompt", "completion", "explanation")))

    def lengths(self, rows: pa.Table) -> list[int]:
        return [len(ids) for ids in self._encode(rows).input_ids]

    def weights(self, rows: pa.Table) -> list[int]:
        return [1] * rows.num_rows

    def loss(self, model: Any, rows: pa.Table, num_global: int, frozen: dict[str, list]
             ) -> tuple[Tensor, dict[str, Metric]]:
        encoded = self._encode(rows)
        input_ids, attention_mask = pad_right(encoded.input_ids, self._compiled.tokenizer.pad_token_id)
        device = next(model.parameters()).device
        logits = model(input_ids.to(device), attention_mask.to(device),
                       torch.tensor(encoded.slot_positions, device=device))
        labels = torch.tensor(rows["labels"].to_pylist(), dtype=torch.int64, device=device)
        loss, metrics = slot_loss(logits, labels, num_global_rows=num_global)
        return loss, metrics | {"num_truncated": Sum(encoded.num_truncated)}


class _SlotForward(torch.nn.Module):
    """A masked LM whose forward reads its slots only: a training engine gathers and reduces around `forward`."""

    def __init__(self, model: PreTrainedModel, compiled: CompiledTemplate) -> None:
        super().__init__()
        self.model, self._compiled = model, compiled

    def forward(self, input_ids: Tensor, attention_mask: Tensor, slot_positions: Tensor) -> Tensor:
        return class_logits(self.model, input_ids, attention_mask, slot_positions, self._compiled)


def completion_logprobs(model: PreTrainedModel, rows: pa.Table, pad_id: int, temperature: float = 1.0, *,
                        with_entropy: bool = False):
    """Log-probabilities of the completion tokens, `[B, L - 1]` with their mask, nats; with entropy where asked."""
    batch = sequences(rows["prompt_ids"].to_pylist(), rows["completion_ids"].to_pylist(), pad_id)
    device = next(model.parameters()).device
    logits = model(input_ids=batch.input_ids.to(device), attention_mask=batch.attention_mask.to(device),
                   use_cache=False).logits[:, :-1]
    mask = batch.completion_mask.to(device)
    logprobs = token_logprobs(logits, batch.labels.to(device), temperature=temperature)
    if not with_entropy:
        return logprobs, mask
    with torch.no_grad():
        entropy = token_entropy(logits, temperature=temperature)
    return logprobs, mask, entropy


def _lengths(rows: pa.Table) -> list[int]:
    prompts = rows["prompt_ids"].combine_chunks().value_lengths().to_pylist()
    completions = rows["completion_ids"].combine_chunks().value_lengths().to_pylist()
    return [p + c for p, c in zip(prompts, completions, strict=True)]
