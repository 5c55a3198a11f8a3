"""Gold judges: exact, independent of every learned model, and never part of the reward they watch over."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rlaif import scenes

Judge = Callable[[Sequence[str], Sequence[str]], dict[str, list[float]]]


def judge_scenes(prompts: Sequence[str], completions: Sequence[str]) -> dict[str, list[float]]:
    """gold: 1 for a sentence in the relation asked for, else 0. fluent: 1 for a sentence of the language, else 0."""
    verdicts = [scenes.judge(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
    return {"gold": [verdict.reward for verdict in verdicts],
            "fluent": [float(verdict.label != "garbled") for verdict in verdicts]}


GOLD: dict[str, Judge] = {"scenes": judge_scenes}
