"""What every objective must hold, and how the tests of objectives take loss and gradient."""

import pytest
import torch

from rlaif.metrics import merge, values

# Micro-batches of six rows.
SPLITS = [[[0], [1], [2], [3], [4], [5]], [[5, 0], [3], [1, 2, 4]], [[4, 3, 2, 1, 0], [5]]]


def loss_and_gradient(objective, model, rows, frozen, batches):
    """Summed over micro-batches, as a learner does: loss, gradients by name, metrics."""
    module = objective.module(model)
    total = sum(objective.weights(rows))
    model.zero_grad()
    loss, parts = 0.0, []
    for batch in batches:
        chosen = {name: [column[row] for row in batch] for name, column in frozen.items()}
        part, metrics = objective.loss(module, rows.take(batch), total, chosen)
        part.backward()
        loss += part.item()
        parts.append(metrics)
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss, gradients, values(merge(parts))


def assert_split_changes_nothing(objective, model, rows, frozen, split):
    loss, gradients, metrics = loss_and_gradient(objective, model, rows, frozen, [list(range(6))])
    assert abs(loss) > 1e-2 and max(g.abs().max() for g in gradients.values()) > 1e-2
    split_loss, split_gradients, split_metrics = loss_and_gradient(objective, model, rows, frozen, split)
    assert split_loss == pytest.approx(loss, abs=1e-6)
    assert split_gradients.keys() == gradients.keys()
    for parameter, gradient in gradients.items():
        torch.testing.assert_close(split_gradients[parameter], gradient, atol=1e-6, rtol=0, msg=parameter)
    assert split_metrics == pytest.approx(metrics, abs=1e-5)
