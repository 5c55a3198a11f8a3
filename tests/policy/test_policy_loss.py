import dataclasses
import math

import pytest
import torch

from rlaif.config.algorithm import MEANS, AlgorithmConfig
from rlaif.metrics import merge, values
from rlaif.policy.policy_loss import PolicyBatch, PolicyLossOptions, policy_loss, policy_loss_options
from rlaif.policy.token_weights import token_weights

CLIPPED = PolicyLossOptions(clip_low=0.2, clip_high=0.3, importance_cap=2.0, kl_coefficient=0.1)
VARIANTS = {
    "ppo": CLIPPED,
    "symmetric": dataclasses.replace(CLIPPED, clip_high=0.2, kl_coefficient=0.0),
    "dual_clip": dataclasses.replace(CLIPPED, dual_clip=1.5),
    "gspo": dataclasses.replace(CLIPPED, ratio="sequence", clip_low=0.05, clip_high=0.08, importance_level="sequence"),
    "product": dataclasses.replace(CLIPPED, ratio="product"),
    "cispo": dataclasses.replace(CLIPPED, loss="cispo", clip_low=0.4, clip_high=0.1),
    "k1": dataclasses.replace(CLIPPED, kl_estimator="k1"),
    "k2": dataclasses.replace(CLIPPED, kl_estimator="k2"),
    "unbiased_k1": dataclasses.replace(CLIPPED, kl_estimator="k1", kl_unbiased=True),
    "unbiased_k3": dataclasses.replace(CLIPPED, kl_unbiased=True, ratio="sequence", importance="none"),
    "no_importance": dataclasses.replace(CLIPPED, importance="none"),
    "masked_importance": dataclasses.replace(CLIPPED, importance="mask", importance_cap=1.5, importance_floor=0.6),
    "sequence_importance": dataclasses.replace(CLIPPED, importance_level="sequence", importance_cap=1.2),
    "masked_sequences": dataclasses.replace(CLIPPED, importance="mask", importance_level="sequence",
                                            importance_cap=1.3),
    "entropy": dataclasses.replace(CLIPPED, entropy_coefficient=0.05),
}


def example(seed=0, rows=6, tokens=5):
    generator = torch.Generator().manual_seed(seed)
    random = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    proximal = -3 * torch.rand(rows, tokens, generator=generator, dtype=torch.float64)
    mask = torch.rand(rows, tokens, generator=generator) < 0.7
    mask[1], mask[2] = False, False
    mask[2, 3] = True       # row 1 has no token, row 2 a single one
    return PolicyBatch(
        policy_logprobs=proximal + 0.3 * random(rows, tokens), proximal_logprobs=proximal,
        rollout_logprobs=proximal + 0.6 * random(rows, tokens),
        reference_logprobs=proximal + 0.4 * random(rows, tokens),
        advantages=random(rows, 1).expand(rows, tokens).clone(), loss_mask=mask,
        token_weights=token_weights("sequence", mask.sum(1), torch.arange(rows) // 2, tokens),
        entropy=torch.rand(rows, tokens, generator=generator, dtype=torch.float64))


def plain(batch, options, policy=None):
    """The loss once more, token by token in plain Python; `policy` replaces the policy's logprobs, except in the
    detached weights of cispo."""
    before = batch.policy_logprobs.tolist()
    policy = before if policy is None else policy
    proximal, rollout, reference, advantages, mask, weights, entropy = (
        getattr(batch, name).tolist() for name in ("proximal_logprobs", "rollout_logprobs", "reference_logprobs",
                                                   "advantages", "loss_mask", "token_weights", "entropy"))
    total = 0.0
    for b, row_mask in enumerate(mask):
        places = [t for t, is_counted in enumerate(row_mask) if is_counted]
        for t in places:
            source = before if options.loss == "cispo" else policy
            ratios = [math.exp(source[b][u] - proximal[b][u]) for u in ([t] if options.ratio == "token" else places)]
            ratio = math.prod(ratios) ** (1 / len(ratios) if options.ratio == "sequence" else 1)
            near = min(max(ratio, 1 - options.clip_low), 1 + options.clip_high)
            gain = advantages[b][t]
            if options.loss == "cispo":
                term = -near * gain * policy[b][t]
            else:
                term = min(ratio * gain, near * gain)
                if options.dual_clip is not None and gain < 0:
                    term = max(term, options.dual_clip * gain)
                term = -term
            off = places if options.importance_level == "sequence" else [t]
            weight = math.exp(sum(proximal[b][u] - rollout[b][u] for u in off))
            if options.importance == "truncate":
                weight = min(weight, options.importance_cap)
            elif options.importance == "mask":
                weight = weight if options.importance_floor <= weight <= options.importance_cap else 0.0
            else:
                weight = 1.0
            d = reference[b][t] - policy[b][t]
            kl = {"k1": -d, "k2": d * d / 2, "k3": math.exp(d) - d - 1}[options.kl_estimator]
            if options.kl_unbiased:
                kl *= math.exp(policy[b][t] - proximal[b][t])
            total += weights[b] * (weight * term + options.kl_coefficient * kl
                                   - options.entropy_coefficient * entropy[b][t])
    return total


def run(batch, options=CLIPPED):
    """Loss, gradient with respect to policy_logprobs, metrics."""
    policy = batch.policy_logprobs.clone().requires_grad_()
    loss, metrics = policy_loss(dataclasses.replace(batch, policy_logprobs=policy), options)
    loss.backward()
    return loss.detach(), policy.grad, metrics


def rows_of(batch, rows):
    return PolicyBatch(**{field.name: None if (tensor := getattr(batch, field.name)) is None else tensor[rows]
                          for field in dataclasses.fields(batch)})


def of_tokens(batch, change):
    """`batch` with `change` applied to every `[B, T]` tensor by name."""
    names = [name for name in ("policy_logprobs", "proximal_logprobs", "rollout_logprobs", "reference_logprobs",
                               "advantages", "loss_mask", "entropy") if getattr(batch, name) is not None]
    return dataclasses.replace(batch, **{name: change(name, getattr(batch, name)) for name in names})


def by_hand(**changes):
    """Ratios 1.5 and 0.5; row 0 wants more (A = 2), row 1 wants less (A = -1); rollout / proximal 1, 1/4, 1, 2."""
    log = lambda rows: torch.log(torch.tensor(rows, dtype=torch.float64))  # noqa: E731
    return PolicyBatch(**{
        "policy_logprobs": log([[0.6, 0.2], [0.6, 0.2]]), "proximal_logprobs": log([[0.4, 0.4], [0.4, 0.4]]),
        "rollout_logprobs": log([[0.4, 0.1], [0.4, 0.8]]), "reference_logprobs": None,
        "advantages": torch.tensor([[2.0, 2.0], [-1.0, -1.0]], dtype=torch.float64),
        "loss_mask": torch.ones(2, 2, dtype=torch.bool), "token_weights": torch.tensor([1 / 8, 1 / 8])} | changes)


def test_the_clipped_loss_by_hand():
    loss, grad, metrics = run(by_hand(), PolicyLossOptions(clip_low=0.2, clip_high=0.3, importance_cap=2.0))
    # weights 1, 4 -> 2, 1, 0.5; row 0: -1 * min(3, 2.6) - 2 * min(1, 1.6); row 1: -min(-1.5, -1.3) - .5 min(-.5, -.8)
    assert loss.item() == pytest.approx((-2.6 - 2.0 + 1.5 + 0.4) / 8)
    # a clipped token has no gradient; the others weight * ratio * -A / 8
    assert grad.flatten().tolist() == pytest.approx([0.0, -2 * 0.5 * 2 / 8, 1 * 1.5 * 1 / 8, 0.0])
    assert values(metrics) == pytest.approx({
        "loss": -2.7 / 8, "clip_share": 2 / 4, "importance_weight": (1 + 2 + 1 + 0.5) / 4,
        "importance_truncated_share": 1 / 4, "max_importance_weight": 4.0, "max_logprob_gap": math.log(4.0)})


def test_the_dual_clip_by_hand():
    options = PolicyLossOptions(clip_low=0.2, clip_high=0.2, dual_clip=1.4, importance="none")
    loss, grad, metrics = run(by_hand(), options)
    # row 0: 1.2 * 2 and 0.5 * 2; row 1: the ratio 1.5 held at 1.4, the ratio 0.5 at 0.8
    assert loss.item() == pytest.approx((-2.4 - 1.0 + 1.4 + 0.8) / 8)
    assert grad.flatten().tolist() == pytest.approx([0.0, -1 / 8, 0.0, 0.0])
    assert values(metrics)["clip_share"] == 3 / 4 and values(metrics)["importance_weight"] == 1.0


def test_the_sequence_ratio_by_hand():
    options = PolicyLossOptions(ratio="sequence", clip_low=0.1, clip_high=0.2, importance="none")
    loss, grad, _ = run(by_hand(), options)
    s = math.sqrt(1.5 * 0.5)        # 0.866 in both rows: not clipped above; clipped below 0.9 where A < 0
    assert loss.item() == pytest.approx((-2 * s * 2 + 2 * 0.9) / 8)
    # d/d policy of -(1 / 8) * 2 tokens * s * 2, each token a half of it
    assert grad.flatten().tolist() == pytest.approx([-2 * s / 8, -2 * s / 8, 0.0, 0.0])


def test_the_product_ratio_by_hand():
    options = PolicyLossOptions(ratio="product", clip_low=0.2, clip_high=0.2, importance="none")
    loss, grad, _ = run(by_hand(token_weights=torch.tensor([1 / 4, 1 / 4])), options)
    # 1.5 * 0.5 = 0.75; row 1 is held at 0.8; a mean over two rows of two tokens
    assert loss.item() == pytest.approx((-0.75 * 2 + 0.8 * 1) / 2)
    # the completion as one action: each token has the whole ratio as its gradient
    assert grad.flatten().tolist() == pytest.approx([-0.75 * 2 / 2, -0.75 * 2 / 2, 0.0, 0.0])


def test_cispo_by_hand():
    options = PolicyLossOptions(loss="cispo", clip_low=0.2, clip_high=0.3, importance="none")
    loss, grad, metrics = run(by_hand(), options)
    weights = [1.3 * 2, 0.8 * 2, 1.3 * -1, 0.8 * -1]        # detached: every token learns
    logs = [math.log(0.6), math.log(0.2)] * 2
    assert loss.item() == pytest.approx(-sum(w * log for w, log in zip(weights, logs, strict=True)) / 8)
    assert grad.flatten().tolist() == pytest.approx([-w / 8 for w in weights])
    assert values(metrics)["clip_share"] == 1.0


def test_masked_importance_by_hand():
    options = PolicyLossOptions(clip_low=1.0, clip_high=9.0, importance="mask", importance_cap=2.0,
                                importance_floor=0.6)
    loss, grad, metrics = run(by_hand(), options)
    # weights 1, 4 -> 0, 1, 0.5 -> 0
    assert loss.item() == pytest.approx((-1.5 * 2 + 1.5) / 8)
    assert grad.flatten().tolist() == pytest.approx([-3 / 8, 0.0, 1.5 / 8, 0.0])
    assert values(metrics)["importance_masked_share"] == 2 / 4
    assert values(metrics)["max_importance_weight"] == pytest.approx(4.0)


def test_sequence_importance_by_hand():
    options = PolicyLossOptions(clip_low=1.0, clip_high=9.0, importance_level="sequence", importance_cap=2.0)
    loss, _, metrics = run(by_hand(), options)
    # 1 * 4 -> 2 for all of row 0, 1 * 0.5 for all of row 1
    assert loss.item() == pytest.approx((-2 * (1.5 + 0.5) * 2 + 0.5 * (1.5 + 0.5)) / 8)
    assert values(metrics)["importance_truncated_share"] == 2 / 4


def test_kl_and_entropy_by_hand():
    batch = by_hand(reference_logprobs=torch.full((2, 2), math.log(0.3), dtype=torch.float64),
                    advantages=torch.zeros(2, 2), entropy=torch.full((2, 2), 0.5, dtype=torch.float64))
    d = [math.log(0.3 / 0.6), math.log(0.3 / 0.2)]      # per token, both rows alike
    kl = {"k1": -sum(d), "k2": sum(x * x for x in d) / 2, "k3": (0.5 + 1.5) - sum(d) - 2}
    slope = {"k1": [1.0, 1.0], "k2": [-d[0], -d[1]], "k3": [1 - 0.5, 1 - 1.5]}
    for name in kl:
        loss, grad, metrics = run(batch, PolicyLossOptions(kl_estimator=name, kl_coefficient=0.1,
                                                           entropy_coefficient=0.01))
        assert loss.item() == pytest.approx(2 * 0.1 * kl[name] / 8 - 4 * 0.01 * 0.5 / 8)
        assert grad.flatten().tolist() == pytest.approx([0.1 * x / 8 for x in slope[name] * 2])
        assert values(metrics)["kl_per_token"] == pytest.approx(kl["k3"] / 2)
        assert values(metrics)["entropy"] == pytest.approx(0.5)


@pytest.mark.parametrize(("estimator", "kl_unbiased", "is_on_policy"), [
    ("k1", True, True), ("k3", True, True), ("k1", True, False), ("k3", True, False), ("k2", False, True)])
def test_the_gradient_is_that_of_the_kl_in_expectation(estimator, kl_unbiased, is_on_policy):
    logits = torch.tensor([0.3, -1.0, 0.8], dtype=torch.float64, requires_grad=True)
    reference = torch.log_softmax(torch.tensor([1.0, 0.0, -0.5], dtype=torch.float64), 0)
    policy = torch.log_softmax(logits, 0)
    proximal = policy.detach() if is_on_policy else torch.log_softmax(torch.tensor([0.1, 0.2, 0.3]).double(), 0)
    true = torch.autograd.grad((policy.exp() * (policy - reference)).sum(), logits, retain_graph=True)[0]
    # one row a token of the vocabulary, as often as the proximal policy would have drawn it
    batch = PolicyBatch(*(tensor.unsqueeze(1) for tensor in (policy, proximal, proximal, reference)),
                        advantages=torch.zeros(3, 1), loss_mask=torch.ones(3, 1, dtype=torch.bool),
                        token_weights=proximal.exp())
    loss, _ = policy_loss(batch, PolicyLossOptions(kl_coefficient=1.0, kl_estimator=estimator, kl_unbiased=kl_unbiased))
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], true)


def test_the_entropy_bonus_has_a_gradient():
    entropy = torch.rand(2, 2, dtype=torch.float64, requires_grad=True)
    policy_loss(by_hand(entropy=entropy), PolicyLossOptions(entropy_coefficient=0.2))[0].backward()
    torch.testing.assert_close(entropy.grad, torch.full((2, 2), -0.2 / 8, dtype=torch.float64))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", VARIANTS)
def test_loss_and_gradient_agree_with_plain_python(name, seed):
    options, batch = VARIANTS[name], example(seed)
    loss, grad, _ = run(batch, options)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(plain(batch, options), rel=1e-9)
    table = batch.policy_logprobs.tolist()
    step = 1e-6
    for b in range(6):
        for t in range(5):
            low, high = ([row.copy() for row in table] for _ in range(2))
            low[b][t] -= step
            high[b][t] += step
            slope = (plain(batch, options, high) - plain(batch, options, low)) / (2 * step)
            assert grad[b, t].item() == pytest.approx(slope, abs=1e-7)


def test_without_a_proximal_policy_the_gradient_is_that_of_reinforce():
    batch = dataclasses.replace(example(), proximal_logprobs=None, reference_logprobs=None)
    batch = dataclasses.replace(batch, rollout_logprobs=batch.policy_logprobs)
    want = -batch.advantages * batch.loss_mask * batch.token_weights.unsqueeze(1)
    for options in (PolicyLossOptions(), PolicyLossOptions(ratio="sequence"), PolicyLossOptions(loss="cispo"),
                    PolicyLossOptions(clip_low=0.0, clip_high=0.0)):
        torch.testing.assert_close(run(batch, options)[1], want)
    num_tokens = batch.loss_mask.sum(1, keepdim=True)
    torch.testing.assert_close(run(batch, PolicyLossOptions(ratio="product"))[1], want * num_tokens)


@pytest.mark.parametrize("name", VARIANTS)
def test_loss_and_gradient_do_not_depend_on_the_split_into_micro_batches(name):
    batch = example()
    loss, grad, metrics = run(batch, VARIANTS[name])
    for cuts in ([[0, 1], [2, 3, 4, 5]], [[5], [0, 2, 4], [3, 1]]):
        rows = [row for cut in cuts for row in cut]
        parts = [run(rows_of(batch, cut), VARIANTS[name]) for cut in cuts]
        torch.testing.assert_close(sum(part[0] for part in parts), loss)
        torch.testing.assert_close(torch.cat([part[1] for part in parts]), grad[rows])
        assert values(merge(part[2] for part in parts)) == pytest.approx(values(metrics))


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("name", ["ppo", "gspo", "cispo", "entropy"])
def test_the_loss_of_a_step_is_the_same_on_any_number_of_ranks_and_micro_batches(name, mean):
    batch, groups = example(), torch.tensor([3, 0, 3, 1, 0, 1])
    weights = token_weights(mean, batch.loss_mask.sum(1), groups, 5, torch.tensor([1.0, 2, 1, 1, 0.5, 3]))
    loss, grad, _ = run(dataclasses.replace(batch, token_weights=weights), VARIANTS[name])
    # every rank knows all rows, weighs them, and trains its share, padded to the longest of it only
    order = torch.tensor([4, 2, 5, 0, 3, 1])
    total, grads = 0.0, torch.zeros_like(grad)
    for rank in ([[0], [1, 2]], [[3, 4, 5]]):
        known = token_weights(mean, batch.loss_mask[order].sum(1), groups[order], 5,
                              torch.tensor([1.0, 2, 1, 1, 0.5, 3])[order])
        for places in rank:
            rows = order[places]
            width = max(1, int((batch.loss_mask[rows] * torch.arange(1, 6)).max()))
            part = of_tokens(rows_of(batch, rows), lambda _, tensor, end=width: tensor[:, :end])
            got = run(dataclasses.replace(part, token_weights=known[places]), VARIANTS[name])
            total += got[0].item()
            grads[rows, :width] = got[1]
    assert total == pytest.approx(loss.item(), rel=1e-9)
    torch.testing.assert_close(grads, grad)


@pytest.mark.parametrize("name", VARIANTS)
def test_neither_padding_nor_the_order_of_rows_nor_garbage_behind_the_mask_matters(name):
    batch = example()
    loss, grad, metrics = run(batch, VARIANTS[name])
    order = torch.tensor([5, 3, 1, 0, 2, 4])
    shuffled = run(rows_of(batch, order), VARIANTS[name])
    torch.testing.assert_close(shuffled[0], loss)
    torch.testing.assert_close(shuffled[1], grad[order])
    padded = run(of_tokens(batch, lambda _, tensor: torch.nn.functional.pad(tensor, (2, 3))), VARIANTS[name])
    torch.testing.assert_close(padded[0], loss)
    torch.testing.assert_close(padded[1][:, 2:-3], grad)
    assert values(padded[2]) == pytest.approx(values(metrics))
    for garbage in (math.nan, math.inf, -math.inf, 1e30):
        dirty = of_tokens(batch, lambda key, tensor, put=garbage: tensor if key == "loss_mask"
                          else torch.where(batch.loss_mask, tensor, put))
        got = run(dirty, VARIANTS[name])
        assert torch.equal(got[0], loss) and torch.equal(got[1], grad) and got[2] == metrics


@pytest.mark.parametrize("name", VARIANTS)
def test_all_masked_gives_zero_loss_zero_gradient_and_no_means(name):
    batch = dataclasses.replace(example(), loss_mask=torch.zeros(6, 5, dtype=torch.bool))
    loss, grad, metrics = run(batch, VARIANTS[name])
    assert loss.item() == 0.0 and torch.equal(grad, torch.zeros_like(grad))
    assert values(metrics) == {"loss": 0.0}
    empty = run(rows_of(batch, []), VARIANTS[name])
    assert empty[0].item() == 0.0 and values(empty[2]) == {"loss": 0.0}


@pytest.mark.parametrize("ratio", ["token", "sequence", "product"])
def test_a_ratio_that_overflows_is_clipped_without_a_trace_or_seen(ratio):
    policy = torch.tensor([[-1.0, 0.0], [-1.0, -1.0]])
    proximal = torch.tensor([[-1.0, -2000.0], [-1.0, -1.0]])
    batch = by_hand(policy_logprobs=policy, proximal_logprobs=proximal, rollout_logprobs=proximal)
    loss, grad, _ = run(batch, PolicyLossOptions(ratio=ratio, importance="none"))
    assert loss.isfinite() and grad.isfinite().all() and grad[0, 1] == 0.0
    # Where less is wanted nothing bounds it: the loss shows it. A dual clip does bound it.
    less = dataclasses.replace(batch, advantages=-batch.advantages)
    assert run(less, PolicyLossOptions(ratio=ratio, importance="none"))[0].item() == math.inf
    loss, grad, _ = run(less, PolicyLossOptions(ratio=ratio, importance="none", dual_clip=3.0))
    assert loss.isfinite() and grad.isfinite().all()
    loss, grad, _ = run(less, PolicyLossOptions(loss="cispo", importance="none"))
    assert loss.isfinite() and grad.isfinite().all()


def test_a_rollout_probability_of_nothing_is_truncated_or_masked():
    batch = by_hand(rollout_logprobs=torch.tensor([[-1000.0, -1.0], [-1.0, -1.0]], dtype=torch.float64))
    for importance in ("truncate", "mask"):
        loss, grad, metrics = run(batch, PolicyLossOptions(importance=importance))
        assert loss.isfinite() and grad.isfinite().all()
        assert values(metrics)["max_importance_weight"] == math.inf


@pytest.mark.parametrize("name", ["policy_logprobs", "proximal_logprobs", "rollout_logprobs", "reference_logprobs",
                                  "advantages"])
def test_a_nan_at_a_token_that_counts_is_seen(name):
    batch = example()
    b, t = batch.loss_mask.nonzero()[0].tolist()
    getattr(batch, name)[b, t] = math.nan
    assert run(batch)[0].isnan()


def test_only_the_policy_and_the_entropy_carry_a_gradient():
    batch = example()
    batch = PolicyBatch(**{field.name: tensor.clone().requires_grad_(tensor.is_floating_point())
                           for field in dataclasses.fields(batch) for tensor in [getattr(batch, field.name)]})
    policy_loss(batch, VARIANTS["entropy"])[0].backward()
    assert [field.name for field in dataclasses.fields(batch) if getattr(batch, field.name).grad is not None] == [
        "policy_logprobs", "entropy"]


def test_advantages_may_differ_from_token_to_token():
    batch = example()
    batch = dataclasses.replace(batch, advantages=torch.randn(6, 5, generator=torch.Generator().manual_seed(9),
                                                              dtype=torch.float64))
    assert run(batch)[0].item() == pytest.approx(plain(batch, CLIPPED), rel=1e-9)
    # at sequence level each token pulls with its own advantage, not with the row's mean
    batch = dataclasses.replace(batch, proximal_logprobs=None)
    options = PolicyLossOptions(ratio="sequence", importance="none")
    want = -batch.advantages * batch.loss_mask * batch.token_weights.unsqueeze(1)
    torch.testing.assert_close(run(batch, options)[1], want)


def test_float32_is_kept_and_half_precision_is_widened():
    for dtype, wide in ((torch.float32, torch.float32), (torch.bfloat16, torch.float32)):
        batch = of_tokens(by_hand(), lambda name, tensor, kind=dtype: (
            tensor if name == "loss_mask" else tensor.to(kind)))
        assert policy_loss(batch, PolicyLossOptions())[0].dtype == wide


def test_a_term_whose_input_is_missing_is_refused():
    with pytest.raises(ValueError, match=r"kl_coefficient must be 0 without a reference policy, got 0.1; set it to 0"):
        run(by_hand(), PolicyLossOptions(kl_coefficient=0.1))
    with pytest.raises(ValueError, match=r"entropy_coefficient must be 0 without entropy, got 0.1; set it to 0"):
        run(by_hand(), PolicyLossOptions(entropy_coefficient=0.1))


def test_the_options_are_those_of_the_algorithm():
    algorithm = AlgorithmConfig(dual_clip=3.0, clip_low=0.1, clip_high=0.4, importance="mask",
                                importance_level="sequence", importance_cap=4.0, importance_floor=0.25,
                                entropy_coefficient=0.01, kl_estimator="k2", kl_unbiased=True, ratio="sequence")
    options = policy_loss_options(algorithm, 0.3)
    for field in dataclasses.fields(options):
        if field.name != "kl_coefficient":
            assert getattr(options, field.name) == getattr(algorithm, field.name)
    assert options.kl_coefficient == 0.3
    assert policy_loss_options(AlgorithmConfig(kl_in="reward"), 0.3).kl_coefficient == 0.0
    assert policy_loss_options(AlgorithmConfig(), 0.02) == PolicyLossOptions(kl_coefficient=0.02)
