"""The losses of reward training: preference pairs, ordinal ratings, masked tokens. Each returns `(loss, metrics)`.

As in `rlaif.learning.losses` every normaliser is an argument and counts the *global* batch, so that losses and
gradients of micro-batches and ranks are added, never averaged. Cross-entropy on labelled slots is there, `slot_loss`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from rlaif.metrics import Mean, Metric, Sum

__all__ = ["bradley_terry_loss", "consistency_loss", "label_regions", "mask_tokens", "masked_lm_loss",
           "ordinal_label_loss", "ordinal_pair_loss"]


def bradley_terry_loss(first_scores: Tensor, second_scores: Tensor, targets: Tensor, *, num_global_rows: int,
                       margin: Tensor | float = 0.0) -> tuple[Tensor, dict[str, Metric]]:
    """Minus the log-likelihood of the preferences under Bradley-Terry (scalar float32, nats) and its metrics.

        d    = first - second
        row  = -t log sigmoid(d - margin) - (1 - t) log sigmoid(-d - margin)
        loss = sum over rows with a target of row / num_global_rows

    first_scores, second_scores: `[N]`, reward; both carry the gradient. targets: `[N]` float, t in 0..1: 1 where the
    first side is preferred, 0 where the second is, 0.5 for a tie; -1 for a row without a preference, in which anything
    may stand, NaN included. num_global_rows: rows of all micro-batches and ranks of this optimizer step, >= 1. margin:
    reward, >= 0, a number or `[N]`: how far apart the sides are asked to be. Metrics: `pair_nll` over rows with a
    target; `pair_accuracy` (equal scores count half) and `pair_margin` (preferred minus other) over those that are no
    tie.

    Source: Bradley and Terry 1952, Rank Analysis of Incomplete Block Designs; as the loss of a reward model: Ouyang et
    al. 2022 (arXiv 2203.02155), eq. 1; with a margin: Touvron et al. 2023 (arXiv 2307.09288), eq. 2. Departs from the
    first of these in that targets may be soft.
    """
    assert first_scores.ndim == 1 and second_scores.shape == first_scores.shape, (
        first_scores.shape, second_scores.shape)
    mask = _check_targets(targets, first_scores.shape, num_global_rows)
    gap = torch.as_tensor(margin, dtype=torch.float32, device=first_scores.device)
    if not bool((gap >= 0).all()):
        raise ValueError(f"margin must be >= 0, got {float(gap.min())}; the target says which side is preferred")
    # Rows without a target are replaced before anything else, so that nothing in them reaches the gradient.
    difference = torch.where(mask, first_scores.float(), 0.0) - torch.where(mask, second_scores.float(), 0.0)
    target = torch.where(mask, targets.float(), 0.0)
    nll = target * functional.softplus(gap - difference) + (1 - target) * functional.softplus(gap + difference)
    nll = torch.where(mask, nll, 0.0)
    loss = nll.sum() / num_global_rows
    return loss, {"loss": Sum(float(loss.detach())), **_means(mask, {"pair_nll": nll}),
                  **_preference_metrics(mask, difference, target)}


def ordinal_pair_loss(first_logits: Tensor, second_logits: Tensor, targets: Tensor,
                      first_regions: Tensor | None = None, second_regions: Tensor | None = None, *,
                      num_global_rows: int) -> tuple[Tensor, dict[str, Metric]]:
    """Minus the log of the probability that independent ratings agree with the preferences (scalar float32, nats).

        p, q  = softmax(first_logits), softmax(second_logits)
        M_1   = sum over i in R_1, j in R_2 of p_i q_j ([i > j] + [i = j] / 2)
        M_2   = sum over i in R_1, j in R_2 of p_i q_j ([i < j] + [i = j] / 2)
        loss  = -sum over rows with a target of (t log M_1 + (1 - t) log M_2) / num_global_rows

    first_logits, second_logits: `[N, K]`, nats up to a constant, classes in ascending order of quality; -inf where a
    class is absent; both carry the gradient. targets: `[N]` float, t in 0..1 as in `bradley_terry_loss`, -1 for a row
    without a preference, in which anything may stand, NaN included. first_regions, second_regions: `[N, 2]` int64, R_1
    and R_2, lowest and highest class that the side's known quality allows, both included; None for all classes. With
    all classes M_1 + M_2 = 1; with regions M_1 + M_2 is the probability that both ratings lie in theirs, so that the
    mass is drawn into the regions (region flooding). num_global_rows: as in `bradley_terry_loss`. Metrics: `pair_nll`
    over rows with a target; `pair_accuracy` (half at equality) and `pair_margin` (classes), both of the expected
    class, over those that are no tie.

    Raises ValueError where a target and the regions leave no pair of ratings.

    Source: Chen et al. 2026 (arXiv 2602.12660), Learning Ordinal Probabilistic Reward from Preferences: the
    preference as a sum over the joint matrix of two rating distributions, and quality levels as sub-regions of the
    ratings. Departs from it in that equal ratings count half for each side, so that the two sides are probabilities of
    one event and ties can be learnt; in that regions are any interval a row; and in that every pair of ratings inside
    the regions weighs the same, with no preference for the middle of a region.
    """
    assert first_logits.ndim == 2 and second_logits.shape == first_logits.shape, (
        first_logits.shape, second_logits.shape)
    num_classes = first_logits.shape[1]
    mask = _check_targets(targets, first_logits.shape[:1], num_global_rows)
    inside_first = _inside(first_regions, mask, num_classes, "first_regions")
    inside_second = _inside(second_regions, mask, num_classes, "second_regions")
    first, second = (torch.log_softmax(torch.where(mask.unsqueeze(1), logits.float(), 0.0), dim=-1)
                     for logits in (first_logits, second_logits))
    target = torch.where(mask, targets.float(), 0.0)

    joint = first.unsqueeze(2) + second.unsqueeze(1)                                       # [N, K, K]
    inside = inside_first.unsqueeze(2) & inside_second.unsqueeze(1)
    share = torch.ones(num_classes, num_classes, device=joint.device).tril(-1)
    share.fill_diagonal_(0.5)
    nll = torch.zeros_like(target)
    for weight, weights in ((target, share), (1 - target, share.T)):
        is_asked = mask & (weight > 0)
        allowed = inside & (weights > 0)
        _refuse_impossible(is_asked & ~allowed.any(dim=(1, 2)))
        # A side that no weight asks for is replaced by zeros: its log may be -inf, and 0 * -inf is NaN.
        allowed = torch.where(is_asked[:, None, None], allowed, True)
        terms = torch.where(is_asked[:, None, None], joint + weights.log(), 0.0).masked_fill(~allowed, -math.inf)
        nll = nll - torch.where(is_asked, weight * torch.logsumexp(terms, dim=(1, 2)), 0.0)
    loss = nll.sum() / num_global_rows
    difference = _expected_class(first) - _expected_class(second)
    return loss, {"loss": Sum(float(loss.detach())), **_means(mask, {"pair_nll": nll}),
                  **_preference_metrics(mask, difference, target)}


def ordinal_label_loss(logits: Tensor, labels: Tensor, regions: Tensor | None = None, *, num_global_rows: int
                       ) -> tuple[Tensor, dict[str, Metric]]:
    """Minus the log of the probability that the rating lies in the region around its label (scalar float32, nats).

        loss = -sum over labelled n of log sum over k in R_n of softmax(logits[n])[k] / num_global_rows

    logits: `[N, K]`, nats up to a constant, classes in ascending order; -inf where a class is absent; carries the
    gradient. labels: `[N]` int64 in 0..K-1, -1 where there is none; there anything may stand, NaN included. regions:
    `[N, 2]` int64, R, lowest and highest class, both included (`label_regions` makes them from a radius); None for the
    label alone, which is cross-entropy. num_global_rows: rows of all micro-batches and ranks of this optimizer step,
    >= 1. Metrics over labelled rows: `rating_nll`; `rating_accuracy` of the most probable class; `rating_error`,
    classes between the expected class and the label.

    Source: the region flooding of Chen et al. 2026 (arXiv 2602.12660). Departs from it in that a single rated response
    is enough, and in that all classes of a region weigh the same.
    """
    assert logits.ndim == 2, logits.shape
    assert labels.shape == logits.shape[:1] and labels.dtype == torch.int64, (labels.shape, labels.dtype)
    assert num_global_rows >= 1, f"num_global_rows must be >= 1, got {num_global_rows}"
    num_classes = logits.shape[1]
    _check_labels(labels, num_classes)
    mask = labels >= 0
    if regions is None:
        regions = label_regions(labels, 0, num_classes)
    inside = _inside(regions, mask, num_classes, "regions")
    logprobs = torch.log_softmax(torch.where(mask.unsqueeze(1), logits.float(), 0.0), dim=-1)
    nll = torch.where(mask, -torch.logsumexp(logprobs.masked_fill(~inside, -math.inf), dim=-1), 0.0)
    loss = nll.sum() / num_global_rows
    means = {"rating_nll": nll, "rating_accuracy": logprobs.detach().argmax(-1) == labels,
             "rating_error": (_expected_class(logprobs) - labels).abs()}
    return loss, {"loss": Sum(float(loss.detach())), **_means(mask, means)}


def label_regions(labels: Tensor, radius: int, num_classes: int) -> Tensor:
    """Regions `[N, 2]` int64 of the classes at most `radius` from the label, cut off at the ends of the scale.

    labels: `[N]` int64 in 0..num_classes-1; -1 (no label) gives all classes. radius: classes, >= 0.
    """
    if radius < 0:
        raise ValueError(f"radius must be >= 0, got {radius}; 0 is the label alone")
    _check_labels(labels, num_classes)
    low = torch.where(labels < 0, 0, (labels - radius).clamp(min=0))
    high = torch.where(labels < 0, num_classes - 1, (labels + radius).clamp(max=num_classes - 1))
    return torch.stack([low, high], dim=-1)


def masked_lm_loss(logits: Tensor, labels: Tensor, *, num_global_tokens: int) -> tuple[Tensor, dict[str, Metric]]:
    """The cross-entropy of the hidden tokens (scalar float32, nats a token) and its metrics.

        loss = -sum over labelled m of log softmax(logits[m])[labels[m]] / num_global_tokens

    logits: `[M, V]`, nats up to a constant, at positions that the caller has gathered; carries the gradient. labels:
    `[M]` int64 token ids in 0..V-1, -1 where nothing is to be predicted. num_global_tokens: labels >= 0 in all
    micro-batches and ranks of this optimizer step, >= 1. Metrics: `masked_lm_nll`, `masked_lm_accuracy`.

    Source: Devlin et al. 2019 (arXiv 1810.04805), section 3.1.
    """
    assert logits.ndim == 2 and labels.shape == logits.shape[:1] and labels.dtype == torch.int64, (
        logits.shape, labels.shape, labels.dtype)
    assert num_global_tokens >= 1, f"num_global_tokens must be >= 1, got {num_global_tokens}"
    _check_labels(labels, logits.shape[1])
    mask = labels >= 0
    logits = torch.where(mask.unsqueeze(1), logits.float(), 0.0)
    nll = functional.cross_entropy(logits, labels, ignore_index=-1, reduction="none")
    loss = nll.sum() / num_global_tokens
    means = {"masked_lm_nll": nll, "masked_lm_accuracy": logits.detach().argmax(-1) == labels}
    return loss, {"loss": Sum(float(loss.detach())), **_means(mask, means)}


def consistency_loss(first_logits: Tensor, second_logits: Tensor, *, num_global_rows: int
                     ) -> tuple[Tensor, dict[str, Metric]]:
    """How far two passes with dropout are apart (scalar float32, nats a row) and its metrics.

        loss = sum over n, s of (KL(p[n, s] || q[n, s]) + KL(q[n, s] || p[n, s])) / 2 / num_global_rows

    first_logits, second_logits: `[N, S, K]`, p and q as logits up to a constant; -inf where a class is absent; both
    carry the gradient. num_global_rows: rows of all micro-batches and ranks of this optimizer step, >= 1. Metric:
    `consistency` a slot. Source: R-Drop, Liang et al. 2021 (arXiv 2106.14448), eq. 2.
    """
    assert first_logits.ndim == 3 and second_logits.shape == first_logits.shape, (
        first_logits.shape, second_logits.shape)
    assert num_global_rows >= 1, f"num_global_rows must be >= 1, got {num_global_rows}"
    is_there = torch.isfinite(first_logits) & torch.isfinite(second_logits)
    p, q = (torch.log_softmax(logits.float(), dim=-1).masked_fill(~is_there, 0.0)
            for logits in (first_logits, second_logits))
    terms = torch.where(is_there, (p.exp() - q.exp()) * (p - q), 0.0).sum(-1) / 2
    loss = terms.sum() / num_global_rows
    return loss, {"loss": Sum(float(loss.detach())), **_means(torch.ones_like(terms, dtype=torch.bool),
                                                              {"consistency": terms})}


def mask_tokens(input_ids: Tensor, protected_mask: Tensor, *, share: float, generator: torch.Generator, mask_id: int,
                vocab_size: int, special_ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The ids with some tokens hidden, and the labels of the hidden ones (-1 elsewhere); two tensors like input_ids.

    Every token that is neither protected nor special is chosen with probability `share`. A chosen token becomes
    `mask_id` with probability 0.8, any ordinary token with probability 0.1, and stays itself with probability 0.1.

    input_ids: `[...]` int64, padded or packed. protected_mask: same shape, bool, True where a token must stay: slots,
    template literals, padding. share: 0..1. generator: the only source of randomness; it is drawn from once per token
    that could be chosen, in row-major order, so that protected padding changes nothing. special_ids: ids that are never
    chosen and never put in, mask_id and the pad id among them.

    Source: Devlin et al. 2019 (arXiv 1810.04805), section 3.1 and appendix C.2. Departs from it in that a random token
    is never a special one, and in that the number of chosen tokens is itself random.
    """
    assert input_ids.dtype == torch.int64, input_ids.dtype
    assert protected_mask.shape == input_ids.shape and protected_mask.dtype == torch.bool, (
        protected_mask.shape, protected_mask.dtype)
    if not 0 <= share <= 1:
        raise ValueError(f"share must be in 0..1, got {share}; 0.15 is usual")
    if mask_id not in special_ids:
        raise ValueError(f"special_ids must hold mask_id {mask_id}, got {sorted(special_ids)}")
    special = torch.tensor(sorted(special_ids), dtype=torch.int64, device=input_ids.device)
    is_open = ~protected_mask & ~torch.isin(input_ids, special)
    ordinary = torch.arange(vocab_size, device=input_ids.device)
    ordinary = ordinary[~torch.isin(ordinary, special)]
    if not len(ordinary):
        raise ValueError(f"vocab_size must leave a token that is not special, got {vocab_size}")
    # Three numbers a token: is it chosen, what becomes of it, by which token.
    draws = torch.rand(int(is_open.sum()), 3, dtype=torch.float64, generator=generator, device=generator.device)
    chosen, fate, which = draws.to(input_ids.device).unbind(1)
    original = input_ids[is_open]
    chosen = chosen < share
    random_ids = ordinary[(which * len(ordinary)).long()]
    hidden = torch.where(fate < 0.8, mask_id, torch.where(fate < 0.9, random_ids, original))
    masked_ids, labels = input_ids.clone(), torch.full_like(input_ids, -1)
    masked_ids[is_open] = torch.where(chosen, hidden, original)
    labels[is_open] = torch.where(chosen, original, -1)
    return masked_ids, labels


def _check_targets(targets: Tensor, shape: torch.Size, num_global_rows: int) -> Tensor:
    """True where there is a target."""
    assert targets.shape == shape and targets.is_floating_point(), (targets.shape, shape, targets.dtype)
    assert num_global_rows >= 1, f"num_global_rows must be >= 1, got {num_global_rows}"
    is_wrong = ~(((targets >= 0) & (targets <= 1)) | (targets == -1))
    if bool(is_wrong.any()):
        raise ValueError(f"targets must be in 0..1, or -1 for none, got {float(targets[is_wrong][0])}; 1 prefers the "
                         "first side, 0 the second, 0.5 neither")
    return targets >= 0


def _check_labels(labels: Tensor, num_classes: int) -> None:
    if labels.numel() and not -1 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(f"labels must be in -1..{num_classes - 1}, got {int(labels.min())}..{int(labels.max())}; "
                         "number the classes from 0, -1 for no label")


def _inside(regions: Tensor | None, mask: Tensor, num_classes: int, name: str) -> Tensor:
    """True `[N, K]` at the classes of each row's region, and everywhere in the rows that the mask leaves out."""
    classes = torch.arange(num_classes, device=mask.device)
    if regions is None:
        return torch.ones(len(mask), num_classes, dtype=torch.bool, device=mask.device)
    assert regions.shape == (len(mask), 2) and regions.dtype == torch.int64, (regions.shape, regions.dtype)
    low, high = regions.unbind(1)
    is_wrong = mask & ~((low >= 0) & (low <= high) & (high < num_classes))
    if bool(is_wrong.any()):
        row = int(is_wrong.nonzero()[0])
        raise ValueError(f"{name} must be 0 <= lowest <= highest < {num_classes}, got {regions[row].tolist()} in row "
                         f"{row}; number the classes from 0")
    return ((classes >= low.unsqueeze(1)) & (classes <= high.unsqueeze(1))) | ~mask.unsqueeze(1)


def _refuse_impossible(is_wrong: Tensor) -> None:
    if bool(is_wrong.any()):
        raise ValueError(f"regions must leave ratings that agree with the target, got none in row "
                         f"{int(is_wrong.nonzero()[0])}; drop the row, or widen the region of a side")


@torch.no_grad()
def _expected_class(logprobs: Tensor) -> Tensor:
    classes = torch.arange(logprobs.shape[-1], device=logprobs.device)
    return (logprobs.exp() * classes).sum(-1)


@torch.no_grad()
def _preference_metrics(mask: Tensor, difference: Tensor, target: Tensor) -> dict[str, Metric]:
    """pair_accuracy and pair_margin over the rows that prefer a side; `difference` is first minus second."""
    toward = torch.sign(target - 0.5) * difference
    return _means(mask & (target != 0.5), {"pair_accuracy": (torch.sign(toward) + 1) / 2, "pair_margin": toward})


@torch.no_grad()
def _means(mask: Tensor, values: dict[str, Tensor]) -> dict[str, Metric]:
    """Means over the masked entries; one transfer from the device for all of them."""
    parts = [mask.sum(dtype=torch.float64)]
    parts += [torch.where(mask, value.double(), 0.0).sum() for value in values.values()]
    count, *totals = torch.stack(parts).tolist()
    return {name: Mean(total, int(count)) for name, total in zip(values, totals, strict=True)}
