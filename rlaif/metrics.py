"""Metrics that carry their own reduction, so that a mean of means cannot happen.

A function that measures something returns a dict of these records. Micro-batches, ranks and actors merge
their dicts, and only the last reader turns them into numbers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Max", "Mean", "Metric", "Min", "Sum", "as_json", "from_json", "merge", "values"]


@dataclass(frozen=True)
class Mean:
    """A mean over `count` items: total / count; `value` is None where there was none."""

    total: float
    count: float  # number of items (or their total weight), >= 0

    def __post_init__(self) -> None:
        assert self.count >= 0, f"count must be >= 0, got {self.count}"

    def merge(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.count + other.count)

    @property
    def value(self) -> float | None:
        return self.total / self.count if self.count else None


@dataclass(frozen=True)
class Sum:
    """A total; 0 where nothing happened."""

    total: float

    def merge(self, other: Sum) -> Sum:
        return Sum(self.total + other.total)

    @property
    def value(self) -> float:
        return self.total


@dataclass(frozen=True)
class Max:
    """The largest item; None where there was none. NaN wins, so that a merge cannot hide it."""

    value: float | None

    def merge(self, other: Max) -> Max:
        return Max(_extreme(self.value, other.value, max))


@dataclass(frozen=True)
class Min:
    """The smallest item; None where there was none. NaN wins, so that a merge cannot hide it."""

    value: float | None

    def merge(self, other: Min) -> Min:
        return Min(_extreme(self.value, other.value, min))


Metric = Mean | Sum | Max | Min


def merge(parts: Iterable[Mapping[str, Metric]]) -> dict[str, Metric]:
    """One dict with every name of `parts`, each reduced by its own rule, names in order of first appearance.

    A name may be absent from some parts; one name with two kinds of reduction is a bug of ours.
    """
    merged: dict[str, Metric] = {}
    for part in parts:
        for name, metric in part.items():
            if name not in merged:
                merged[name] = metric
                continue
            kinds = type(merged[name]).__name__, type(metric).__name__
            assert kinds[0] == kinds[1], (
                f"metric {name} must have one reduction, got {kinds[0]} and {kinds[1]}"
            )
            merged[name] = merged[name].merge(metric)
    return merged


def values(metrics: Mapping[str, Metric]) -> dict[str, float]:
    """The plain numbers, name by name; a metric without a single item is left out, never NaN or 0."""
    return {name: float(metric.value) for name, metric in metrics.items() if metric.value is not None}


def as_json(metrics: Mapping[str, Metric]) -> dict[str, list]:
    """Kind and numbers of each, which JSON holds without loss; `from_json` reads them."""
    return {name: [type(metric).__name__.lower(), *(None if number is None else float(number)
                                                    for number in dataclasses.astuple(metric))]
            for name, metric in metrics.items()}


def from_json(content: Mapping[str, Sequence]) -> dict[str, Metric]:
    """What `as_json` was given."""
    kinds = {kind.__name__.lower(): kind for kind in (Mean, Sum, Max, Min)}
    return {name: kinds[kind](*numbers) for name, (kind, *numbers) in content.items()}


def _extreme(left: float | None, right: float | None, choose) -> float | None:
    items = [item for item in (left, right) if item is not None]
    if any(math.isnan(item) for item in items):
        return math.nan
    return choose(items) if items else None
