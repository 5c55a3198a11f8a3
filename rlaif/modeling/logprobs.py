"""Log-probabilities of given tokens, and the entropy beside them, without a float32 copy of all logits.

A vocabulary of 150,000 makes one row of 4,096 tokens 2.5 GB of float32 logits; every function here works
through the tokens in chunks and keeps at most one chunk in float32; `chosen_logprobs` never has more logits at all.
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


def token_entropy(logits: Tensor, *, temperature: float = 1.0, chunk: int = 1024) -> Tensor:
    """Entropy `[B, T]`, float32 at least, in nats, of softmax(logits / temperature).

        H = -sum_v p_v log p_v

    logits: `[B, T, V]`, any float dtype; carries the gradient, for which each chunk is computed again in the backward
    pass. temperature and chunk as in `token_logprobs`.
    """
    assert logits.ndim == 3 and logits.is_floating_point(), (logits.shape, logits.dtype)
    _check_knobs(temperature, chunk)
    parts = logits.split(_columns(logits, chunk), dim=1)
    if torch.is_grad_enabled() and logits.requires_grad:
        pieces = [checkpoint(_entropy, part, temperature, use_reentrant=False) for part in parts]
    else:
        pieces = [_entropy(part, temperature) for part in parts]
    return torch.cat(pieces, dim=1) if pieces else logits.new_zeros(logits.shape[:2])


def chosen_logprobs(
    hidden: Tensor, weight: Tensor, labels: Tensor, *, temperature: float = 1.0, chunk: int | None = None,
    with_entropy: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities `[N]` of `labels` and, where asked for, the entropy `[N]`, float32 at least, nats, from states.

        z = hidden @ weight^T / temperature,  logprob = z[label] - logsumexp(z),  H = -sum_v p_v log p_v

    hidden: `[N, H]`, only the positions that count; carries the gradient. weight: `[V, H]`, the output
    embedding; carries the gradient. labels: `[N]` int64 in 0..V-1. chunk: rows whose `[chunk, V]` logits are
    held at a time, None for what is fast; in the backward pass they are computed again, so the whole `[N, V]` never
    exists. Both results carry the gradient; one that is not used costs nothing in the backward pass.
    """
    assert hidden.ndim == 2 and weight.ndim == 2 and hidden.shape[1] == weight.shape[1], (
        hidden.shape,
        weight.shape,
    )
    assert labels.shape == hidden.shape[:1] and labels.dtype == torch.int64, (labels.shape, labels.dtype)
    if chunk is None:
        chunk = max(1, _CHUNK_LOGITS[hidden.is_cuda] // weight.shape[0])
    _check_knobs(temperature, chunk)
    logprobs, entropy = _ChosenLogprobs.apply(hidden, weight, labels, temperature, chunk, with_entropy)
    return logprobs, entropy if with_entropy else None


# Logits of a chunk: on a CPU they stay in the cache.
_CHUNK_LOGITS = {False: 1 << 20, True: 1 << 26}


class _ChosenLogprobs(torch.autograd.Function):
    """Keeps the hidden states, the weight, logsumexp and H. With p = softmax(z) and z the logits over the temperature:

        d logprob / d z_v = 1[v = label] - p_v,     d H / d z_v = -p_v (log p_v + H)
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, labels: Tensor, temperature: float, chunk: int,
                with_entropy: bool):
        logprobs, log_norm, entropy = (hidden.new_empty(len(hidden), dtype=_wide(hidden.dtype)) for _ in range(3))
        for start in range(0, len(hidden), chunk):
            window = slice(start, start + chunk)
            z = _product(hidden[window], weight, temperature)
            largest = z.amax(dim=-1, keepdim=True)
            z.sub_(largest)
            powers = z.exp()
            total = powers.sum(dim=-1)
            log_total = total.log()
            log_norm[window] = largest.squeeze(1) + log_total
            logprobs[window] = _gather(z, labels[window]) - log_total
            if with_entropy:
                entropy[window] = log_total - powers.mul_(z).sum(dim=-1) / total
        ctx.save_for_backward(hidden, weight, labels, log_norm, entropy)
        ctx.temperature, ctx.chunk = temperature, chunk
        ctx.set_materialize_grads(False)
        return logprobs, entropy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor | None, entropy_grad: Tensor | None):
        hidden, weight, labels, log_norm, entropy = ctx.saved_tensors
        if grad is None:
            grad = torch.zeros_like(log_norm)
        hidden_grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        # Wide: sums of many chunks in bfloat16 lose a digit for every few hundred of them.
        weight_grad = torch.zeros_like(weight, dtype=_wide(weight.dtype)) if ctx.needs_input_grad[1] else None
        for start in range(0, len(hidden), ctx.chunk):
            window = slice(start, start + ctx.chunk)
            scale = (grad[window] / ctx.temperature).unsqueeze(1)
            logp = _product(hidden[window], weight, ctx.temperature).sub_(log_norm[window].unsqueeze(1))
            if entropy_grad is None:
                part = logp.exp_().mul_(-scale)
            else:
                factor = (entropy_grad[window] / ctx.temperature).unsqueeze(1)
                part = logp.exp().mul_((logp + entropy[window].unsqueeze(1)).mul_(factor).add_(scale).neg_())
            part = part.scatter_add_(1, labels[window].unsqueeze(1), scale).to(hidden.dtype)
            if hidden_grad is not None:
                hidden_grad[window] = part @ weight
            if weight_grad is None:
                continue
            if weight_grad.dtype == part.dtype:
                weight_grad.addmm_(part.T, hidden[window])
            else:
                weight_grad.add_(part.T @ hidden[window])
        return hidden_grad, None if weight_grad is None else weight_grad.to(weight.dtype), None, None, None, None


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


def _product(hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
    z = (hidden @ weight.T).to(_wide(hidden.dtype))
    return z if temperature == 1.0 else z.div_(temperature)


def _entropy(logits: Tensor, temperature: float) -> Tensor:
    logp = torch.log_softmax(_scaled(logits, temperature), dim=-1)
    p = logp.exp()
    # A logit of -inf has probability 0 and adds nothing; 0 * -inf would be NaN.
    return -torch.where(p == 0, 0.0, p * logp.clamp(min=torch.finfo(logp.dtype).min)).sum(-1)


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    """A copy in float32 at least, divided by the temperature."""
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
