import dataclasses
import math

import pytest
import torch

from rlaif.metrics import merge, values
from rlaif.policy.preference_loss import PreferenceBatch, PreferenceOptions, preference_loss


def example(rows=8):
    generator = torch.Generator().manual_seed(0)
    return PreferenceBatch(*(-20 * torch.rand(4, rows, generator=generator, dtype=torch.float64)))


def plain(batch, options, num_pairs):
    total = 0.0
    for a, b, c, d in zip(*(getattr(batch, field.name).tolist() for field in dataclasses.fields(batch)), strict=True):
        p = 1 / (1 + math.exp(-options.beta * ((a - c) - (b - d))))
        total -= (1 - options.label_smoothing) * math.log(p) + options.label_smoothing * math.log(1 - p)
    return total / num_pairs


def run(batch, options, num_pairs):
    leaves = [batch.policy_chosen.clone().requires_grad_(), batch.policy_rejected.clone().requires_grad_()]
    loss, metrics = preference_loss(dataclasses.replace(batch, policy_chosen=leaves[0], policy_rejected=leaves[1]),
                                    options, num_global_pairs=num_pairs)
    loss.backward()
    return loss.detach(), torch.stack([leaf.grad for leaf in leaves]), metrics


def test_the_preference_loss_by_hand():
    batch = PreferenceBatch(torch.tensor([-4.0, -5.0]), torch.tensor([-8.0, -5.0]), torch.tensor([-5.0, -5.0]),
                            torch.tensor([-7.0, -5.0]))
    loss, grad, metrics = run(batch, PreferenceOptions(beta=0.5), 2)
    # margins 0.5 * ((-4 + 5) - (-8 + 7)) = 1 and 0
    assert loss.item() == pytest.approx((math.log(1 + math.exp(-1)) + math.log(2)) / 2)
    wrong = 1 / (1 + math.e)        # probability that the first label is wrong
    assert grad[0].tolist() == pytest.approx([-0.5 * wrong / 2, -0.5 * 0.5 / 2])
    assert grad[1].tolist() == pytest.approx([0.5 * wrong / 2, 0.5 * 0.5 / 2])
    assert values(metrics) == pytest.approx({
        "loss": loss.item(), "preference_accuracy": 0.75, "implicit_reward_margin": 0.5, "implicit_reward_chosen": 0.25,
        "implicit_reward_rejected": -0.25})
    smoothed, _, _ = run(batch, PreferenceOptions(beta=0.5, label_smoothing=0.1), 2)
    # -0.9 log sigmoid(1) - 0.1 log sigmoid(-1) = log(1 + 1/e) + 0.1
    assert smoothed.item() == pytest.approx((math.log(1 + math.exp(-1)) + 0.1 + math.log(2)) / 2)


@pytest.mark.parametrize("options", [PreferenceOptions(), PreferenceOptions(0.4, 0.3), PreferenceOptions(0.02)])
def test_it_agrees_with_plain_python_and_splits(options):
    batch = example()
    loss, grad, metrics = run(batch, options, 8)
    assert loss.item() == pytest.approx(plain(batch, options, 8), rel=1e-9)
    order = [5, 0, 7, 1, 2, 6, 3, 4]
    parts = []
    for rows in (order[:3], order[3:4], order[4:]):
        part = PreferenceBatch(*(getattr(batch, field.name)[rows] for field in dataclasses.fields(batch)))
        parts.append(run(part, options, 8))
    torch.testing.assert_close(sum(part[0] for part in parts), loss)
    torch.testing.assert_close(torch.cat([part[1] for part in parts], dim=1), grad[:, order])
    assert values(merge(part[2] for part in parts)) == pytest.approx(values(metrics))


def test_only_differences_from_the_reference_matter():
    batch = example()
    shifted = PreferenceBatch(batch.policy_chosen - 3, batch.policy_rejected + 2, batch.reference_chosen - 3,
                              batch.reference_rejected + 2)
    torch.testing.assert_close(run(shifted, PreferenceOptions(), 8)[0], run(batch, PreferenceOptions(), 8)[0])


def test_edges():
    empty = PreferenceBatch(*torch.empty(4, 0))
    loss, _, metrics = run(empty, PreferenceOptions(), 1)
    assert loss.item() == 0.0 and values(metrics) == {"loss": 0.0}
    far = PreferenceBatch(*torch.tensor([[-1e4], [0.0], [0.0], [0.0]]))      # sigmoid underflows, its log does not
    loss, grad, _ = run(far, PreferenceOptions(1.0), 1)
    assert loss.item() == 1e4 and grad.flatten().tolist() == [-1.0, 1.0]
    broken = dataclasses.replace(example(), policy_chosen=torch.full((8,), math.nan))
    loss, _, metrics = run(broken, PreferenceOptions(), 8)
    assert loss.isnan() and math.isnan(values(metrics)["preference_accuracy"])


@pytest.mark.parametrize(("field", "value"), [("beta", 0.0), ("beta", math.inf), ("beta", math.nan),
                                              ("label_smoothing", 0.5), ("label_smoothing", -0.1)])
def test_options_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field} must be .*, got {value}"):
        PreferenceOptions(**{field: value})
