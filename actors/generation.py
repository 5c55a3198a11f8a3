"""What an engine answers, apart from the engine: importing it costs nothing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Generation:
    """What one request came to. `logprobs` are of the sampled tokens, in nats, after the temperature."""

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str      # "stop" (end token) or "length"
