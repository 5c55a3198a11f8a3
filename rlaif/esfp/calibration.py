"""How far probabilities can be trusted: temperatures fitted on held-out rows, expected calibration error, reliability.

Numpy in, plain numbers out; everything is computed in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

__all__ = ["MAX_TEMPERATURE", "MIN_TEMPERATURE", "Bin", "check_binary", "check_probabilities",
           "expected_calibration_error", "fit_prior", "fit_score_temperature", "fit_temperature", "log_sigmoid",
           "reliability", "top_label"]

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0     # a fit that ends at a bound says that more data is needed


@dataclass(frozen=True)
class Bin:
    """The rows whose confidence is in (low, high]."""

    low: float
    high: float
    count: int
    confidence: float | None    # mean confidence, probability; None for no rows
    accuracy: float | None      # share that was right; None for no rows


def fit_temperature(class_logits: ArrayLike, labels: ArrayLike) -> float:
    """The temperature in MIN_TEMPERATURE..MAX_TEMPERATURE that makes the labels most likely.

        T = argmin of -sum over labelled rows of log softmax(z / T)[label]

    class_logits: `[N, K]` or `[N, S, K]`, z, nats up to a constant; -inf where a class is absent. labels: `[N]` or
    `[N, S]` integers in 0..K-1, -1 for none; all slots share one temperature. The sum is convex in 1 / T, so the search
    has one answer; it ends at a bound where every label is (or hardly any is) the most probable class, and is 1 where
    the logits say nothing.

    Raises ValueError: no label at all, a label out of range or of an absent class, a logit that is NaN or +inf.

    Source: Guo et al. 2017 (arXiv 1706.04599), section 4.2, eq. 9.
    """
    logits = np.asarray(class_logits, dtype=np.float64)
    labels = np.asarray(labels)
    if logits.ndim not in (2, 3) or labels.shape != logits.shape[:-1] or labels.dtype.kind not in "iu":
        raise ValueError(f"labels must be integers of the shape {logits.shape[:-1]} of class_logits, got "
                         f"{labels.dtype} {labels.shape}")
    num_classes = logits.shape[-1]
    is_labelled = labels.reshape(-1) >= 0
    logits = logits.reshape(-1, num_classes)[is_labelled]
    labels = _check_labels(labels.reshape(-1)[is_labelled], num_classes)
    if np.isnan(logits).any() or np.isposinf(logits).any():
        raise ValueError("class_logits must be numbers or -inf, got NaN or inf in a labelled row")
    if np.isneginf(logits[np.arange(len(labels)), labels]).any():
        raise ValueError("labels must be classes that their slot has, got one whose logit is -inf")
    logits = logits - logits.max(axis=1, keepdims=True)
    is_there = np.isfinite(logits)
    finite = np.where(is_there, logits, 0.0)
    at_label = finite[np.arange(len(labels)), labels]

    def slope(inverse: float) -> float:
        """Of the negative log-likelihood with respect to 1 / T: expected minus observed logit, summed over rows."""
        weights = np.where(is_there, np.exp(inverse * finite), 0.0)
        return float(((weights * finite).sum(1) / weights.sum(1) - at_label).sum())

    return _temperature(slope)


def fit_prior(class_logits: ArrayLike, labels: ArrayLike) -> NDArray:
    """The prior `[S, K]` float64, nats, that with its best temperature makes the labels most likely.

        c = argmin over c, T of -sum over labelled (n, s) of log softmax((z[n, s] - c[s]) / T)[label]

    class_logits: `[N, S, K]`, z, nats up to a constant; -inf where a class is absent, for which c is 0. labels:
    `[N, S]` integers in 0..K-1, -1 for none. Each slot's c has mean 0; a slot without labels has c = 0. With a = 1 / T
    and b = -c / T the sum is convex; a penalty of 1e-3 |b|^2 a label keeps a class without labels finite.

    Raises ValueError: as `fit_temperature`. Source: bias-corrected temperature scaling, Alexandari et al. 2020 (arXiv
    1901.06852), section 3.
    """
    start = fit_temperature(class_logits, labels)
    logits = torch.as_tensor(np.asarray(class_logits, dtype=np.float64))
    targets = torch.as_tensor(np.asarray(labels, dtype=np.int64))
    is_there = torch.isfinite(logits).any(0)
    chosen = targets >= 0
    inverse = torch.tensor(1 / start, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(logits.shape[1:], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([inverse, bias], max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        shown = torch.where(is_there, torch.where(is_there, logits, 0.0) * inverse + bias, -torch.inf)
        nll = torch.nn.functional.cross_entropy(shown[chosen], targets[chosen])
        loss = nll + 1e-3 * bias.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    prior = torch.where(is_there, -bias.detach() / inverse.detach(), 0.0)
    return (prior - torch.where(is_there, prior.sum(-1, keepdim=True) / is_there.sum(-1, keepdim=True), 0.0)).numpy()


def fit_score_temperature(margins: ArrayLike, targets: ArrayLike) -> float:
    """The temperature in MIN_TEMPERATURE..MAX_TEMPERATURE that makes the preferences most likely.

        T = argmin of -sum over rows of (t log sigmoid(m / T) + (1 - t) log sigmoid(-m / T))

    margins: `[N]`, m, reward of the first side minus that of the second. targets: `[N]`, t in 0..1: 1 where the first
    side is preferred, 0 where the second is, 0.5 for a tie. At a bound and without information as in `fit_temperature`.

    Raises ValueError: no row, a margin that is not finite, a target out of range.

    Source: Guo et al. 2017 (arXiv 1706.04599), section 4.1 (Platt scaling without a bias), on Bradley-Terry margins.
    """
    margins, targets = np.asarray(margins, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    if margins.ndim != 1 or targets.shape != margins.shape or not len(margins):
        raise ValueError(f"margins and targets must be two lists of one length >= 1, got {margins.shape} and "
                         f"{targets.shape}")
    if not np.isfinite(margins).all():
        raise ValueError(f"margins must be finite, got {margins[~np.isfinite(margins)][0]}")
    if not ((targets >= 0) & (targets <= 1)).all():
        raise ValueError(f"targets must be in 0..1, got {targets.min()}..{targets.max()}; drop rows without a target")

    return _temperature(lambda inverse: float(((np.exp(log_sigmoid(inverse * margins)) - targets) * margins).sum()))


def reliability(probabilities: ArrayLike, labels: ArrayLike, num_bins: int = 15) -> list[Bin]:
    """`num_bins` bins of equal width of the confidence in the most probable class, rising from 0 to 1.

    probabilities: `[N, K]`, rows that add up to 1; or `[N]`, the probability of label 1 of two, read as `[1 - p, p]`,
    so that swapping the two sides of every row changes nothing. labels: `[N]` integers in 0..K-1. Where several
    classes are the most probable, a row is right by the share of them that its label is.

    Raises ValueError: shapes, probabilities or labels out of range, no row, num_bins < 1.

    Source: Guo et al. 2017 (arXiv 1706.04599), section 2 (reliability diagrams). Departs from it at ties only.
    """
    if num_bins < 1:
        raise ValueError(f"num_bins must be >= 1, got {num_bins}; 15 is usual")
    confidence, is_right = top_label(probabilities, labels)
    edges = np.linspace(0.0, 1.0, num_bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, num_bins - 1)
    bins = []
    for index in range(num_bins):
        inside = place == index
        count = int(inside.sum())
        bins.append(Bin(low=float(edges[index]), high=float(edges[index + 1]), count=count,
                        confidence=float(confidence[inside].mean()) if count else None,
                        accuracy=float(is_right[inside].mean()) if count else None))
    return bins


def expected_calibration_error(probabilities: ArrayLike, labels: ArrayLike, num_bins: int = 15) -> float:
    """The mean distance of confidence and accuracy over rows, in 0..1; arguments and errors as in `reliability`.

        ECE = sum over bins of (rows of the bin / rows) * |accuracy - confidence|

    Source: Guo et al. 2017 (arXiv 1706.04599), eq. 3.
    """
    bins = [part for part in reliability(probabilities, labels, num_bins) if part.count]
    return sum(part.count * abs(part.accuracy - part.confidence) for part in bins) / sum(part.count for part in bins)


def top_label(probabilities: ArrayLike, labels: ArrayLike) -> tuple[NDArray, NDArray]:
    """The greatest probability `[N]` of each row, and how right it is `[N]`: 1 / (classes tied for it), or 0."""
    probabilities, labels = check_probabilities(probabilities, labels)
    confidence = probabilities.max(axis=1)
    is_top = probabilities == confidence[:, None]
    return confidence, is_top[np.arange(len(labels)), labels] / is_top.sum(axis=1)


def check_probabilities(probabilities: ArrayLike, labels: ArrayLike) -> tuple[NDArray, NDArray]:
    """Both as arrays, `[N, K]` float64 (two classes from `[N]`) and `[N]` integers; raises as `reliability` does."""
    probabilities, labels = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    if probabilities.ndim == 1:
        probabilities = check_binary(probabilities)
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or labels.dtype.kind not in "iub":
        raise ValueError(f"labels must be integers, one a row of probabilities, got {labels.dtype} {labels.shape} for "
                         f"{probabilities.shape}")
    is_wrong = ~((probabilities >= 0).all(1) & (np.abs(probabilities.sum(1) - 1) < 1e-3))
    if is_wrong.any():
        row = int(is_wrong.argmax())
        raise ValueError(f"probabilities must be >= 0 and add up to 1 in every row, got "
                         f"{probabilities[row].tolist()} in row {row}")
    return probabilities, _check_labels(labels.astype(np.int64), probabilities.shape[1])


def check_binary(probabilities: NDArray) -> NDArray:
    """`[N, 2]`, the probabilities of no and yes, from `[N]`."""
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError(f"probabilities must be in 0..1, got {probabilities.min()}..{probabilities.max()}")
    return np.stack([1 - probabilities, probabilities], axis=1)


def log_sigmoid(scores: NDArray) -> NDArray:
    """log(1 / (1 + exp(-x))), exact for large |x|."""
    return -np.logaddexp(0.0, -scores)


def _check_labels(labels: NDArray, num_classes: int) -> NDArray:
    if not len(labels):
        raise ValueError("labels must hold at least one label, got none")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels must be in 0..{num_classes - 1}, got {labels.min()}..{labels.max()}")
    return labels


def _temperature(slope: Callable[[float], float]) -> float:
    """Where the rising `slope`, a function of 1 / T, crosses zero: by bisection of log T, within 1e-12 of it."""
    low, high = np.log(1 / MAX_TEMPERATURE), np.log(1 / MIN_TEMPERATURE)
    at_low, at_high = slope(1 / MAX_TEMPERATURE), slope(1 / MIN_TEMPERATURE)
    if at_low == at_high == 0:
        return 1.0
    if at_low >= 0:
        return MAX_TEMPERATURE
    if at_high <= 0:
        return MIN_TEMPERATURE
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (middle, high) if slope(float(np.exp(middle))) < 0 else (low, middle)
    return float(np.exp(-(low + high) / 2))
