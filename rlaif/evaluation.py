"""Figures of a policy on held-out prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

# In the order of the table that closes a run.
SHOWN = ("reward", "gold", "kl", "completion_tokens", "fluent", "max_logprob_gap")


def evaluation_values(summary: Mapping[str, Any], drift: Mapping[str, float]) -> dict[str, float]:
    """The figures of an evaluation that are there, in the order of the table."""
    everything = {**summary, **drift}
    return {name: float(everything[name]) for name in SHOWN if name in everything}


def identical_share(completions: Sequence[str]) -> float:
    """Share of completions whose text another prompt got as well, in 0..1; 0 for none."""
    counts = Counter(text.strip() for text in completions)
    return sum(count for count in counts.values() if count > 1) / len(completions) if completions else 0.0
