import math

import pytest
import torch

from rlaif.losses import KL_ESTIMATORS, LossOptions, policy_loss, slot_loss, supervised_loss
from rlaif.metrics import merge, values

OPTIONS = LossOptions(clip_low=0.2, clip_high=0.3, importance_cap=2.0, kl_coefficient=0.1, kl_estimator="k3")


def example(seed=0, rows=6, tokens=5):
    generator = torch.Generator().manual_seed(seed)
    proximal = -torch.rand(rows, tokens, generator=generator) * 3
    noise = lambda scale: scale * torch.randn(rows, tokens, generator=generator)  # noqa: E731
    return {
        "policy_logprobs": proximal + noise(0.3),
        "proximal_logprobs": proximal,
        "rollout_logprobs": proximal + noise(0.6),
        "reference_logprobs": proximal + noise(0.4),
        "advantages": torch.randn(rows, generator=generator),
        "loss_mask": torch.rand(rows, tokens, generator=generator) < 0.7,
    }


def plain(batch, options, num_global_tokens):
    """The policy loss once more, token by token in plain Python."""
    total = 0.0
    for b, t in batch["loss_mask"].nonzero().tolist():
        policy, proximal, rollout, reference = (
            batch[f"{who}_logprobs"][b, t].item() for who in ("policy", "proximal", "rollout", "reference")
        )
        advantage = batch["advantages"][b].item()
        ratio = math.exp(policy - proximal)
        clipped = min(max(ratio, 1 - options.clip_low), 1 + options.clip_high)
        weight = (
            1.0
            if options.importance_cap is None
            else min(math.exp(proximal - rollout), options.importance_cap)
        )
        d = reference - policy
        kl = {"k1": -d, "k2": d * d / 2, "k3": math.exp(d) - d - 1}[options.kl_estimator]
        total += -weight * min(ratio * advantage, clipped * advantage) + options.kl_coefficient * kl
    return total / num_global_tokens


def run(batch, options=OPTIONS, num_global_tokens=10, **extra):
    """Loss, gradient with respect to policy_logprobs, metrics."""
    policy = batch["policy_logprobs"].clone().requires_grad_()
    loss, metrics = policy_loss(
        **(batch | {"policy_logprobs": policy}), num_global_tokens=num_global_tokens, options=options, **extra
    )
    loss.backward()
    return loss.detach(), policy.grad, metrics


def test_policy_loss_by_hand():
    # ratios 1.5 and 0.5; row 0 wants more (A = 2), row 1 wants less (A = -1)
    batch = {
        "policy_logprobs": torch.log(torch.tensor([[0.6, 0.2], [0.6, 0.2]])),
        "proximal_logprobs": torch.log(torch.tensor([[0.4, 0.4], [0.4, 0.4]])),
        "rollout_logprobs": torch.log(torch.tensor([[0.4, 0.1], [0.4, 0.8]])),  # weights 1, 4 -> 2, 1, 0.5
        "reference_logprobs": None,
        "advantages": torch.tensor([2.0, -1.0]),
        "loss_mask": torch.ones(2, 2, dtype=torch.bool),
    }
    options = LossOptions(clip_low=0.2, clip_high=0.3, importance_cap=2.0)
    loss, grad, metrics = run(batch, options, num_global_tokens=8)
    # row 0: -1 * min(3, 2.6) - 2 * min(1, 1.6); row 1: -1 * min(-1.5, -1.3) - 0.5 * min(-0.5, -0.8)
    assert loss.item() == pytest.approx((-2.6 - 2.0 + 1.5 + 0.4) / 8)
    # clipped tokens have no gradient; the others weight * ratio * -A / 8
    assert grad.flatten().tolist() == pytest.approx([0.0, -2 * 0.5 * 2 / 8, 1 * 1.5 * 1 / 8, 0.0])
    got = values(metrics)
    assert got == pytest.approx(
        {
            "loss": -2.7 / 8,
            "clip_share": 2 / 4,
            "importance_weight": (1 + 2 + 1 + 0.5) / 4,
            "importance_truncated_share": 1 / 4,
            "max_importance_weight": 4.0,
            "max_logprob_gap": math.log(4.0),
        }
    )


@pytest.mark.parametrize("cap", [None, 1.0, 2.0])
@pytest.mark.parametrize("estimator", KL_ESTIMATORS)
def test_policy_loss_agrees_with_plain_python(estimator, cap):
    options = LossOptions(0.2, 0.3, cap, 0.1, estimator)
    batch = example()
    loss, _, _ = run(batch, options)
    assert loss.item() == pytest.approx(plain(batch, options, 10), rel=1e-5)


def test_on_policy_the_gradient_is_that_of_reinforce():
    batch = example()
    for name in ("proximal", "rollout"):
        batch[f"{name}_logprobs"] = batch["policy_logprobs"]
    _, grad, _ = run(batch, LossOptions())
    want = -batch["advantages"].unsqueeze(1) * batch["loss_mask"] / 10
    torch.testing.assert_close(grad, want)


def test_loss_and_gradient_do_not_depend_on_the_split_into_micro_batches():
    batch = example()
    loss, grad, metrics = run(batch)
    for cuts in ([2, 4], [1, 5], [3, 1, 2]):
        pieces = [
            dict(zip(batch, part, strict=True))
            for part in zip(*(t.split(cuts) for t in batch.values()), strict=True)
        ]
        parts = [run(piece) for piece in pieces]
        torch.testing.assert_close(sum(part[0] for part in parts), loss)
        torch.testing.assert_close(torch.cat([part[1] for part in parts]), grad)
        assert values(merge(part[2] for part in parts)) == pytest.approx(values(metrics), rel=1e-5)


def test_loss_does_not_depend_on_padding_or_the_order_of_rows():
    batch = example()
    loss, _, metrics = run(batch)
    order = torch.tensor([5, 3, 1, 0, 2, 4])
    permuted = {name: tensor[order] for name, tensor in batch.items()}
    torch.testing.assert_close(run(permuted)[0], loss)
    padded = {
        name: tensor if name == "advantages" else torch.nn.functional.pad(tensor, (2, 3))
        for name, tensor in batch.items()
    }
    got, _, padded_metrics = run(padded)
    torch.testing.assert_close(got, loss)
    assert values(padded_metrics) == pytest.approx(values(metrics))


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e30])
def test_masked_garbage_reaches_neither_value_nor_gradient_nor_metrics(garbage):
    batch = example()
    entropy = torch.rand(6, 5)
    loss, grad, metrics = run(batch, entropy=entropy)
    dirty = {
        name: torch.where(batch["loss_mask"], tensor, garbage) if name.endswith("logprobs") else tensor
        for name, tensor in batch.items()
    }
    got, dirty_grad, dirty_metrics = run(dirty, entropy=torch.where(batch["loss_mask"], entropy, garbage))
    assert torch.equal(got, loss) and torch.equal(dirty_grad, grad)
    assert dirty_metrics == metrics


def test_all_masked_gives_zero_loss_zero_gradient_and_no_means():
    batch = example() | {"loss_mask": torch.zeros(6, 5, dtype=torch.bool)}
    loss, grad, metrics = run(batch)
    assert loss.item() == 0.0
    assert torch.equal(grad, torch.zeros(6, 5))
    assert values(metrics) == {"loss": 0.0}


def test_a_nan_at_a_token_that_counts_is_seen():
    batch = example()
    b, t = batch["loss_mask"].nonzero()[0].tolist()
    batch["rollout_logprobs"][b, t] = math.nan
    loss, _, metrics = run(batch)
    assert loss.isnan() and math.isnan(values(metrics)["max_logprob_gap"])


def test_only_policy_logprobs_carry_a_gradient():
    batch = {n: t.clone().requires_grad_(t.is_floating_point()) for n, t in example().items()}
    policy_loss(**batch, num_global_tokens=10, options=OPTIONS)[0].backward()
    assert [name for name, tensor in batch.items() if tensor.grad is not None] == ["policy_logprobs"]


def test_k3_in_the_metrics_and_entropy_are_means_per_token():
    batch = example()
    mask = batch["loss_mask"]
    entropy = torch.rand(6, 5)
    _, _, metrics = run(batch, entropy=entropy)
    d = (batch["reference_logprobs"] - batch["policy_logprobs"])[mask]
    assert values(metrics)["kl_per_token"] == pytest.approx((d.exp() - d - 1).mean().item(), rel=1e-4)
    assert values(metrics)["entropy"] == pytest.approx(entropy[mask].mean().item())


def test_the_gradient_of_k2_is_that_of_the_kl_in_expectation():
    logits = torch.tensor([0.3, -1.0, 0.8], requires_grad=True)
    reference = torch.log_softmax(torch.tensor([1.0, 0.0, -0.5]), 0)
    log_policy = torch.log_softmax(logits, 0)
    true = torch.autograd.grad(
        (log_policy.exp() * (log_policy - reference)).sum(), logits, retain_graph=True
    )[0]
    expected = (log_policy.exp().detach() * KL_ESTIMATORS["k2"](reference - log_policy)).sum()
    torch.testing.assert_close(torch.autograd.grad(expected, logits)[0], true)


def test_a_kl_term_without_a_reference_is_refused():
    with pytest.raises(ValueError, match=r"kl_coefficient must be 0 without a reference policy, got 0.1"):
        run(example() | {"reference_logprobs": None})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("clip_low", -0.1),
        ("clip_low", 1.5),
        ("clip_high", -1.0),
        ("clip_high", math.nan),
        ("importance_cap", 0.5),
        ("kl_coefficient", -0.1),
        ("kl_estimator", "k4"),
    ],
)
def test_options_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field} must be .*got {value}"):
        LossOptions(**{field: value})


def test_supervised_loss_is_the_token_mean_and_splits():
    logprobs = torch.log(torch.tensor([[0.5, 0.25], [0.125, 0.9]]))
    mask = torch.tensor([[True, True], [True, False]])
    logprobs[1, 1] = math.nan
    logprobs.requires_grad_()
    loss, metrics = supervised_loss(logprobs, mask, num_global_tokens=3)
    loss.backward()
    assert loss.item() == pytest.approx((1 + 2 + 3) * math.log(2) / 3)
    assert logprobs.grad.flatten().tolist() == pytest.approx([-1 / 3, -1 / 3, -1 / 3, 0.0])
    assert values(metrics) == pytest.approx({"loss": 2 * math.log(2), "nll": 2 * math.log(2)})
    halves = [supervised_loss(logprobs[i : i + 1], mask[i : i + 1], num_global_tokens=3)[0] for i in range(2)]
    torch.testing.assert_close(sum(halves), loss)
    assert supervised_loss(logprobs, torch.zeros_like(mask), num_global_tokens=1)[0].item() == 0.0


def test_slot_loss_by_hand_with_missing_labels_and_fewer_classes():
    inf = math.inf
    logits = torch.tensor(
        [[[0.0, math.log(3.0), -inf], [0.0, 0.0, 0.0]], [[math.nan] * 3, [0.0, 0.0, math.log(2.0)]]]
    )
    logits.requires_grad_()
    labels = torch.tensor([[1, 0], [-1, 2]])
    loss, metrics = slot_loss(logits, labels, num_global_rows=2)
    loss.backward()
    # -log 3/4, -log 1/3, -log 2/4
    nll = [math.log(4 / 3), math.log(3), math.log(2)]
    assert loss.item() == pytest.approx(sum(nll) / 2)
    assert values(metrics) == pytest.approx(
        {"loss": sum(nll) / 2, "slot_accuracy": 1.0, "slot_nll": sum(nll) / 3}
    )
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[0, 0].tolist() == pytest.approx([0.125, -0.125, 0.0])
    assert logits.grad[1, 0].tolist() == [0.0, 0.0, 0.0]


def test_slot_loss_splits_and_survives_rows_without_labels():
    logits = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, 1], [2, -1], [-1, -1], [1, 1], [0, 2]])
    loss, metrics = slot_loss(logits, labels, num_global_rows=5)
    parts = [slot_loss(logits[rows], labels[rows], num_global_rows=5) for rows in ([0, 1], [2], [3, 4])]
    torch.testing.assert_close(sum(part[0] for part in parts), loss)
    assert values(merge(part[1] for part in parts)) == pytest.approx(values(metrics))
    assert parts[1][0].item() == 0.0 and values(parts[1][1]) == {"loss": 0.0}


def test_slot_labels_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"labels must be in -1\.\.2, got 0\.\.3"):
        slot_loss(torch.zeros(1, 2, 3), torch.tensor([[0, 3]]), num_global_rows=1)
