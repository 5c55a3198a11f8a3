"""What a learner can optimise: a schema of rows, their encoding, and a loss over a micro-batch.

One learner serves supervised training, reward training and reinforcement learning; an objective is all that differs.
Every loss is a sum over its micro-batch divided by a global count, so that it does not depend on how rows are split.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlaif.batch import SUPERVISED, TRAINING
from rlaif.collate import sequences, spread
from rlaif.logprobs import token_entropy, token_logprobs
from rlaif.losses import LossOptions, policy_loss, supervised_loss
from rlaif.metrics import Max, Mean, Metric


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


def completion_logprobs(model: PreTrainedModel, rows: pa.Table, pad_id: int, temperature: float = 1.0, *,
                        with_entropy: bool = False):
    """Log-probabilities of the completion tokens, `[B, L - 1]` with their mask, nats; with entropy where asked."""
    batch = sequences(rows["prompt_ids"].to_pylist(), rows["completion_ids"].to_pylist(), pad_id)
    device = next(model.parameters()).device
    mask = batch.completion_mask.to(device)
    with _head_at(getattr(model, "module", model), mask):
        logits = model(input_ids=batch.input_ids.to(device), attention_mask=batch.attention_mask.to(device),
                       use_cache=False).logits.unsqueeze(0)     # [1, N, V], the N tokens of the mask
    labels = batch.labels.to(device)[mask].unsqueeze(0)
    logprobs = _placed(token_logprobs(logits, labels, temperature=temperature), mask)
    if not with_entropy:
        return logprobs, mask
    with torch.no_grad():
        entropy = _placed(token_entropy(logits, temperature=temperature), mask)
    return logprobs, mask, entropy


@contextlib.contextmanager
def _head_at(model: PreTrainedModel, mask: Tensor) -> Iterator[None]:
    """Inside, the model's output matrix sees the states at `mask` `[B, L - 1]` only: logits come out as `[N, V]`.

    A vocabulary's logits are most of a small model's work, and those of a prompt are never read.
    """
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: (inputs[0][:, :-1][mask],))
    try:
        yield
    finally:
        hook.remove()


def _placed(values: Tensor, mask: Tensor) -> Tensor:
    """`values` `[1, N]` at the True places of `mask`, zero elsewhere."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=mask.device).index_put((mask,), values[0])


def _lengths(rows: pa.Table) -> list[int]:
    prompts = rows["prompt_ids"].combine_chunks().value_lengths().to_pylist()
    completions = rows["completion_ids"].combine_chunks().value_lengths().to_pylist()
    return [p + c for p, c in zip(prompts, completions, strict=True)]
