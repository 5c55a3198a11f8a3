"""Log-probabilities of given tokens, and the entropy beside them, without a float32 copy of all logits.

A vocabulary of 150,000 makes one row of 4,096 tokens 2.5 GB of float32 logits; every function here works
through the tokens in chunks and keeps at most one chunk in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

__all__ = ["chosen_logprobs", "token_entropy", "token_logprobs"]


def token_logprobs(logits: Tensor, labels: Tensor, *, temperature: float = 1.0, chunk: int = 1024) -> Tensor:
    """Log-probabilities `[B, T]` float32, in nats, of `labels` under softmax(logits / temperature).

        logprob = z[label] - logsumexp(z),  z = logits / temperature

    logits: `[B, T, V]`, any float dtype; carries the gradient. labels: `[B, T]` int64 in 0..V-1, already
    shifted so that labels[b, t] is predicted by logits[b, t]; rows that do not count still need a valid id.
    temperature: > 0, the one the tokens were sampled with. chunk: tokens held in float32 at a time. For the
    backward pass the logits themselves and one float per token are kept, and the gradient is written chunk by
    chunk.
    """
    assert logits.ndim == 3 and logits.is_floating_point(), (logits.shape, logits.dtype)
    assert labels.shape == logits.shape[:2] and labels.dtype == torch.int64, (labels.shape, labels.dtype)
    _check_knobs(temperature, chunk)
    return _TokenLogprobs.apply(logits, labels, temperature, chunk)


@torch.no_grad()
def token_entropy(logits: Tensor, *, temperature: float = 1.0, chunk: int = 1024) -> Tensor:
    """Entropy `[B, T]` float32, in nats, of softmax(logits / temperature); a measurement, without a gradient.

        H = -sum_v p_v log p_v

    logits: `[B, T, V]`, any float dtype. temperature and chunk as in `token_logprobs`.
    """
    assert logits.ndim == 3 and logits.is_floating_point(), (logits.shape, logits.dtype)
    _check_knobs(temperature, chunk)
    pieces = [_entropy(_scaled(part, temperature)) for part in logits.split(_columns(logits, chunk), dim=1)]
    return torch.cat(pieces, dim=1) if pieces else logits.new_zeros(logits.shape[:2])


def chosen_logprobs(
    hidden: Tensor, weight: Tensor, labels: Tensor, *, temperature: float = 1.0, chunk: int = 1024
) -> tuple[Tensor, Tensor]:
    """Log-probabilities `[N]` of `labels` and the entropy `[N]` (detached), float32 nats, from hidden states.

        z = hidden @ weight^T / temperature,  logprob = z[label] - logsumexp(z)

    hidden: `[N, H]`, only the positions that count; carries the gradient. weight: `[V, H]`, the output
    embedding; carries the gradient. labels: `[N]` int64 in 0..V-1. chunk: rows whose `[chunk, V]` logits are
    held at a time; in the backward pass they are computed again, so the whole `[N, V]` never exists.
    """
    assert hidden.ndim == 2 and weight.ndim == 2 and hidden.shape[1] == weight.shape[1], (
        hidden.shape,
        weight.shape,
    )
    assert labels.shape == hidden.shape[:1] and labels.dtype == torch.int64, (labels.shape, labels.dtype)
    _check_knobs(temperature, chunk)
    needs_grad = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    logprobs, entropy = [], []
    for part, part_labels in zip(hidden.split(chunk), labels.split(chunk), strict=True):
        if needs_grad:
            both = checkpoint(_project, part, weight, part_labels, temperature, use_reentrant=False)
        else:
            both = _project(part, weight, part_labels, temperature)
        logprobs.append(both[0])
        entropy.append(both[1])
    return torch.cat(logprobs), torch.cat(entropy)


class _TokenLogprobs(torch.autograd.Function):
    """d logprob / d logit_v = (1[v = label] - p_v) / temperature; keeps the raw logits and logsumexp."""

    @staticmethod
    def forward(ctx, logits: Tensor, labels: Tensor, temperature: float, chunk: int) -> Tensor:
        columns = _columns(logits, chunk)
        dtype = _wide(logits.dtype)
        logprobs = logits.new_empty(labels.shape, dtype=dtype)
        log_norm = logits.new_empty(labels.shape, dtype=dtype)
        for start in range(0, logits.shape[1], columns):
            window = slice(start, start + columns)
            z = _scaled(logits[:, window], temperature)
            log_norm[:, window] = torch.logsumexp(z, dim=-1)
            logprobs[:, window] = _gather(z, labels[:, window]) - log_norm[:, window]
        ctx.save_for_backward(logits, labels, log_norm)
        ctx.temperature, ctx.columns = temperature, columns
        return logprobs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        logits, labels, log_norm = ctx.saved_tensors
        out = torch.empty_like(logits)
        for start in range(0, logits.shape[1], ctx.columns):
            window = slice(start, start + ctx.columns)
            scale = (grad[:, window] / ctx.temperature).unsqueeze(-1)
            part = _scaled(logits[:, window], ctx.temperature)
            part = part.sub_(log_norm[:, window].unsqueeze(-1)).exp_().mul_(-scale)
            out[:, window] = part.scatter_add_(-1, labels[:, window].unsqueeze(-1), scale)
        return out, None, None, None


def _project(hidden: Tensor, weight: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    z = _scaled(hidden @ weight.T, temperature)
    return _gather(z, labels) - torch.logsumexp(z, dim=-1), _entropy(z.detach())


def _entropy(z: Tensor) -> Tensor:
    logp = torch.log_softmax(z, dim=-1)
    p = logp.exp()
    # A logit of -inf has probability 0 and adds nothing; 0 * -inf would be NaN.
    return -torch.where(p == 0, 0.0, p * logp).sum(-1)


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    return logits.to(_wide(logits.dtype)) / temperature


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)  # float64 stays float64


def _gather(z: Tensor, labels: Tensor) -> Tensor:
    return z.gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def _columns(logits: Tensor, chunk: int) -> int:
    return max(1, chunk // max(1, logits.shape[0]))


def _check_knobs(temperature: float, chunk: int) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}; take 1.0 for samples drawn greedily")
    assert chunk >= 1, f"chunk must be >= 1, got {chunk}"
