import math

import pytest
import torch

from rlaif.learning.losses import slot_loss, supervised_loss
from rlaif.metrics import merge, values


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
