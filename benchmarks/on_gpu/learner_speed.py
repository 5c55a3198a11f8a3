"""Speed and memory of the learner's step: a Qwen2 of half a billion parameters in bfloat16, under DeepSpeed.

`train` is an update with nothing but forward and backward passes; `whole` computes the proximal log-probabilities first
and those of the reference policy, as a run does. A forward pass takes `operations`, the backward pass twice as many;
what activation checkpointing computes again does not count.
"""

from __future__ import annotations

import os
import socket
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pyarrow as pa
import torch

from benchmarks.on_gpu.models import HALF_BILLION, VOCABULARY, qwen2, scored
from benchmarks.on_gpu.part import Checks, run
from benchmarks.on_gpu.rate import matrix_rate
from rlaif.config.algorithm import AlgorithmConfig
from rlaif.config.learner import LearnerConfig
from rlaif.learning.completion_model import CompletionModel, examine
from rlaif.learning.learner import Learner
from rlaif.learning.objectives import PolicyObjective, PolicyOptions
from rlaif.metrics import values

PROMPT, COMPLETION = (64, 256), (128, 1024)     # tokens, drawn evenly between
GROUPS, GROUP_SIZE = {"quick": 4, "full": 16}, 8
MICRO_BATCH_TOKENS = 16384
WAYS: dict[str, dict[str, Any]] = {
    "packed": {}, "zero 3": {"zero_stage": 3}, "activation checkpointing": {"activation_checkpointing": True},
    "padded": {"packing": False}}
QUICK = ("packed",)
REPEATS = 2


def measured(form: str, checks: Checks) -> dict[str, Any]:
    rate = matrix_rate(torch.bfloat16)
    torch.cuda.empty_cache()
    figures: dict[str, Any] = {"matrix_tflops_bfloat16": rate / 1e12, "rows": GROUPS[form] * GROUP_SIZE, "ways": {}}
    # Each in a process of its own: DeepSpeed leaves memory behind, and ZeRO 3 layers of its own.
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as processes:
        for name, options in WAYS.items():
            if form == "full" or name in QUICK:
                figures["ways"][name] = processes.submit(_way, form, options, rate).result()
                print(name, figures["ways"][name], flush=True)
    return figures


def _way(form: str, options: dict[str, Any], rate: float) -> dict[str, Any]:
    from actors.learners.zero import ZeroEngine, init_distributed

    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port)}
    init_distributed("nccl")
    chosen, table = scored(GROUPS[form], GROUP_SIZE, PROMPT, COMPLETION, VOCABULARY, lambda rng: -rng.random())
    config = LearnerConfig(**{"dtype": "bfloat16", "zero_stage": 1, "learning_rate": 1e-6,
                              "micro_batch_tokens": MICRO_BATCH_TOKENS} | options)
    model = qwen2()
    num_parameters = model.num_parameters()
    module = CompletionModel(model, None, examine(model, packing=config.packing))
    copy = qwen2().eval().requires_grad_(False)
    reference = CompletionModel(copy, None, examine(copy, packing=config.packing))
    if config.activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    engine = ZeroEngine(module, model, config, torch.device("cuda"))
    found: dict[str, Any] = {"parameters": num_parameters, "reading": module.reading.why}
    for name, algorithm in (("train", AlgorithmConfig(kl_coefficient=0.0, importance="none")),
                            ("whole", AlgorithmConfig(kl_coefficient=0.05))):
        objective = PolicyObjective(PolicyOptions(algorithm, max_tokens=COMPLETION[1]))
        learner = Learner(config, objective, module, engine, seed=0, total_steps=100, reference=reference)
        found |= {f"{name}_{key}": value for key, value in _timed(learner, algorithm, chosen, table, rate).items()}
    return found | {"peak_gb": torch.cuda.max_memory_allocated() / 1e9}


def _timed(learner: Learner, algorithm: AlgorithmConfig, chosen: pa.Table, table: pa.Table, rate: float
           ) -> dict[str, float]:
    taken = []
    for number in range(REPEATS + 1):
        torch.cuda.synchronize()
        started = time.perf_counter()
        found = values(learner.update_policy(chosen, algorithm.kl_coefficient, [table]))
        torch.cuda.synchronize()
        if number:
            taken.append(time.perf_counter() - started)
    lengths = [len(prompt) + len(ids) for prompt, ids in zip(
        table["prompt_ids"].to_pylist(), table["completion_ids"].to_pylist(), strict=True)]
    learnt = sum(map(len, table["completion_ids"].to_pylist()))
    num_passes = 5 if algorithm.kl_coefficient > 0 else 3       # the backward pass counts for two
    seconds = statistics.median(taken)
    return {"s": seconds, "tokens_per_s": sum(lengths) / seconds,
            "tokens_read_per_s": found["num_tokens_read"] / seconds,
            "share_of_matrix_rate": operations(lengths, learnt) * num_passes / seconds / rate}


def operations(lengths: list[int], learnt: int) -> int:
    """Multiplications and additions of one forward pass over rows of these lengths, `learnt` tokens being predicted."""
    hidden, inner, layers = (HALF_BILLION[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    keys = hidden // HALF_BILLION["num_attention_heads"] * HALF_BILLION["num_key_value_heads"]
    per_token = layers * 2 * (2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * inner)
    attention = layers * sum(2 * length * length * hidden for length in lengths)       # causal: half of all pairs
    return per_token * sum(lengths) + attention + 2 * hidden * VOCABULARY * learnt


if __name__ == "__main__":
    run(measured)
