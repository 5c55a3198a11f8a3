"""What each arm of the race may be set to, and the search for the fastest setting of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.measuring import num_cores
from benchmarks.trl_peer import world

Settings = dict[str, Any]
Choices = list[list[Settings]]      # one choice after another; the first option of each is what holds without trying


def choices() -> dict[str, Choices]:
    """By arm. Ours: values over configs/benchmarks/against_trl.yaml. TRL's: see benchmarks.trl_peer.train."""
    splits = _splits()
    return {
        "ours_float32": [[_our_dtypes("float32", "float32")], _layouts(num_cores()), _budgets(4096, 2048, 8192)],
        "trl_float32": [[_theirs("hf", "float32", "float32", True)], splits],
        "trl_float32_vllm": [[_theirs("vllm", "float32", "float32", True)], splits],
        # As TRL starts it, the engine turns a float32 model into bfloat16.
        "trl_float32_vllm_bf16_engine": [[_theirs("vllm", "float32", "auto", True)], splits],
        "ours_best": [[_our_dtypes("bfloat16", "bfloat16"), _our_dtypes("float32", "bfloat16"),
                       _our_dtypes("float32", "float32")], _layouts(num_cores()), _budgets(4096, 8192, 2048)],
        # Without the correction for what vLLM rounds: it costs a forward pass.
        "trl_best": [[*(_theirs("vllm", dtype, "auto", False) for dtype in ("autocast", "bfloat16", "float32")),
                      *(_theirs("hf", dtype, "auto", True) for dtype in ("autocast", "bfloat16", "float32"))], splits]}


def untried(options: Choices) -> Settings:
    """The first option of every choice."""
    return {name: value for choice in options for name, value in choice[0].items()}


def fastest(options: Choices, seconds: Callable[[Settings], float | None]) -> Settings | None:
    """Makes one choice after another, each time taking the fastest option; None where nothing ran.

    seconds: of a step under some settings; None where they do not run.
    """
    found, runs = untried(options), False
    for choice in options:
        ran = [(taken, number) for number, option in enumerate(choice)
               if (taken := seconds(found | option)) is not None]
        if ran:
            found, runs = found | choice[min(ran)[1]], True
    return found if runs else None


def key_of(arm: str, settings: Settings) -> str:
    """`settings` in words, alike for arms of one side."""
    side = "ours" if arm.startswith("ours") else "trl"
    return " ".join([side, *(f"{name}={value}" for name, value in sorted(settings.items()))])


def _our_dtypes(learner: str, engine: str) -> Settings:
    return {"learner.dtype": learner, "rollout.engine.dtype": engine}


def _budgets(*tokens: int) -> list[Settings]:
    """Tokens of a micro-batch."""
    return [{"learner.micro_batch_tokens": number} for number in tokens]


def _layouts(cores: int) -> list[Settings]:
    """Ranks and engines of one thread each; one rank with every thread; both as one with every thread."""
    ranks = {"placement.learner.num_actors": cores, "placement.learner.num_cpus": 0.4,
             "placement.learner.num_threads": 1}
    rank = {"placement.learner.num_actors": 1, "placement.learner.num_cpus": 0.4 * cores,
            "placement.learner.num_threads": cores}
    engines = {"placement.rollout.num_actors": cores, "placement.rollout.num_cpus": 0.4,
               "placement.rollout.num_threads": 1, "rollout.engine.max_num_seqs": 64}
    engine = {"placement.rollout.num_actors": 1, "placement.rollout.num_cpus": 0.4 * cores,
              "placement.rollout.num_threads": cores, "rollout.engine.max_num_seqs": 128}
    return [ranks | engines, rank | engines, rank | engine]


def _theirs(generator: str, dtype: str, engine_dtype: str, is_corrected: bool) -> Settings:
    return {"generator": generator, "dtype": dtype, "engine_dtype": engine_dtype, "is_corrected": is_corrected}


def _splits() -> Sequence[Settings]:
    """Processes, and completions of a forward pass."""
    return [{"num_processes": processes, "micro_batch": micro_batch}
            for processes, micro_batch in ((1, 32), (1, 128), (num_cores(), 32), (num_cores(), 64))
            if world.NUM_COMPLETIONS % (processes * micro_batch) == 0]
