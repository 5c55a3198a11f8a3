import math

import pytest
import torch

from rlaif.learning.losses import slot_loss
from rlaif.learning.reward_losses import (
    bradley_terry_loss,
    consistency_loss,
    label_regions,
    mask_tokens,
    masked_lm_loss,
    ordinal_label_loss,
    ordinal_pair_loss,
)
from rlaif.metrics import merge, values

INF, NAN = math.inf, math.nan


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Bradley-Terry


def test_bradley_terry_by_hand():
    # sigmoid(log 3) = 3/4; the second row prefers the second side, the third is a tie
    first = torch.tensor([math.log(3.0), math.log(3.0), math.log(3.0)], requires_grad=True)
    loss, metrics = bradley_terry_loss(first, torch.zeros(3), torch.tensor([1.0, 0.0, 0.5]), num_global_rows=6)
    loss.backward()
    nll = [math.log(4 / 3), math.log(4), (math.log(4 / 3) + math.log(4)) / 2]
    assert loss.item() == pytest.approx(sum(nll) / 6)
    assert first.grad.tolist() == pytest.approx([-0.25 / 6, 0.75 / 6, 0.25 / 6])     # (sigmoid(d) - t) / 6
    assert values(metrics) == pytest.approx({"loss": sum(nll) / 6, "pair_nll": sum(nll) / 3, "pair_accuracy": 0.5,
                                             "pair_margin": 0.0})


@pytest.mark.parametrize("margin", [0.0, 0.7])
def test_bradley_terry_agrees_with_float64(margin):
    first, second = 3 * drawn(50), 3 * drawn(50, seed=1)
    targets = torch.rand(50, generator=torch.Generator().manual_seed(2))
    loss, _ = bradley_terry_loss(first, second, targets, num_global_rows=50, margin=margin)
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    want = -sum(t * math.log(sigmoid(a - b - margin)) + (1 - t) * math.log(sigmoid(b - a - margin))
                for a, b, t in zip(first.tolist(), second.tolist(), targets.tolist(), strict=True)) / 50
    assert loss.item() == pytest.approx(want, rel=1e-5)


def test_bradley_terry_sees_differences_only_and_swaps():
    first, second, targets = drawn(9), drawn(9, seed=1), torch.tensor([1.0, 0.0, 0.5] * 3)
    loss, metrics = bradley_terry_loss(first, second, targets, num_global_rows=9)
    torch.testing.assert_close(bradley_terry_loss(first + 5, second + 5, targets, num_global_rows=9)[0], loss)
    swapped, swapped_metrics = bradley_terry_loss(second, first, 1 - targets, num_global_rows=9)
    torch.testing.assert_close(swapped, loss)
    assert values(swapped_metrics) == pytest.approx(values(metrics))


def test_equal_scores_count_half_and_ties_count_in_neither_accuracy_nor_margin():
    first, second = torch.tensor([1.0, 2.0, 5.0, 3.0]), torch.tensor([1.0, 0.0, 0.0, 4.0])
    metrics = values(bradley_terry_loss(first, second, torch.tensor([1.0, 1.0, 0.5, 1.0]), num_global_rows=4)[1])
    assert metrics["pair_accuracy"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert metrics["pair_margin"] == pytest.approx((0 + 2 - 1) / 3)


def test_bradley_terry_is_finite_at_any_distance():
    first = torch.tensor([1e4, -1e4], requires_grad=True)
    loss, _ = bradley_terry_loss(first, torch.zeros(2), torch.ones(2), num_global_rows=1)
    loss.backward()
    assert loss.item() == pytest.approx(1e4) and first.grad.tolist() == [0.0, -1.0]


def test_a_margin_may_differ_from_row_to_row():
    scores, targets = torch.zeros(2), torch.tensor([1.0, 0.0])
    loss, _ = bradley_terry_loss(scores, scores, targets, num_global_rows=1, margin=torch.tensor([0.0, math.log(3)]))
    assert loss.item() == pytest.approx(math.log(2) + math.log(4))
    with pytest.raises(ValueError, match=r"margin must be >= 0, got -1\.0"):
        bradley_terry_loss(scores, scores, targets, num_global_rows=1, margin=-1.0)


# Ordinal pairs


def plain_ordinal(first, second, targets, regions_1, regions_2):
    """Every pair of ratings once more, in plain Python."""
    total = 0.0
    for a, b, t, (low_1, high_1), (low_2, high_2) in zip(first, second, targets, regions_1, regions_2, strict=True):
        p, q = ([math.exp(x) / sum(map(math.exp, z)) for x in z] for z in (a, b))
        masses = [0.0, 0.0]
        for i in range(low_1, high_1 + 1):
            for j in range(low_2, high_2 + 1):
                masses[0] += p[i] * q[j] * (1.0 if i > j else 0.5 if i == j else 0.0)
                masses[1] += p[i] * q[j] * (1.0 if i < j else 0.5 if i == j else 0.0)
        total -= sum(w * math.log(m) for w, m in zip((t, 1 - t), masses, strict=True) if w)
    return total


def test_ordinal_pair_by_hand():
    p, q = torch.tensor([[0.1, 0.2, 0.7]]), torch.tensor([[0.5, 0.3, 0.2]])
    # first above second: 0.2 * 0.5 + 0.7 * 0.8 = 0.66; equal: 0.05 + 0.06 + 0.14 = 0.25
    above, below = 0.66 + 0.125, 0.09 + 0.125
    loss = lambda t, *regions: ordinal_pair_loss(  # noqa: E731
        p.log(), q.log(), torch.tensor([t]), *regions, num_global_rows=1)[0].item()
    assert loss(1.0) == pytest.approx(-math.log(above))
    assert loss(0.0) == pytest.approx(-math.log(below))
    assert loss(0.5) == pytest.approx(-(math.log(above) + math.log(below)) / 2)
    # ratings 1..2 against 0..1: 0.2 * 0.5 + 0.7 * 0.8 and half of 0.2 * 0.3
    assert loss(1.0, torch.tensor([[1, 2]]), torch.tensor([[0, 1]])) == pytest.approx(-math.log(0.1 + 0.56 + 0.03))
    metrics = values(ordinal_pair_loss(p.log(), q.log(), torch.ones(1), num_global_rows=1)[1])
    assert metrics == pytest.approx({"loss": -math.log(above), "pair_nll": -math.log(above), "pair_accuracy": 1.0,
                                     "pair_margin": 1.6 - 0.7})


def test_ordinal_pair_agrees_with_plain_python():
    first, second = 2 * drawn(40, 5), 2 * drawn(40, 5, seed=1)
    targets = torch.tensor([1.0, 0.0, 0.5, 0.8] * 10)
    regions_1 = torch.tensor([[1, 4], [0, 3], [0, 4], [2, 3]] * 10)
    regions_2 = torch.tensor([[0, 3], [1, 4], [0, 4], [1, 3]] * 10)
    loss, _ = ordinal_pair_loss(first, second, targets, regions_1, regions_2, num_global_rows=40)
    want = plain_ordinal(first.tolist(), second.tolist(), targets.tolist(), regions_1.tolist(), regions_2.tolist())
    assert loss.item() == pytest.approx(want / 40, rel=1e-5)


def test_without_regions_the_two_sides_are_one_event_and_with_them_they_are_the_mass_inside():
    first, second = drawn(7, 4), drawn(7, 4, seed=1)
    region = torch.tensor([[1, 3]] * 7)

    def mass(target, *regions):
        return sum(math.exp(-ordinal_pair_loss(first[n:n + 1], second[n:n + 1], torch.tensor([target]),
                                               *(part[n:n + 1] for part in regions), num_global_rows=1)[0].item())
                   for n in range(7))

    assert mass(1.0) + mass(0.0) == pytest.approx(7)
    inside = (first.softmax(1)[:, 1:].sum(1) * second.softmax(1)[:, 1:].sum(1)).sum().item()
    assert mass(1.0, region, region) + mass(0.0, region, region) == pytest.approx(inside)


def test_ordinal_pair_does_not_change_with_swapped_sides_shifted_logits_or_absent_classes():
    first, second, targets = drawn(6, 3), drawn(6, 3, seed=1), torch.tensor([1.0, 0.0, 0.5] * 2)
    loss, metrics = ordinal_pair_loss(first, second, targets, num_global_rows=6)
    swapped, swapped_metrics = ordinal_pair_loss(second, first, 1 - targets, num_global_rows=6)
    torch.testing.assert_close(swapped, loss)
    assert values(swapped_metrics) == pytest.approx(values(metrics))
    torch.testing.assert_close(ordinal_pair_loss(first + 3, second - 2, targets, num_global_rows=6)[0], loss)
    padding = torch.full((6, 2), -INF)
    wide, _ = ordinal_pair_loss(torch.cat([first, padding], 1), torch.cat([second, padding], 1), targets,
                                num_global_rows=6)
    torch.testing.assert_close(wide, loss)


def test_two_classes_and_a_yes_region_against_a_no_region_are_two_cross_entropies():
    first, second = drawn(5, 2), drawn(5, 2, seed=1)
    yes, no = torch.tensor([[1, 1]] * 5), torch.tensor([[0, 0]] * 5)
    loss, _ = ordinal_pair_loss(first, second, torch.ones(5), yes, no, num_global_rows=5)
    want = sum(slot_loss(logits[:, None], torch.full((5, 1), label), num_global_rows=5)[0]
               for logits, label in ((first, 1), (second, 0)))
    torch.testing.assert_close(loss, want)


def test_the_gradient_of_a_rating_is_how_often_the_other_side_is_below():
    p, q = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([0.6, 0.3, 0.1])
    logits = p.log()[None].requires_grad_()
    loss, _ = ordinal_pair_loss(logits, q.log()[None], torch.ones(1), num_global_rows=1)
    loss.backward()
    below = torch.tensor([0.3, 0.75, 0.95])             # P(j < k) + P(j = k) / 2
    mass = (p * below).sum()
    torch.testing.assert_close(logits.grad[0], -p * (below - mass) / mass)


def test_ordinal_gradients_are_finite_with_absent_classes_and_one_sided_regions():
    logits = torch.tensor([[0.0, 1.0, 2.0, -INF]] * 2, requires_grad=True)
    regions = torch.tensor([[2, 3], [2, 3]]), torch.tensor([[0, 1], [0, 1]])
    loss, _ = ordinal_pair_loss(logits, torch.zeros(2, 4), torch.ones(2), *regions, num_global_rows=2)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all() and logits.grad[:, 3].tolist() == [0.0, 0.0]


def test_regions_that_contradict_the_target_are_refused():
    logits, low, high = torch.zeros(2, 3), torch.tensor([[0, 2], [0, 0]]), torch.tensor([[0, 2], [1, 2]])
    with pytest.raises(ValueError, match="regions must leave ratings that agree with the target, got none in row 1"):
        ordinal_pair_loss(logits, logits, torch.ones(2), low, high, num_global_rows=2)
    with pytest.raises(ValueError, match=r"first_regions must be 0 <= lowest <= highest < 3, got \[1, 3\] in row 0"):
        ordinal_pair_loss(logits, logits, torch.ones(2), torch.tensor([[1, 3], [2, 1]]), num_global_rows=2)


# What the pair losses share


def pair_loss(kind, rows=slice(None), garbage=None, num_global_rows=6):
    """Loss, gradients, metrics of six rows, the last two without a target."""
    width = () if kind is bradley_terry_loss else (4,)
    sides = [drawn(6, *width, seed=seed) for seed in (3, 4)]
    targets = torch.tensor([1.0, 0.0, 0.5, 1.0, -1.0, -1.0])
    if garbage is not None:
        for side in sides:
            side[4:] = garbage
    sides = [side[rows].requires_grad_() for side in sides]
    loss, metrics = kind(*sides, targets[rows], num_global_rows=num_global_rows)
    loss.backward()
    return loss.detach(), [side.grad for side in sides], metrics


@pytest.mark.parametrize("kind", [bradley_terry_loss, ordinal_pair_loss])
def test_pair_losses_do_not_depend_on_the_split_into_micro_batches(kind):
    loss, grads, metrics = pair_loss(kind)
    parts = [pair_loss(kind, rows) for rows in ([0], [1, 2, 3, 4], [5])]
    torch.testing.assert_close(sum(part[0] for part in parts), loss)
    for side in range(2):
        torch.testing.assert_close(torch.cat([part[1][side] for part in parts]), grads[side])
    assert values(merge(part[2] for part in parts)) == pytest.approx(values(metrics))


@pytest.mark.parametrize("kind", [bradley_terry_loss, ordinal_pair_loss])
@pytest.mark.parametrize("garbage", [NAN, INF, -INF, 1e30])
def test_garbage_in_rows_without_a_target_reaches_nothing(kind, garbage):
    loss, grads, metrics = pair_loss(kind)
    dirty, dirty_grads, dirty_metrics = pair_loss(kind, garbage=garbage)
    assert torch.equal(dirty, loss) and dirty_metrics == metrics
    for grad, dirty_grad in zip(grads, dirty_grads, strict=True):
        assert torch.equal(dirty_grad, grad) and not grad[4:].any()


@pytest.mark.parametrize("kind", [bradley_terry_loss, ordinal_pair_loss])
def test_a_batch_without_any_target_costs_nothing(kind):
    loss, grads, metrics = pair_loss(kind, rows=slice(4, 6), garbage=NAN)
    assert loss.item() == 0.0 and not any(grad.any() for grad in grads) and values(metrics) == {"loss": 0.0}


@pytest.mark.parametrize("kind", [bradley_terry_loss, ordinal_pair_loss])
def test_a_nan_in_a_row_that_counts_is_seen(kind):
    side = torch.full((1,) if kind is bradley_terry_loss else (1, 3), NAN)
    loss, metrics = kind(side, torch.zeros_like(side), torch.ones(1), num_global_rows=1)
    assert loss.isnan() and math.isnan(values(metrics)["pair_margin"])


@pytest.mark.parametrize("target", [-0.5, 1.5, NAN])
def test_targets_out_of_range_are_refused(target):
    with pytest.raises(ValueError, match=f"targets must be in 0..1, or -1 for none, got {target}"):
        bradley_terry_loss(torch.zeros(1), torch.zeros(1), torch.tensor([target]), num_global_rows=1)


# Rated rows


def test_ordinal_label_by_hand():
    logits = torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2], [NAN, NAN, NAN]]).log().requires_grad_()
    labels = torch.tensor([1, 0, -1])
    loss, metrics = ordinal_label_loss(logits, labels, num_global_rows=3)
    assert loss.item() == pytest.approx(-(math.log(0.2) + math.log(0.5)) / 3)
    assert values(metrics) == pytest.approx({"loss": loss.item(), "rating_nll": 1.5 * loss.item(),
                                             "rating_accuracy": 0.5, "rating_error": (0.6 + 0.7) / 2})
    loss, _ = ordinal_label_loss(logits, labels, torch.tensor([[1, 2], [0, 2], [-9, 99]]), num_global_rows=3)
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(0.9) / 3, rel=1e-5)       # of float32, whose digits differ by machine
    # softmax minus softmax within the region, over 3; a region of everything teaches nothing
    want = [[0.1, 0.2 - 2 / 9, 0.7 - 7 / 9], [0.0] * 3, [0.0] * 3]
    torch.testing.assert_close(logits.grad, torch.tensor(want) / 3)


def test_a_region_of_one_class_is_cross_entropy():
    logits, labels = drawn(8, 5), torch.tensor([0, 1, 2, 3, 4, -1, 0, 2])
    logits[1, 4] = -INF
    for regions in (None, label_regions(labels, 0, 5)):
        loss, _ = ordinal_label_loss(logits, labels, regions, num_global_rows=8)
        torch.testing.assert_close(loss, slot_loss(logits[:, None], labels[:, None], num_global_rows=8)[0])


def test_a_wider_region_costs_less_and_all_classes_cost_nothing():
    logits, labels = drawn(20, 5), torch.arange(20) % 5
    losses = [ordinal_label_loss(logits, labels, label_regions(labels, radius, 5), num_global_rows=20)[0].item()
              for radius in range(5)]
    assert losses == sorted(losses, reverse=True) and losses[0] > 1 and losses[4] == pytest.approx(0, abs=1e-6)


def test_label_regions_end_where_the_scale_ends():
    labels = torch.tensor([0, 1, 4, -1])
    assert label_regions(labels, 1, 5).tolist() == [[0, 1], [0, 2], [3, 4], [0, 4]]
    assert label_regions(labels, 0, 5).tolist() == [[0, 0], [1, 1], [4, 4], [0, 4]]
    with pytest.raises(ValueError, match="radius must be >= 0, got -1"):
        label_regions(labels, -1, 5)
    with pytest.raises(ValueError, match=r"labels must be in -1\.\.3, got -1\.\.4"):
        label_regions(labels, 1, 4)


def test_ordinal_label_splits_and_survives_rows_without_labels():
    logits, labels = drawn(5, 3), torch.tensor([0, 2, -1, 1, 0])
    logits[2] = NAN
    regions = label_regions(labels, 1, 3)
    loss, metrics = ordinal_label_loss(logits, labels, regions, num_global_rows=5)
    parts = [ordinal_label_loss(logits[rows], labels[rows], regions[rows], num_global_rows=5)
             for rows in ([0, 1], [2], [3, 4])]
    torch.testing.assert_close(sum(part[0] for part in parts), loss)
    assert values(merge(part[1] for part in parts)) == pytest.approx(values(metrics))
    assert parts[1][0].item() == 0.0 and values(parts[1][1]) == {"loss": 0.0}


# Masked tokens


def test_masked_lm_loss_by_hand_and_over_micro_batches():
    logits = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [NAN] * 3]).log().requires_grad_()
    labels = torch.tensor([0, 2, -1])
    loss, metrics = masked_lm_loss(logits, labels, num_global_tokens=4)
    loss.backward()
    assert loss.item() == pytest.approx((math.log(2) + math.log(10)) / 4)
    assert values(metrics) == pytest.approx({"loss": loss.item(), "masked_lm_nll": 2 * loss.item(),
                                             "masked_lm_accuracy": 0.5})
    torch.testing.assert_close(logits.grad, torch.tensor([[-0.5, 0.25, 0.25], [0.1, 0.8, -0.9], [0.0] * 3]) / 4)
    parts = [masked_lm_loss(logits[n:n + 1], labels[n:n + 1], num_global_tokens=4)[0] for n in range(3)]
    torch.testing.assert_close(sum(parts), loss)
    assert masked_lm_loss(logits[:0], labels[:0], num_global_tokens=1)[0].item() == 0.0


VOCAB, SPECIAL, MASK = 50, (0, 1, 2, 3), 3


def hide(input_ids, protected_mask, share=0.15, seed=0):
    return mask_tokens(input_ids, protected_mask, share=share, generator=torch.Generator().manual_seed(seed),
                       mask_id=MASK, vocab_size=VOCAB, special_ids=SPECIAL)


def test_tokens_are_hidden_in_the_shares_of_bert():
    ids = torch.randint(4, VOCAB, (400, 100), generator=torch.Generator().manual_seed(1))
    masked, labels = hide(ids, torch.zeros_like(ids, dtype=torch.bool))
    chosen = labels >= 0
    assert torch.equal(labels[chosen], ids[chosen]) and torch.equal(masked[~chosen], ids[~chosen])
    assert chosen.float().mean().item() == pytest.approx(0.15, abs=0.01)
    became, was = masked[chosen], ids[chosen]
    assert (became == MASK).float().mean().item() == pytest.approx(0.8, abs=0.02)
    # 0.1 on purpose, and one in 46 of the random ones
    assert (became == was).float().mean().item() == pytest.approx(0.1 + 0.1 / 46, abs=0.015)
    others = became[(became != MASK) & (became != was)]
    assert others.min() >= 4 and len(others.unique()) == VOCAB - 4


def test_protected_and_special_tokens_are_never_touched():
    ids = torch.randint(0, VOCAB, (50, 40), generator=torch.Generator().manual_seed(1))
    protected = torch.rand(50, 40, generator=torch.Generator().manual_seed(2)) < 0.5
    fixed = protected | (ids < 4)
    masked, labels = hide(ids, protected, share=1.0)
    assert torch.equal(masked[fixed], ids[fixed]) and (labels[fixed] == -1).all()
    assert torch.equal(labels[~fixed], ids[~fixed])
    assert not torch.isin(masked[~fixed], torch.tensor([0, 1, 2])).any()
    before = ids.clone()
    assert torch.equal(hide(ids, torch.ones_like(protected), share=1.0)[0], before) and torch.equal(ids, before)


def test_protected_padding_changes_nothing_and_a_seed_repeats():
    ids = torch.randint(4, VOCAB, (6, 10), generator=torch.Generator().manual_seed(1))
    protected = torch.zeros_like(ids, dtype=torch.bool)
    masked, labels = hide(ids, protected, share=0.5)
    pad = torch.nn.functional.pad
    wide, wide_labels = hide(pad(ids, (0, 5)), pad(protected, (0, 5), value=True), share=0.5)
    assert torch.equal(wide[:, :10], masked) and torch.equal(wide_labels[:, :10], labels)
    packed, packed_labels = hide(ids.flatten(), protected.flatten(), share=0.5)
    assert torch.equal(packed, masked.flatten()) and torch.equal(packed_labels, labels.flatten())
    assert torch.equal(hide(ids, protected, share=0.5)[0], masked)
    assert not torch.equal(hide(ids, protected, share=0.5, seed=1)[0], masked)


def test_hiding_nothing_is_the_identity_and_bad_arguments_are_refused():
    ids = torch.tensor([[5, 6, 7]])
    protected = torch.zeros_like(ids, dtype=torch.bool)
    masked, labels = hide(ids, protected, share=0.0)
    assert torch.equal(masked, ids) and (labels == -1).all()
    with pytest.raises(ValueError, match=r"share must be in 0\.\.1, got 1\.5"):
        hide(ids, protected, share=1.5)
    with pytest.raises(ValueError, match=r"special_ids must hold mask_id 3, got \[0, 1\]"):
        mask_tokens(ids, protected, share=0.1, generator=torch.Generator(), mask_id=3, vocab_size=9, special_ids=[1, 0])


def test_consistency_is_the_mean_of_both_divergences() -> None:
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    want = sum(float((a * (a / b).log()).sum()) for a, b in ((p, q), (q, p))) / 2
    loss, metrics = consistency_loss((p.log() + 3).view(1, 1, 3), q.log().view(1, 1, 3), num_global_rows=4)
    assert float(loss) == pytest.approx(want / 4, rel=1e-6) and metrics["consistency"].value == pytest.approx(want)


def test_consistency_is_zero_for_equal_passes_and_leaves_absent_classes_out() -> None:
    logits = torch.tensor([[[0.3, -1.0, -INF], [2.0, 0.0, 1.0]]], requires_grad=True)
    other = torch.tensor([[[0.5, 0.2, -INF], [2.0, 0.0, 1.0]]])
    assert float(consistency_loss(logits, logits.detach(), num_global_rows=1)[0].detach()) == 0
    loss, _ = consistency_loss(logits, other, num_global_rows=1)
    loss.backward()
    assert loss > 0 and torch.isfinite(logits.grad).all() and (logits.grad[0, 1] == 0).all()
