"""The order in which the rows of several sets are drawn: a pure function of sizes, weights, seed and epoch.

Every set has a stream of its own that goes through its rows pass after pass, each pass in an order that (seed, pass,
set) draws. Epoch e takes from set k the places floor(e w_k n_k) up to floor((e + 1) w_k n_k) of that stream: a row of
weight 1 comes exactly once an epoch, of weight 2 twice, of weight 1/2 once in two epochs. Within an epoch the sets are
spread evenly: after any part p of the epoch, set k has given p m_k of its m_k rows, to within one.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

_SPREAD = 1 << 30       # beside the numbers of sets, which draw the passes


def epoch_start(sizes: Sequence[int], weights: Sequence[float], epoch: int) -> int:
    """How many rows are drawn before `epoch`."""
    return sum(_drawn(size, weight, epoch) for size, weight in zip(sizes, weights, strict=True))


def epoch_of(sizes: Sequence[int], weights: Sequence[float], place: int) -> int:
    """The epoch that the row at `place` is drawn in: epoch_start(epoch) <= place < epoch_start(epoch + 1)."""
    a_turn = sum(size * _exact(weight) for size, weight in zip(sizes, weights, strict=True))
    epoch = int(place / a_turn)     # or a later one, for epoch_start rounds down
    while epoch_start(sizes, weights, epoch + 1) <= place:
        epoch += 1
    return epoch


def epoch_order(sizes: Sequence[int], weights: Sequence[float], seed: int, epoch: int) -> NDArray[np.int64]:
    """The rows of `epoch` in the order they are drawn, numbered through all sets.

    sizes: `[num_sets]`, rows, >= 1. weights: `[num_sets]`, times a row is drawn in an epoch, > 0.
    """
    rng = np.random.default_rng([seed, epoch, _SPREAD])
    rows, moments = [], []
    first = 0
    for number, (size, weight) in enumerate(zip(sizes, weights, strict=True)):
        begin, end = _drawn(size, weight, epoch), _drawn(size, weight, epoch + 1)
        passes = [np.random.default_rng([seed, index, number]).permutation(size)
                  for index in range(begin // size, -(-end // size))]
        skipped = begin // size * size
        rows.append(first + np.concatenate([np.zeros(0, np.int64), *passes])[begin - skipped : end - skipped])
        moments.append((np.arange(end - begin) + rng.random(end - begin)) / max(1, end - begin))
        first += size
    return np.concatenate(rows)[np.argsort(np.concatenate(moments), kind="stable")]


def _exact(weight: float) -> Fraction:
    return Fraction(str(weight))    # 0.1 is a tenth


def _drawn(size: int, weight: float, epoch: int) -> int:
    """Rows of one set drawn before `epoch`."""
    return int(_exact(weight) * size * epoch)
