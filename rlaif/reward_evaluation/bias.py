"""What a reward model must not look at, measured: length, position, harmless edits; and what it is worth as a chooser.

Arrays in, a dict of plain numbers out. None stands where a figure has nothing to be computed from; NaN never does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlaif.statistics import Figures, columns, mean, pearson, ratio, rows_by_key, spearman

__all__ = ["best_of_n", "edit_shift", "length_bias", "position_bias"]


def length_bias(margins: ArrayLike, length_differences: ArrayLike, targets: ArrayLike) -> Figures:
    """How much a preference follows length.

        correlation, rank_correlation   of the difference in reward with the difference in length
        longer_preferred                share of the rows of different lengths in which the longer side has the higher
                                        reward; equal rewards count half
        longer_right                    share of the same rows in which the longer side is the one to prefer; ties half
        excess                          longer_preferred - longer_right, 0 for a judge that length does not mislead

    margins: `[N]`, reward of the first side minus that of the second. length_differences: `[N]`, length of the first
    side minus that of the second, in any unit. targets: `[N]`, 1, 0 or 0.5: the side to prefer.
    """
    margins, differences, targets = columns(margins=margins, length_differences=length_differences, targets=targets)
    longer = np.sign(differences)
    differs = longer != 0
    preferred = mean(((np.sign(margins) * longer + 1) / 2)[differs])
    right = mean((((2 * targets - 1) * longer + 1) / 2)[differs])
    return {"num_rows": len(margins), "num_of_different_length": int(differs.sum()),
            "correlation": pearson(margins, differences), "rank_correlation": spearman(margins, differences),
            "longer_preferred": preferred, "longer_right": right,
            "excess": None if preferred is None or right is None else preferred - right}


def position_bias(shown_first: ArrayLike, shown_second: ArrayLike) -> Figures:
    """How much the order in which two responses are shown changes the verdict on them.

        mean_gap       mean |p - q|, p and q the probability of A being preferred, shown first and shown second
        flip_share     share of rows whose verdict is the other one in the other order; half where one order ties
        first_share    mean probability of whichever is shown first; 0.5 for a judge that the order does not move

    shown_first: `[N]`, p, from the order (A, B). shown_second: `[N]`, q, from (B, A): one minus that order's
    probability of its first.
    """
    first, second = columns(shown_first=shown_first, shown_second=shown_second)
    for name, column in (("shown_first", first), ("shown_second", second)):
        if not ((column >= 0) & (column <= 1)).all():
            raise ValueError(f"{name} must be in 0..1, got {column.min()}..{column.max()}")
    flips = np.abs(np.sign(first - 0.5) - np.sign(second - 0.5)) / 2
    return {"num_rows": len(first), "mean_gap": float(np.abs(first - second).mean()),
            "flip_share": float(flips.mean()), "first_share": float((first + 1 - second).mean() / 2)}


def best_of_n(scores: ArrayLike, gold: ArrayLike, groups: Sequence[object], sizes: Sequence[int]
              ) -> dict[int, Figures]:
    """For each n of `sizes` the gold to expect of the response with the highest score among n drawn from a group.

        E[gold] = sum over i of gold_(i) C(i - 1, n - 1) / C(M, n)        responses 1..M of a group by rising score

    exactly, over all draws of n without replacement; responses with one score share their places. Beside it, on the
    same groups: `oracle`, with gold itself as the score, and `random`, a response drawn blindly. Groups of fewer than
    n responses are left out and counted in num_small_groups, so compare sizes where it is the same.

    scores, gold: `[N]`. groups: `[N]`, what tells groups (prompts) apart. sizes: integers >= 1.

    Source: the unbiased estimator of Nakano et al. 2021 (arXiv 2112.09332), appendix I, as used by Gao et al. 2022
    (arXiv 2210.10760). Departs from it in the treatment of equal scores.
    """
    scores, gold = columns(scores=scores, gold=gold)
    if not all(isinstance(size, int) and size >= 1 for size in sizes):
        raise ValueError(f"sizes must be integers >= 1, got {list(sizes)}")
    rows_of = list(rows_by_key(groups, len(scores)).values())
    table: dict[int, Figures] = {}
    for size in sizes:
        large = [rows for rows in rows_of if len(rows) >= size]
        figures = {"gold": [_expected_best(scores[rows], gold[rows], size) for rows in large],
                   "oracle": [_expected_best(gold[rows], gold[rows], size) for rows in large],
                   "random": [float(gold[rows].mean()) for rows in large]}
        table[size] = {"num_groups": len(large), "num_small_groups": len(rows_of) - len(large)}
        table[size] |= {name: ratio(math.fsum(values), len(values)) for name, values in figures.items()}
    return table


def edit_shift(scores: ArrayLike, edited_scores: ArrayLike, verdicts: ArrayLike, edited_verdicts: ArrayLike
               ) -> Figures:
    """How much an edit that should change nothing changes.

        mean_absolute_shift   mean |edited - original|, reward; largest_shift: the greatest of them
        mean_shift            mean of edited - original, reward; above 0 where the edit is rewarded
        relative_shift        mean_absolute_shift over the standard deviation of the original scores
        flip_share            share of rows whose verdict is another one

    scores, edited_scores: `[N]`, reward of the texts before and after the edit, for rows whose text it changes.
    verdicts, edited_verdicts: `[N]` integers, most probable class (or side) before and after.
    """
    scores, edited_scores = columns(scores=scores, edited_scores=edited_scores)
    verdicts, edited_verdicts = (np.asarray(column) for column in (verdicts, edited_verdicts))
    if verdicts.shape != scores.shape or edited_verdicts.shape != scores.shape:
        raise ValueError(f"verdicts must be one a score, got {verdicts.shape} and {edited_verdicts.shape} for "
                         f"{scores.shape}")
    shifts = edited_scores - scores
    size = float(np.abs(shifts).mean())
    spread = float(scores.std()) if np.ptp(scores) else 0.0      # exactly 0 for equal scores
    return {"num_rows": len(scores), "mean_absolute_shift": size, "largest_shift": float(np.abs(shifts).max()),
            "mean_shift": float(shifts.mean()), "relative_shift": ratio(size, spread),
            "flip_share": float((verdicts != edited_verdicts).mean())}


def _expected_best(scores: NDArray, gold: NDArray, size: int) -> float:
    """The expected gold of the top-scored of `size` rows drawn without replacement."""
    order = np.argsort(scores, kind="stable")
    _, starts, counts = np.unique(scores[order], return_index=True, return_counts=True)
    num_draws = math.comb(len(scores), size)
    total = 0.0
    for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
        # draws whose top score is this one: all within the rows up to it, minus all within the rows below it
        num_tops = math.comb(start + count, size) - math.comb(start, size)
        total += num_tops / num_draws * float(gold[order[start : start + count]].mean())
    return total
