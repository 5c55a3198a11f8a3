"""The losses of supervised tokens and of slots. Each returns `(loss, metrics)`.

Every normaliser is an argument and counts the *global* batch, so that losses and gradients of micro-batches
and ranks are added, never averaged. Where an engine averages gradients over ranks, the caller multiplies by
the number of ranks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from rlaif.metrics import Metric, Sum
from rlaif.policy.masked import measure, only

__all__ = ["slot_loss", "supervised_loss"]


def supervised_loss(
    token_logprobs: Tensor, loss_mask: Tensor, *, num_global_tokens: int
) -> tuple[Tensor, dict[str, Metric]]:
    """The negative log-likelihood of the masked tokens (scalar float32) and its metrics.

        loss = -sum over masked tokens of logprob / num_global_tokens

    token_logprobs: `[B, T]`, nats; carries the gradient. loss_mask: `[B, T]` bool; anything may stand where
    it is False. num_global_tokens: True entries of all masks of this optimizer step, >= 1.
    """
    assert token_logprobs.ndim == 2, token_logprobs.shape
    assert loss_mask.shape == token_logprobs.shape and loss_mask.dtype == torch.bool, (
        loss_mask.shape,
        loss_mask.dtype,
    )
    assert num_global_tokens >= 1, f"num_global_tokens must be >= 1, got {num_global_tokens}"
    nll = -only(token_logprobs, loss_mask)
    loss = nll.sum() / num_global_tokens
    return loss, {"loss": Sum(float(loss.detach())), **measure(loss_mask, {"nll": nll}, {})}


def slot_loss(
    class_logits: Tensor, labels: Tensor, *, num_global_rows: int
) -> tuple[Tensor, dict[str, Metric]]:
    """The cross-entropy of the labelled slots (scalar float32, nats a row) and its metrics.

        loss = -sum over labelled (n, s) of log softmax(class_logits[n, s])[labels[n, s]] / num_global_rows

    class_logits: `[N, S, K]`, nats up to a constant; -inf where slot s has fewer than K classes; carries the
    gradient. labels: `[N, S]` int64 in 0..K-1, -1 where there is no label. num_global_rows: rows of all
    micro-batches and ranks of this optimizer step, >= 1. The slots of a row are added: the loss is minus the
    log-likelihood of a whole row. Metrics: `slot_accuracy` and `slot_nll`, both a mean over labelled slots.
    """
    assert class_logits.ndim == 3, class_logits.shape
    assert labels.shape == class_logits.shape[:2] and labels.dtype == torch.int64, (
        labels.shape,
        labels.dtype,
    )
    assert num_global_rows >= 1, f"num_global_rows must be >= 1, got {num_global_rows}"
    num_classes = class_logits.shape[2]
    if labels.numel() and not -1 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f"labels must be in -1..{num_classes - 1}, got {int(labels.min())}..{int(labels.max())}; "
            "number the classes of a slot from 0 in the template's order"
        )
    mask = labels >= 0
    # Unlabelled slots are replaced before the softmax, so that nothing in them reaches the gradient.
    logits = torch.where(mask.unsqueeze(-1), class_logits.float(), 0.0)
    nll = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-1, reduction="none")
    loss = nll.sum() / num_global_rows
    is_right = logits.detach().argmax(-1) == labels
    means = {"slot_accuracy": is_right, "slot_nll": nll.view_as(labels)}
    return loss, {"loss": Sum(float(loss.detach())), **measure(mask, means, {})}
