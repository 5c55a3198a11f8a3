import dataclasses
import math

import pytest
import torch

from rlaif.metrics import merge, values
from rlaif.policy.value_loss import ValueBatch, value_loss


def example(seed=0):
    generator = torch.Generator().manual_seed(seed)
    old, returns, moved = torch.randn(3, 6, 5, generator=generator, dtype=torch.float64)
    mask = torch.rand(6, 5, generator=generator) < 0.7
    return ValueBatch(values=old + 0.5 * moved, old_values=old, returns=returns, loss_mask=mask,
                      token_weights=torch.rand(6, generator=generator, dtype=torch.float64))


def plain(batch, clip, table):
    total = 0.0
    for b, t in batch.loss_mask.nonzero().tolist():
        value, old, target = table[b][t], batch.old_values[b, t].item(), batch.returns[b, t].item()
        near = old + min(max(value - old, -clip), clip) if clip is not None else value
        total += batch.token_weights[b].item() * max((value - target) ** 2, (near - target) ** 2) / 2
    return total


def run(batch, clip):
    moved = batch.values.clone().requires_grad_()
    loss, metrics = value_loss(dataclasses.replace(batch, values=moved), value_clip=clip)
    loss.backward()
    return loss.detach(), moved.grad, metrics


def rows_of(batch, rows):
    return ValueBatch(**{field.name: getattr(batch, field.name)[rows] for field in dataclasses.fields(batch)})


def test_the_value_loss_by_hand():
    batch = ValueBatch(
        values=torch.tensor([[1.0, 1.0, 0.1, 0.0]]), old_values=torch.zeros(1, 4),
        returns=torch.tensor([[2.0, -1.0, 1.0, 9.0]]), loss_mask=torch.tensor([[True, True, True, False]]),
        token_weights=torch.tensor([1 / 3]))
    loss, grad, metrics = run(batch, 0.2)
    # moved by 1 towards 2: held at 0.2; moved by 1 away from -1: the whole error; moved by 0.1: within reach
    assert loss.item() == pytest.approx((1.8**2 + 2.0**2 + 0.9**2) / 2 / 3)
    assert grad.flatten().tolist() == pytest.approx([0.0, 2.0 / 3, -0.9 / 3, 0.0])
    assert values(metrics) == pytest.approx({"value_loss": loss.item(), "value_clip_share": 1 / 3,
                                             "value_error": (1 + 2 + 0.9) / 3})
    assert run(batch, None)[0].item() == pytest.approx((1 + 4 + 0.81) / 2 / 3)


@pytest.mark.parametrize("clip", [None, 0.1, 0.5])
def test_loss_and_gradient_agree_with_plain_python(clip):
    batch = example()
    loss, grad, _ = run(batch, clip)
    table = batch.values.tolist()
    assert loss.item() == pytest.approx(plain(batch, clip, table), rel=1e-9)
    for b in range(6):
        for t in range(5):
            low, high = ([row.copy() for row in table] for _ in range(2))
            low[b][t] -= 1e-6
            high[b][t] += 1e-6
            assert grad[b, t].item() == pytest.approx((plain(batch, clip, high) - plain(batch, clip, low)) / 2e-6,
                                                      abs=1e-7)


def test_neither_split_nor_order_nor_padding_nor_garbage_matters():
    batch = example()
    loss, grad, metrics = run(batch, 0.3)
    parts = [run(rows_of(batch, rows), 0.3) for rows in ([4, 0], [1], [5, 3, 2])]
    torch.testing.assert_close(sum(part[0] for part in parts), loss)
    torch.testing.assert_close(torch.cat([part[1] for part in parts]), grad[[4, 0, 1, 5, 3, 2]])
    assert values(merge(part[2] for part in parts)) == pytest.approx(values(metrics))
    for garbage in (math.nan, math.inf, 1e30):
        dirty = {name: torch.nn.functional.pad(torch.where(batch.loss_mask, getattr(batch, name), garbage), (1, 2),
                                               value=garbage) for name in ("values", "old_values", "returns")}
        padded = ValueBatch(**dirty, loss_mask=torch.nn.functional.pad(batch.loss_mask, (1, 2)),
                            token_weights=batch.token_weights)
        got = run(padded, 0.3)
        torch.testing.assert_close(got[0], loss)
        torch.testing.assert_close(got[1][:, 1:-2], grad)


def test_all_masked_is_zero_and_a_nan_that_counts_is_seen():
    batch = dataclasses.replace(example(), loss_mask=torch.zeros(6, 5, dtype=torch.bool))
    loss, grad, metrics = run(batch, 0.2)
    assert loss.item() == 0.0 and not grad.any() and values(metrics) == {"value_loss": 0.0}
    for name in ("values", "old_values", "returns"):
        batch = example()
        getattr(batch, name)[tuple(batch.loss_mask.nonzero()[0])] = math.nan
        assert run(batch, 0.2)[0].isnan()
