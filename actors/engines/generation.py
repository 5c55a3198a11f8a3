"""What an engine answers, apart from the engine: importing it costs nothing."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Generation:
    """What one request came to. `logprobs` are of the sampled tokens, in nats, after the temperature."""

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str      # "stop" (end token) or "length"
    weights: tuple[tuple[str, int], ...] = ()   # the labels of the weights that wrote it, and how many tokens each did


@dataclass(frozen=True)
class Leaving:
    """What is told of a batch of rollouts that leaves an engine, after the batch itself."""

    group_ids: list[int]
    num_rows: int
    num_bytes: int


def content_seed(*parts: object) -> int:
    """The sampling seed of a request, 63 bits, from what it is about: the same whichever engine serves it, and when."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
