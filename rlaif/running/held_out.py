"""Figures of a policy on held-out prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

# These come first in the table that closes a run; the rest follows as it was measured.
FIRST = ("reward", "gold", "kl", "completion_tokens", "fluent", "max_logprob_gap")


def evaluation_figures(means: Mapping[str, float], drift: Mapping[str, float], completions: Sequence[str], mode: str
                       ) -> dict[str, float]:
    """The figures of one evaluation by name, in the order of the table; greedy ones with greedy_ before the name.

    means: of rlaif.running.figures. drift: how far the policy is from its engine and its start; nothing where that was
    not measured.
    """
    found = {**means, **drift, "identical_share": identical_share(completions)}
    order = [name for name in FIRST if name in found] + [name for name in found if name not in FIRST]
    prefix = "" if mode == "sampled" else f"{mode}_"
    return {prefix + name: float(found[name]) for name in order}


def identical_share(completions: Sequence[str]) -> float:
    """Share of completions whose text another prompt got as well, in 0..1; 0 for none."""
    counts = Counter(text.strip() for text in completions)
    return sum(count for count in counts.values() if count > 1) / len(completions) if completions else 0.0
