"""How good a reward model is, in plain numbers: labelled rows, preference pairs, rated rows.

Arrays in, a dict of plain numbers out. None stands where a figure has nothing to be computed from; NaN never does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from rlaif.esfp.calibration import check_probabilities, expected_calibration_error, log_sigmoid, top_label
from rlaif.statistics import Figures, columns, concordance, kendall, mean, ratio, rows_by_key, spearman

__all__ = ["label_metrics", "pair_metrics", "rating_metrics", "within_prompt_accuracy"]


def label_metrics(probabilities: ArrayLike, labels: ArrayLike, class_names: Sequence[str], num_bins: int = 15) -> dict:
    """Figures of labelled rows, and one line of figures for each class under "classes".

        accuracy  share of rows whose most probable class is the label (classes tied for it share the row)
        log_loss  -mean log p[label], nats; inf where a label got probability 0
        ece       expected calibration error, see `rlaif.esfp.calibration`

    A class has num_rows, num_predicted, precision, recall, f1 and mean_probability (over all rows).

    probabilities: `[N, K]`, rows that add up to 1. labels: `[N]` integers in 0..K-1. class_names: K different names.
    Raises ValueError: see `rlaif.esfp.calibration.reliability`.
    """
    probabilities, labels = check_probabilities(probabilities, labels)
    num_classes = probabilities.shape[1]
    if len(set(class_names)) != num_classes or len(class_names) != num_classes:
        raise ValueError(f"class_names must be {num_classes} different names, got {list(class_names)}")
    _, is_right = top_label(probabilities, labels)
    is_top = probabilities == probabilities.max(axis=1, keepdims=True)
    predicted = is_top / is_top.sum(axis=1, keepdims=True)      # [N, K], a row of ties is shared between its classes
    classes = {}
    for index, name in enumerate(class_names):
        num_rows, num_predicted = int((labels == index).sum()), float(predicted[:, index].sum())
        num_right = float(predicted[labels == index, index].sum())
        classes[name] = {"num_rows": num_rows, "num_predicted": num_predicted,
                         "precision": ratio(num_right, num_predicted), "recall": ratio(num_right, num_rows),
                         "f1": ratio(2 * num_right, num_rows + num_predicted),
                         "mean_probability": float(probabilities[:, index].mean())}
    with np.errstate(divide="ignore"):
        at_label = np.log(probabilities[np.arange(len(labels)), labels])
    return {"num_rows": len(labels), "accuracy": float(is_right.mean()), "log_loss": float(-at_label.mean()),
            "ece": expected_calibration_error(probabilities, labels, num_bins), "classes": classes}


def pair_metrics(margins: ArrayLike, targets: ArrayLike, temperature: float = 1.0, num_bins: int = 15) -> Figures:
    """Figures of preference pairs.

        accuracy     share of decided rows whose preferred side has the higher reward; equal rewards count half
        log_loss     -mean over all rows of t log sigmoid(m / T) + (1 - t) log sigmoid(-m / T), nats
        ece          of sigmoid(m / T) over decided rows; the same whichever side stands first
        mean_margin  mean over decided rows of the preferred side's reward minus the other's

    A row is decided where t is not 0.5. num_equal counts rows with equal rewards, num_undecided those with t = 0.5.

    margins: `[N]`, m, reward of the first side minus that of the second. targets: `[N]`, t, 1, 0 or 0.5. temperature:
    T > 0, see `rlaif.esfp.calibration.fit_score_temperature`. Raises ValueError: lengths, no row, values out of range.
    """
    margins, targets = columns(margins=margins, targets=targets)
    if not np.isin(targets, (0, 0.5, 1)).all():
        raise ValueError(f"targets must be 0, 0.5 or 1, got {targets[~np.isin(targets, (0, 0.5, 1))][0]}")
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}; 1.0 is uncalibrated")
    scaled = margins / temperature
    decided = targets != 0.5
    toward = (np.sign(targets - 0.5) * margins)[decided]
    ece = None
    if decided.any():
        ece = expected_calibration_error(np.exp(log_sigmoid(scaled[decided])), targets[decided].astype(int), num_bins)
    return {"num_rows": len(margins), "num_equal": int((margins == 0).sum()), "num_undecided": int((~decided).sum()),
            "accuracy": mean((np.sign(toward) + 1) / 2), "ece": ece, "mean_margin": mean(toward),
            "log_loss": float(-(targets * log_sigmoid(scaled) + (1 - targets) * log_sigmoid(-scaled)).mean())}


def rating_metrics(scores: ArrayLike, ratings: ArrayLike, prompts: Sequence[object] | None = None) -> Figures:
    """Figures of rated rows: rank correlations, mean absolute error, and pairs of responses to one prompt.

    scores: `[N]`, reward. ratings: `[N]`, numbers on a scale. prompts: `[N]`, what tells prompts apart; None leaves out
    pair_accuracy and num_pairs. mean_absolute_error is in the unit of the ratings, and means something only where the
    rewards have it too. Raises ValueError: lengths, no row, values not finite.
    """
    scores, ratings = columns(scores=scores, ratings=ratings)
    figures: Figures = {"num_rows": len(scores), "spearman": spearman(scores, ratings),
                        "kendall": kendall(scores, ratings),
                        "mean_absolute_error": float(np.abs(scores - ratings).mean())}
    if prompts is not None:
        accuracy, num_pairs = within_prompt_accuracy(scores, ratings, prompts)
        figures |= {"pair_accuracy": accuracy, "num_pairs": num_pairs}
    return figures


def within_prompt_accuracy(scores: ArrayLike, ratings: ArrayLike, prompts: Sequence[object]
                           ) -> tuple[float | None, int]:
    """Share of the pairs of rows of one prompt with different ratings that the scores order alike, and their number.

    Equal scores count half. Arguments as in `rating_metrics`.
    """
    scores, ratings = columns(scores=scores, ratings=ratings)
    total, num_pairs = 0.0, 0
    for rows in rows_by_key(prompts, len(scores)).values():
        right, wrong, equal, _ = concordance(scores[rows], ratings[rows])
        total += right + equal / 2
        num_pairs += right + wrong + equal
    return ratio(total, num_pairs), num_pairs
