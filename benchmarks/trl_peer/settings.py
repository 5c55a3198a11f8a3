"""What each arm of the race may be set to, and the search for the fastest setting of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.measuring import num_cores

Settings = dict[str, Any]
Choices = list[list[Settings]]      # one choice after another; the first option of each is what holds without trying


def choices() -> dict[str, Choices]:
    """By arm. Ours: values over configs/benchmarks/against_trl.yaml. TRL's: see benchmarks.trl_peer.train."""
    one = [_split(1)]
    return {
        "ours_float32": [[_our_dtypes("float32", "float32")]],
        "trl_float32": [[_theirs("hf", "float32", "float32", True)], [_split(1), _split(num_cores())]],
        "trl_float32_vllm": [[_theirs("vllm", "float32", "float32", True)], one],
        "ours_best": [[_our_dtypes("bfloat16", "bfloat16")]],
        # Without the correction for what vLLM rounds: it costs a forward pass.
        "trl_best": [[_theirs("hf", "autocast", "auto", True), _theirs("hf", "bfloat16", "auto", True),
                      _theirs("vllm", "autocast", "auto", False)], one]}


def untried(options: Choices) -> Settings:
    """The first option of every choice."""
    return {name: value for choice in options for name, value in choice[0].items()}


def fastest(options: Choices, seconds: Callable[[Settings], float | None]) -> Settings | None:
    """Makes one choice after another, each time taking the fastest option; None where none of several ran.

    seconds: of a step under some settings; None where they do not run.
    """
    found = untried(options)
    for choice in options:
        if len(choice) == 1:
            continue
        ran = [(taken, number) for number, option in enumerate(choice)
               if (taken := seconds(found | option)) is not None]
        if not ran:
            return None
        found |= choice[min(ran)[1]]
    return found


def key_of(arm: str, settings: Settings) -> str:
    """`settings` in words, alike for arms of one side."""
    side = "ours" if arm.startswith("ours") else "trl"
    return " ".join([side, *(f"{name}={value}" for name, value in sorted(settings.items()))])


def _our_dtypes(learner: str, engine: str) -> Settings:
    return {"learner.dtype": learner, "rollout.engine.dtype": engine}


def _theirs(generator: str, dtype: str, engine_dtype: str, is_corrected: bool) -> Settings:
    return {"generator": generator, "dtype": dtype, "engine_dtype": engine_dtype, "is_corrected": is_corrected}


def _split(processes: int) -> Settings:
    """Processes, and completions of a forward pass."""
    return {"num_processes": processes, "micro_batch": 32}
