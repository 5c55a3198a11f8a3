"""What each arm of the race may be set to; the first of a list is what it is without trying."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from benchmarks.measuring import num_cores
from benchmarks.trl_peer import world

Settings = dict[str, Any]


def candidates() -> dict[str, list[Settings]]:
    """By arm. Ours: values over configs/benchmarks/against_trl.yaml. TRL's: see benchmarks.trl_peer.train."""
    whole, mixed, rounded = ("float32", "float32"), ("float32", "bfloat16"), ("bfloat16", "bfloat16")
    ours = _ours([whole], (4096, 2048, 8192))
    hf, vllm = (_theirs(generator, ["float32"], "float32", True) for generator in ("hf", "vllm"))
    # Without the correction for what vLLM rounds: it costs a forward pass.
    fast = _theirs("vllm", ["autocast", "bfloat16", "float32"], "auto", False)
    return {
        "ours_float32": ours, "trl_float32": hf, "trl_float32_vllm": vllm,
        # As TRL starts it, the engine turns a float32 model into bfloat16.
        "trl_float32_vllm_bf16_engine": _theirs("vllm", ["float32"], "auto", True),
        "ours_best": _ours([rounded, mixed], (4096, 8192)) + ours,
        "trl_best": fast + _theirs("hf", ["autocast", "bfloat16"], "auto", True) + hf}


def key_of(arm: str, settings: Settings) -> str:
    """`settings` in words, alike for arms of one side."""
    side = "ours" if arm.startswith("ours") else "trl"
    return " ".join([side, *(f"{name}={value}" for name, value in settings.items())])


def _ours(dtypes: Sequence[tuple[str, str]], budgets: Sequence[int]) -> list[Settings]:
    """dtypes: of learner and engine. budgets: tokens of a micro-batch."""
    return [{"learner.dtype": learner, "rollout.engine.dtype": engine, "learner.micro_batch_tokens": budget} | layout
            for (learner, engine), layout, budget in itertools.product(dtypes, _layouts(num_cores()), budgets)]


def _layouts(cores: int) -> list[Settings]:
    """Ranks and engines of one thread each; one rank with every thread; both as one with every thread."""
    ranks = {"placement.learner.num_actors": cores, "placement.learner.num_cpus": 0.4}
    rank = {"placement.learner.num_actors": 1, "placement.learner.num_cpus": 0.4 * cores,
            "placement.learner.num_threads": cores}
    engines = {"placement.rollout.num_actors": cores, "placement.rollout.num_cpus": 0.4}
    engine = {"placement.rollout.num_actors": 1, "placement.rollout.num_cpus": 0.4 * cores,
              "placement.rollout.num_threads": cores, "rollout.engine.max_num_seqs": 128}
    return [ranks | engines, rank | engines, rank | engine]


def _theirs(generator: str, dtypes: Sequence[str], engine_dtype: str, is_corrected: bool) -> list[Settings]:
    splits = [(1, 32), (1, 128), (num_cores(), 32), (num_cores(), 64)]      # processes, completions a forward pass
    return [{"generator": generator, "dtype": dtype, "engine_dtype": engine_dtype, "is_corrected": is_corrected,
             "num_processes": processes, "micro_batch": micro_batch}
            for dtype, (processes, micro_batch) in itertools.product(dtypes, splits)
            if world.NUM_COMPLETIONS % (processes * micro_batch) == 0]
