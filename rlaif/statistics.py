"""Small statistics of columns of numbers: correlations, groups of rows, bootstrap intervals.

Arrays in, plain numbers out. None stands where a figure has nothing to be computed from; NaN never does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Figures", "Interval", "bootstrap", "by_group", "columns", "concordance", "kendall", "length_buckets",
           "mean", "pearson", "ratio", "rows_by_key", "spearman"]

Figures = dict[str, float | int | None]


def pearson(first: ArrayLike, second: ArrayLike) -> float | None:
    """The linear correlation of two columns, -1..1; None where one is constant or there are fewer than two rows."""
    first, second = columns(first=first, second=second)
    if np.ptp(first) == 0 or np.ptp(second) == 0:       # exact, as a standard deviation of equal numbers is not
        return None
    # Scaled first, so that the squares of very large or very small numbers stay in range.
    first, second = ((column - column.mean()) / np.ptp(column) for column in (first, second))
    return float(np.clip((first * second).sum() / np.sqrt((first**2).sum() * (second**2).sum()), -1, 1))


def spearman(first: ArrayLike, second: ArrayLike) -> float | None:
    """The rank correlation of two columns: the Pearson correlation of their ranks, equal numbers sharing a mean rank.

    Source: Spearman 1904, The Proof and Measurement of Association between Two Things.
    """
    first, second = columns(first=first, second=second)
    return pearson(_ranks(first), _ranks(second))


def kendall(first: ArrayLike, second: ArrayLike) -> float | None:
    """Kendall's tau-b of two columns, -1..1; None where one is constant or there are fewer than two rows.

        tau_b = (concordant - discordant) / sqrt((pairs not tied in first) (pairs not tied in second))

    Source: Kendall 1945, The Treatment of Ties in Ranking Problems.
    """
    concordant, discordant, tied_first, tied_second = concordance(first, second)
    ordered = concordant + discordant
    return ratio(concordant - discordant, math.sqrt(ordered + tied_second) * math.sqrt(ordered + tied_first))


def concordance(first: ArrayLike, second: ArrayLike) -> tuple[int, int, int, int]:
    """How many pairs of rows two columns order alike, order contrarily, tie in the first only, tie in the second only.

    In O(N log N). Source: Knight 1966, A Computer Method for Calculating Kendall's Tau with Ungrouped Data.
    """
    first, second = columns(first=first, second=second)
    pairs = len(first) * (len(first) - 1) // 2
    tied_first, tied_second = _num_tied(first), _num_tied(second)
    tied_both = _num_tied(np.stack([first, second], axis=1))
    order = np.lexsort((second, first))                  # within equal `first` rising, so that no such pair is inverted
    discordant = _num_inversions(second[order])
    concordant = pairs - tied_first - tied_second + tied_both - discordant
    return concordant, discordant, tied_first - tied_both, tied_second - tied_both


def by_group(keys: Sequence[object], measure: Callable[[NDArray], dict]) -> dict[str, dict]:
    """What `measure`, given row indices `[n]`, says of the rows of each key; keys sorted."""
    groups = rows_by_key(keys, len(keys))
    return {str(key): measure(groups[key]) for key in sorted(groups)}


def length_buckets(lengths: ArrayLike, num_buckets: int = 4) -> list[str]:
    """A name such as "2: 31..64" for each row: which of `num_buckets` spans of length, about equally full, it is in.

    lengths: `[N]` integers >= 0, in any unit. Rows of one length share a bucket, so that there may be fewer.
    """
    lengths = np.asarray(lengths)
    if lengths.ndim != 1 or not len(lengths) or lengths.dtype.kind not in "iu":
        raise ValueError(f"lengths must be integers, at least one, got {lengths.dtype} {lengths.shape}")
    if num_buckets < 1:
        raise ValueError(f"num_buckets must be >= 1, got {num_buckets}")
    cuts = np.unique(np.quantile(lengths, np.arange(1, num_buckets) / num_buckets, method="inverted_cdf"))
    places = np.searchsorted(cuts, lengths, side="left")
    used = {place: number for number, place in enumerate(np.unique(places), start=1)}
    width = len(str(len(used)))
    names = {place: f"{number:0{width}d}: {lengths[places == place].min()}..{lengths[places == place].max()}"
             for place, number in used.items()}
    return [names[place] for place in places]


@dataclass(frozen=True)
class Interval:
    """A percentile interval of a statistic; low and high are None where no resample had a value."""

    low: float | None
    high: float | None
    level: float            # how much of the resamples it holds, 0..1
    num_resamples: int      # with a value
    num_undefined: int      # resamples in which the statistic had none


def bootstrap(statistic: Callable[[NDArray], float | None], num_rows: int, *, clusters: Sequence[object] | None = None,
              num_resamples: int = 1000, level: float = 0.95, seed: int = 0) -> Interval:
    """The percentile bootstrap interval of `statistic`, a function of row indices `[n]` with repetitions.

    clusters: `[num_rows]`, what tells apart the units that are drawn, such as prompts: all rows of a unit come along;
    None draws single rows, and so does one cluster for all rows, such as an instruction that never changes: a single
    unit has no spread to draw from. level: in 0..1, exclusive. The draws depend on `seed` and the clusters alone, so
    that two statistics of the same rows are paired; their difference may be a statistic too.

    Source: Efron 1979, Bootstrap Methods: Another Look at the Jackknife; the percentile interval is of Efron 1981.
    """
    if num_rows < 1:
        raise ValueError(f"num_rows must be >= 1, got {num_rows}")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}; 0.95 is usual")
    if num_resamples < 1:
        raise ValueError(f"num_resamples must be >= 1, got {num_resamples}; 1000 is usual")
    units = None if clusters is None else list(rows_by_key(clusters, num_rows).values())
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(num_resamples):
        if units is None or len(units) == 1:
            rows = rng.integers(0, num_rows, num_rows)
        else:
            rows = np.concatenate([units[unit] for unit in rng.integers(0, len(units), len(units))])
        found.append(statistic(rows))
    values = [value for value in found if value is not None]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2]).tolist() if values else (None, None)
    return Interval(low, high, level, len(values), len(found) - len(values))


def columns(**named: ArrayLike) -> tuple[NDArray, ...]:
    """Each as float64 `[N]`; raises ValueError naming the column unless all are finite and of one length >= 1."""
    arrays = {name: np.asarray(column, dtype=np.float64) for name, column in named.items()}
    shapes = {name: array.shape for name, array in arrays.items()}
    first = next(iter(shapes.values()))
    if len(first) != 1 or first[0] < 1 or len(set(shapes.values())) > 1:
        raise ValueError(f"{' and '.join(shapes)} must be lists of one length >= 1, got shapes "
                         f"{', '.join(map(str, shapes.values()))}")
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite, got {array[~np.isfinite(array)][0]} in row "
                             f"{int((~np.isfinite(array)).argmax())}")
    return tuple(arrays.values())


def rows_by_key(keys: Sequence[object], num_rows: int) -> dict[object, NDArray]:
    """Row indices of each key, keys in order of first appearance."""
    if len(keys) != num_rows:
        raise ValueError(f"there must be one key a row, got {len(keys)} for {num_rows} rows")
    rows: dict[object, list[int]] = {}
    for row, key in enumerate(keys):
        rows.setdefault(key, []).append(row)
    return {key: np.array(indices) for key, indices in rows.items()}


def mean(values: NDArray) -> float | None:
    """The mean of `[N]`; None for no values."""
    return float(values.mean()) if len(values) else None


def ratio(part: float, whole: float) -> float | None:
    """part / whole; None where whole is 0."""
    return part / whole if whole else None


def _ranks(column: NDArray) -> NDArray:
    """Ranks from 1; equal numbers get the mean of the ranks they take."""
    _, place, counts = np.unique(column, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def _num_tied(column: NDArray) -> int:
    counts = np.unique(column, axis=0, return_counts=True)[1]
    return int((counts * (counts - 1) // 2).sum())


def _num_inversions(column: NDArray) -> int:
    """Pairs i < j with column[i] > column[j]."""
    if len(column) <= 64:
        return int(np.triu(column[:, None] > column[None], 1).sum())
    left, right = column[: len(column) // 2], column[len(column) // 2 :]
    across = len(left) * len(right) - int(np.searchsorted(np.sort(left), right, side="right").sum())
    return _num_inversions(left) + _num_inversions(right) + across
