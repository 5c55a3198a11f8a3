"""About how long the stages of a step take: arithmetic on stated rates, not a measurement.

A stage takes the longer of two: its products at a share of the device's rate, its bytes at a share of the memory's.
Small models take longer: calls and Python cost more than arithmetic there.

Sources: the roofline of Williams et al. 2009; decoding after Pope et al. 2022 (arXiv 2211.05102), section 3; 2 P
products a token forward and 4 P backward after Kaplan et al. 2020 (arXiv 2001.08361), section 2.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rlaif.config.algorithm import AlgorithmConfig
from rlaif.config.learner import LearnerConfig
from rlaif.config.train import EngineConfig, TrainConfig
from rlaif.planning.cluster import GpuKind
from rlaif.planning.memory import BYTES, kv_bytes
from rlaif.planning.parts import Parts
from rlaif.planning.shapes import Shape

__all__ = ["ASSUMED", "Load", "generate_s", "learn_s", "load_of", "read_s", "sync_s"]

PRODUCTS, BANDWIDTH = 0.4, 0.6          # shares of a device's rates that are reached
CPU_FLOPS, CPU_BANDWIDTH = 5e10, 1e10   # of one thread in float32; of an actor, bytes a second
PASS_S = {True: 0.015, False: 0.003}    # of one pass of an engine beside its arithmetic, by enforce_eager
COPY = 1.5e9                            # bytes a second through safetensors, checksum and shared memory
LINK = 5e10                             # bytes a second between GPUs of one node

ASSUMED = (
    f"devices reach {PRODUCTS:.0%} of their products and {BANDWIDTH:.0%} of their bytes a second; a CPU thread "
    f"{CPU_FLOPS / 1e9:.0f} GFLOP/s; an engine's pass takes {PASS_S[False] * 1e3:.0f} ms more, "
    f"{PASS_S[True] * 1e3:.0f} ms with enforce_eager",
    "prompts are half as long as they may be, completions and explanations as long as they may be")


@dataclass(frozen=True)
class Load:
    """A step's work. Tokens are of one row; explanations: of all rows."""

    num_rows: int
    prompt_tokens: int
    completion_tokens: int
    num_explanations: int
    question_tokens: int
    explanation_tokens: int


def load_of(config: TrainConfig, parts: Parts) -> Load:
    """What a step of `config` has to do, with prompts of half the room they have and all else as long as it may be."""
    rollout, explainer = config.rollout, parts.explainer
    prompt = max(1, (rollout.engine.max_model_len - rollout.max_tokens) // 2)
    num_rows = rollout.groups_per_step * rollout.group_size
    explains = explainer.source in ("model", "server")
    asked = prompt + rollout.max_tokens
    if explainer.source == "model":
        asked = min(asked, explainer.engine.max_model_len - int(explainer.max_tokens or 0))
    return Load(num_rows, prompt, rollout.max_tokens, num_rows * int(explainer.num_samples or 1) if explains else 0,
                asked if explains else 0, int(explainer.max_tokens or 0) if explains else 0)


def generate_s(model: Shape, config: EngineConfig, gpu: GpuKind | None, *, num_engines: int, num_sequences: int,
               num_rows: int, prompt_tokens: int, new_tokens: int, num_threads: int = 1) -> float:
    """Seconds in which `num_engines` write new_tokens to each of num_rows prompts.

        n sequences at once, n = min(max_num_seqs, what the KV cache holds, rows of an engine); ceil(rows / n) rounds
        pass = max(2 P n / products, (b P + n tokens kv) / bytes a second) + PASS_S;  round = new_tokens passes
        and the prompts: 2 P prompt_tokens rows / products
    """
    rows = math.ceil(num_rows / num_engines)
    at_once = max(1, min(config.max_num_seqs, num_sequences, rows))
    products, speed = _rates(gpu, config.tensor_parallel_size, num_threads)
    weights = BYTES[config.dtype] * model.num_in_products
    size = config.tensor_parallel_size if gpu is not None else 1
    cache = at_once * (prompt_tokens + new_tokens / 2) * kv_bytes(model, config) * size
    one_pass = max(2 * model.num_in_products * at_once / products, (weights + cache) / speed) + PASS_S[
        config.enforce_eager]
    prompts = 2 * model.num_in_products * prompt_tokens * rows / products
    return math.ceil(rows / at_once) * new_tokens * one_pass + prompts


def read_s(model: Shape, gpu: GpuKind | None, *, num_actors: int, num_tokens: int, num_threads: int = 1) -> float:
    """Seconds in which `num_actors` encoders read num_tokens together: 2 P tokens / products."""
    products, _ = _rates(gpu, 1, num_threads)
    return 2 * model.num_in_products * num_tokens / (num_actors * products)


def learn_s(policy: Shape, config: LearnerConfig, algorithm: AlgorithmConfig, gpu: GpuKind | None, *, num_ranks: int,
            num_tokens: int, has_reference: bool, critic: Shape | None, num_threads: int = 1) -> float:
    """Seconds of a policy update on num_tokens: 2 P products a token for a pass, twice that for a backward pass.

    Passes: num_epochs forward and backward, one more forward each with activation_checkpointing; before them the
    reference's, and the policy's own where more than one optimizer step follows; a critic's beside the policy's.
    """
    products, _ = _rates(gpu, 1, num_threads)
    passes = algorithm.num_epochs * (4 if config.activation_checkpointing else 3)
    own = int(algorithm.num_epochs * algorithm.num_minibatches > 1 or (algorithm.kl_in == "reward" and
                                                                        algorithm.kl_coefficient > 0))
    work = policy.num_in_products * (passes + own + has_reference)
    if critic is not None:
        work += critic.num_in_products * (passes + 1)
    return 2 * work * num_tokens / (num_ranks * products)


def sync_s(num_bytes: float, backend: str, network: float, *, is_on_one_node: bool) -> float:
    """Seconds in which the weights reach every engine: num_bytes through shared memory and back (COPY), or from GPU to
    GPU inside a node (LINK); over the network where engines are on other nodes than rank 0."""
    rate = COPY if backend == "shared_memory" else LINK
    return num_bytes / (rate if is_on_one_node else min(rate, network))


def _rates(gpu: GpuKind | None, size: int, num_threads: int) -> tuple[float, float]:
    if gpu is None:
        return CPU_FLOPS * num_threads, CPU_BANDWIDTH
    return gpu.flops * PRODUCTS * size, gpu.bandwidth * BANDWIDTH * size
