"""What is made of a part's values before they are added: transforms of one part, gates between parts.

Pure functions on float64 arrays. A result does not depend on the order of the rows, to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rlaif.config.reward_parts import RewardPartConfig

__all__ = ["clip", "gated", "log_sigmoid", "minimum", "multiply", "positive_only", "rank", "transformed"]


def log_sigmoid(values: NDArray, center: float | None) -> NDArray:
    """The log-sigmoid of the centred values, below 0.

        t_i = log(1 / (1 + exp(-(r_i - c))))        c = center, or the mean of `values`

    A sum of such terms is near 0 only where every part is well above its centre (a logical AND), and what is good
    already gains little.

    values: `[n]`, the rows that are compared with each other. Source: Wang et al. 2024, Transforming and Combining
    Rewards for Aligning Large Language Models, equation 1. Departs from it in the centre, which is a quantile of the
    reference policy's rewards for the prompt there.
    """
    center = math.fsum(values) / len(values) if center is None else center
    return -np.logaddexp(0.0, center - values)


def rank(values: NDArray) -> NDArray:
    """The share of the other values that are lower, ties counting half, 0..1; 0.5 for a value without others.

        t_i = (#{j: r_j < r_i} + #{j != i: r_j = r_i} / 2) / (n - 1)

    values: `[n]`, the rows that are compared with each other.
    """
    if len(values) == 1:
        return np.array([0.5])
    ordered = np.sort(values)
    lower, not_higher = (np.searchsorted(ordered, values, side=side) for side in ("left", "right"))
    return (lower + (not_higher - lower - 1) / 2) / (len(values) - 1)


def clip(values: NDArray, lowest: float | None, highest: float | None) -> NDArray:
    """`values` `[n]` brought into lowest..highest; None is no limit."""
    return np.clip(values, -np.inf if lowest is None else lowest, np.inf if highest is None else highest)


def transformed(part: RewardPartConfig, values: NDArray, groups: Sequence[NDArray]) -> NDArray:
    """`values` as the part's transform makes them.

    values: `[N]`, NaN where a row was not judged, and so in the result: no other row sees it. groups: of each group the
    indices of its rows.
    """
    found = np.full(len(values), np.nan)
    for rows in [np.arange(len(values))] if part.over == "batch" else groups:
        judged = rows[~np.isnan(values[rows])]
        if len(judged):
            found[judged] = _transform(part, values[judged])
    return found


def _transform(part: RewardPartConfig, values: NDArray) -> NDArray:
    if part.transform == "log_sigmoid":
        return log_sigmoid(values, part.center)
    if part.transform == "rank":
        return rank(values)
    return clip(values, part.lowest, part.highest) if part.transform == "clip" else values


def multiply(terms: NDArray, gates: NDArray) -> NDArray:
    """The product of a term with its gates, all transformed: t_i prod_g s_gi. terms: `[N]`. gates: `[G, N]`."""
    return terms * gates.prod(axis=0)


def positive_only(terms: NDArray, gates: NDArray) -> NDArray:
    """A term where every gate's own value is above 0, else 0: what is done well counts only where the result is right.

    terms: `[N]`, transformed. gates: `[G, N]`, as the parts said them: a rank or a log-sigmoid has lost its sign.
    """
    return np.where((gates > 0).all(axis=0), terms, 0.0)


def minimum(terms: NDArray, gates: NDArray) -> NDArray:
    """A term, or the lowest of its gates where that is lower, all transformed. terms: `[N]`. gates: `[G, N]`."""
    return np.minimum(terms, gates.min(axis=0))


def gated(gate: str, terms: NDArray, values: NDArray, gate_terms: NDArray) -> NDArray:
    """`terms` `[N]` behind their gates; NaN where a gating part did not judge the row: nobody knows what it would be.

    gate: of rlaif.config.reward_parts.GATES. values, gate_terms: `[G, N]`, the gating parts before and after their own
    transform; their own gates do not count.
    """
    if gate == "none":
        return terms
    found = {"multiply": multiply, "minimum": minimum}[gate](terms, gate_terms) if gate != "positive_only" else (
        positive_only(terms, values))
    return np.where(np.isnan(values).any(axis=0), np.nan, found)
