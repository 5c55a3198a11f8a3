"""The pure functions on the GPU against the same on the CPU: policy loss, advantages, log-probabilities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.on_gpu.part import Checks, relative, run
from rlaif.modeling.logprobs import chosen_logprobs, token_logprobs
from rlaif.policy import advantages
from rlaif.policy.policy_loss import PolicyBatch, PolicyLossOptions, policy_loss

ROWS, TOKENS = 64, 512
LOSS = PolicyLossOptions(kl_coefficient=0.02, entropy_coefficient=0.01)
OPTIONS = {
    "clipped": LOSS, "sequence ratio": replace(LOSS, ratio="sequence"), "cispo": replace(LOSS, loss="cispo"),
    "masked importance": replace(LOSS, importance="mask", importance_floor=0.5),
    "dual clip, unbiased KL": replace(LOSS, dual_clip=3.0, kl_unbiased=True)}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}       # the loss is a sum of terms of either sign


def batch(dtype: torch.dtype, device: str) -> PolicyBatch:
    """Drawn in float64 on the CPU; the policy's log-probabilities carry the gradient."""
    draw = torch.Generator().manual_seed(0)

    def made(scale: float, shift: float = 0.0) -> Tensor:
        return torch.randn(ROWS, TOKENS, generator=draw, dtype=torch.float64) * scale + shift

    rollout = -made(1.0).abs()
    columns = {"proximal_logprobs": rollout + made(0.1), "rollout_logprobs": rollout,
               "reference_logprobs": rollout + made(0.2), "advantages": made(1.0)[:, :1].expand(ROWS, TOKENS),
               "entropy": made(1.0, 2.0).abs()}
    mask = torch.rand(ROWS, TOKENS, generator=draw) < 0.8
    policy = (rollout + made(0.2)).to(device, dtype).requires_grad_()
    weights = torch.full((ROWS,), 1 / mask.sum(), dtype=dtype, device=device)
    return PolicyBatch(policy_logprobs=policy, loss_mask=mask.to(device), token_weights=weights,
                       **{name: column.to(device, dtype) for name, column in columns.items()})


def loss_and_gradient(options: PolicyLossOptions, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    made = batch(dtype, device)
    loss, _ = policy_loss(made, options)
    loss.backward()
    assert made.policy_logprobs.grad is not None
    return loss.detach(), made.policy_logprobs.grad


def check_losses(checks: Checks) -> None:
    for name, options in OPTIONS.items():
        for dtype, tolerance in TOLERANCE.items():
            exact = loss_and_gradient(options, torch.float64 if dtype == torch.float64 else dtype, "cpu")
            found = loss_and_gradient(options, dtype, "cuda")
            for what, got, want in zip(("loss", "gradient"), found, exact, strict=True):
                checks.add(f"policy {what}, {name}, {_name(dtype)}, relative", relative(got, want), tolerance)


def check_advantages(checks: Checks) -> None:
    draw = torch.Generator().manual_seed(1)
    rewards = torch.rand(1024, generator=draw)
    groups = torch.arange(1024) // 8
    lengths = torch.randint(1, 65, (1024,), generator=draw)
    tokens = torch.randn(int(lengths.sum()), generator=draw, dtype=torch.float64)
    ways: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
        "grpo": (advantages.grpo, (rewards, groups)), "dr_grpo": (advantages.dr_grpo, (rewards, groups)),
        "rloo": (advantages.rloo, (rewards, groups)), "reinforce_pp": (advantages.reinforce_pp, (tokens, lengths)),
        "reinforce_pp_baseline": (advantages.reinforce_pp_baseline, (rewards, groups))}
    for name, (way, given) in ways.items():
        want, got = way(*given), way(*(part.cuda() for part in given))
        checks.add(f"advantages, {name}, relative", relative(got, want), 2e-6)


def check_logprobs(checks: Checks) -> None:
    """Rows of a vocabulary of 32,000, in chunks and whole, each against float64 on the CPU."""
    draw = torch.Generator().manual_seed(2)
    hidden, weight = torch.randn(512, 256, generator=draw), torch.randn(32000, 256, generator=draw) * 0.05
    labels = torch.randint(0, 32000, (512,), generator=draw)
    exact = _chosen(hidden.double(), weight.double(), labels, None)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 5e-2)):
        for chunk in (None, 100):
            found = _chosen(hidden.to("cuda", dtype), weight.to("cuda", dtype), labels.cuda(), chunk)
            for what, got, want in zip(("logprobs, nats", "gradient of states", "gradient of weight"), found, exact,
                                       strict=True):
                is_nats = what == "logprobs, nats"
                gap = float((got.double().cpu() - want).abs().max()) if is_nats else relative(got, want)
                checks.add(f"chosen {what}, chunk {chunk}, {_name(dtype)}", gap, tolerance)
    logits = (hidden @ weight.T).unsqueeze(0)
    want = token_logprobs(logits.double(), labels.unsqueeze(0))
    got = token_logprobs(logits.cuda(), labels.cuda().unsqueeze(0), chunk=100)
    checks.add("token logprobs, float32, nats", float((got.double().cpu() - want).abs().max()), 1e-5)


def _chosen(hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int | None) -> tuple[Tensor, Tensor, Tensor]:
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    logprobs, entropy = chosen_logprobs(hidden, weight, labels, chunk=chunk)
    assert entropy is not None
    (logprobs.mean() - 0.01 * entropy.mean()).backward()
    assert hidden.grad is not None and weight.grad is not None
    return logprobs.detach(), hidden.grad, weight.grad


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def measured(form: str, checks: Checks) -> dict[str, Any]:
    check_losses(checks)
    check_advantages(checks)
    check_logprobs(checks)
    return {}


if __name__ == "__main__":
    run(measured)
