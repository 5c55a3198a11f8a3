"""Weights in a stream of buckets: while receivers take one, the next is gathered. Pure: the carrier is passed in."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from torch import Tensor

from rlaif.modeling.weights import Bucket, fill

Sent = TypeVar("Sent")


def stream(buckets: Sequence[Bucket], weights: Iterator[tuple[str, Tensor]], memories: Sequence[Tensor],
           send: Callable[[int, Bucket, dict[str, int]], Sent], wait: Callable[[Sent], None]) -> dict[str, int]:
    """Sends `weights` in `buckets`, in order; returns the marks of all. At most len(memories) buckets are alive.

    memories: uint8 on the CPU, each as large as the largest bucket; bucket n lies in memory n % len(memories) from
    the moment that it is filled until `wait` for it has returned. send(n, bucket, marks) begins and does not wait;
    wait(what send gave) returns once no receiver needs that memory: a slow receiver holds the stream up here.
    """
    marks: dict[str, int] = {}
    under_way: deque[Sent] = deque()
    for number, bucket in enumerate(buckets):
        if len(under_way) == len(memories):
            wait(under_way.popleft())
        found = fill(bucket, weights, memories[number % len(memories)])
        under_way.append(send(number, bucket, found))
        marks |= found
    while under_way:
        wait(under_way.popleft())
    return marks
