"""Memory of one actor, item by item, in bytes. What follows from numbers of weights is known; the rest is an estimate.

Throughout: P weights of b bytes each (2 in bfloat16, 4 in float32), N ranks, T tokens of a forward pass, L layers of H
hidden and F inner numbers, V words.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rlaif.config.learner import LearnerConfig
from rlaif.config.train import EngineConfig, WeightSyncConfig
from rlaif.planning.cluster import GIB, GpuKind
from rlaif.planning.shapes import Shape

__all__ = ["BYTES", "Engine", "Item", "bucket_memory", "engine_memory", "kv_bytes", "learner_memory", "process",
           "reader_memory", "total"]

BYTES = {"float32": 4, "bfloat16": 2}

# Estimates: a process with its libraries, and what CUDA and NCCL take of a GPU before the first tensor.
_PROCESS = {False: 0.8 * GIB, True: 2.5 * GIB}      # by whether it has a GPU
_CUDA = 1.0 * GIB

# DeepSpeed's defaults, in weights: reduce_bucket_size, stage3_max_live_parameters.
_BUCKET, _LIVE = 5e8, 1e9
# rlaif.modeling.logprobs holds so many logits of a chunk at a time, by whether it has a GPU.
_CHUNK_LOGITS = {False: 1 << 20, True: 1 << 26}
# Tokens of a prefill that vLLM tries out at its start: max_num_batched_tokens.
_PREFILL = 8192
KV_CACHE = "KV cache and working memory"
ASLEEP = 1.5 * GIB      # of an engine that sleeps: CUDA's own, graphs, what the allocator does not hold


@dataclass(frozen=True)
class Item:
    """`bytes` for one thing. place: gpu | host. is_known: follows from the numbers of weights, no estimate. is_lasting:
    there between two steps too."""

    name: str
    bytes: float
    place: str
    is_known: bool = True
    is_lasting: bool = True


def total(items: Iterable[Item], place: str, *, known: bool = False, lasting: bool = False) -> float:
    """Bytes of `items` in `place`: all of them, or only what is known, or what lasts."""
    return sum(item.bytes for item in items if item.place == place and (item.is_known or not known)
               and (item.is_lasting or not lasting))


def process(has_gpu: bool) -> list[Item]:
    """An actor before it does anything."""
    own = [Item("process", _PROCESS[has_gpu], "host", is_known=False)]
    return own + [Item("CUDA", _CUDA, "gpu", is_known=False)] * has_gpu


def learner_memory(policy: Shape, config: LearnerConfig, num_ranks: int, *, has_gpu: bool, reference: Shape | None,
                   critic: Shape | None, max_row_tokens: int) -> list[Item]:
    """What a rank of the learners holds.

        weights b P, whole up to ZeRO stage 2, / N at stage 3; gradients b P', whole up to stage 1, / N from stage 2
        float32 copy 4 P' in bfloat16 and wherever ZeRO keeps its own, / N from stage 1
        optimizer 8 P' (Adam's two moments), 4 P' for a matrix under Muon; / N from stage 1
        P' = what is trained: all but the frozen ones, or the adapters alone

    With offload the last two lie on the host, with the gradients' share beside them. The reference is a whole copy on
    every rank. critic: of a transformer of its own; a head on the policy's states weighs nothing. max_row_tokens:
    prompt and completion of the longest row, which a forward pass holds even where micro_batch_tokens is less.

    Sources: Rajbhandari et al. 2020 (arXiv 1910.02054), section 5; DeepSpeed 0.19.8, stage_1_and_2.py and stage3.py.
    """
    b, stage, place = BYTES[config.dtype], config.zero_stage, "gpu" if has_gpu else "host"
    models = [policy] + ([critic] if critic is not None else [])
    num_weights = sum(model.num_weights for model in models)
    num_adapters = policy.num_trained([], config.lora) if config.lora.rank is not None else 0
    trained = num_adapters + sum(model.num_trained(config.frozen, config.lora) for model in models
                                 if num_adapters == 0 or model is not policy)
    share = 1 / num_ranks
    state_share = share if stage >= 1 else 1
    state_place = "host" if config.offload else place
    has_copy = config.dtype == "bfloat16" or stage >= 1
    items = [
        Item("weights", b * (num_weights + num_adapters) * (share if stage == 3 else 1), place),
        Item("gradients", b * trained * (share if stage >= 2 else 1), place),
        Item("optimizer", (_moments(models, config, trained) + 4 * trained * has_copy) * state_share, state_place)]
    if config.offload:
        items.append(Item("offloaded gradients", 4 * trained * state_share, "host", is_known=False))
    if reference is not None:
        items.append(Item("reference", b * reference.num_weights, place))
    items += _passing(models, policy, config, max(config.micro_batch_tokens, max_row_tokens), trained, place, has_gpu)
    if has_gpu:     # read on the host, then moved
        items.append(Item("loading", b * num_weights, "host", is_known=False, is_lasting=False))
    return items + process(has_gpu)


def _moments(models: Sequence[Shape], config: LearnerConfig, trained: int) -> float:
    if config.optimizer == "adamw" or config.lora.rank is not None:
        return 8 * trained
    matrices = sum(count for model in models for name, count in model.weights.items()
                   if name in model.matrices and not any(part in name for part in config.frozen))
    return 4 * matrices + 8 * (trained - matrices)


def _passing(models: Sequence[Shape], policy: Shape, config: LearnerConfig, tokens: int, trained: int, place: str,
             has_gpu: bool) -> list[Item]:
    """What is there while a step runs; all of it estimated."""
    b = BYTES[config.dtype]
    chunk = max(1, _CHUNK_LOGITS[has_gpu] // policy.vocab_size)
    activations = sum(activation_bytes(model, tokens, b, checkpointing=config.activation_checkpointing)
                      for model in models)
    buffers = 0.0
    if config.zero_stage >= 1:
        buffers += min(_BUCKET, trained) * b * (2 if config.zero_stage == 3 else 1)
    if config.zero_stage == 3:
        buffers += min(_LIVE, sum(model.num_weights for model in models)) * b
    return [Item("activations", activations, place, is_known=False, is_lasting=False),
            Item("logits", min(chunk, tokens) * policy.vocab_size * (b + 8), place, is_known=False, is_lasting=False),
            Item("ZeRO buffers", buffers, place, is_known=False, is_lasting=False)]


def bucket_memory(policy: Shape, sync: WeightSyncConfig, engine: EngineConfig, role: str) -> list[Item]:
    """What rank 0 of the learners, or an engine, keeps for weights on their way.

        two buckets of min(b P, max(bucket_mb, b p))     p: weights of the largest tensor, in the engines' dtype

    With gloo an engine has as many; nccl sends from two buffers on the GPU, ipc from one, of vLLM's own making, each of
    max(bucket_mb, b p).
    """
    b = BYTES[engine.dtype]
    size = max(float(sync.bucket_mb << 20), float(b * max(policy.weights.values())))
    if sync.backend in ("nccl", "ipc"):
        count = 2 if sync.backend == "nccl" else 1
        return [Item("sync buffers", count * size, "gpu", is_known=False)] * (role == "learner")
    bucket = min(float(b * policy.num_weights), size)
    return [Item("sync buckets", 2 * bucket, "host")] * (role == "learner" or sync.backend == "gloo")


def activation_bytes(model: Shape, tokens: int, b: int, *, checkpointing: bool) -> float:
    """What the layers of a gated transformer keep of T tokens for the backward pass, attention scores not kept.

        layer = T (b (6 H + 2 K + 4 F) + 16 H)      K: keys of a token, and as many values; the last term: the norms'
                                                    float32
        without checkpointing L layers, with it T b H each (its input) and one whole layer that is computed again

    After Korthikanti et al. 2022 (arXiv 2205.05198), section 4.1, for a gated MLP and fused attention.
    """
    layer = tokens * (b * (6 * model.hidden_size + 2 * model.kv_width + 4 * model.intermediate_size)
                      + 16 * model.hidden_size)
    if checkpointing:
        return model.num_layers * tokens * b * model.hidden_size + layer
    return model.num_layers * layer


def reader_memory(model: Shape, dtype: str, tokens: int, *, has_gpu: bool) -> list[Item]:
    """A judge's encoder, which reads T tokens at a time without a gradient: its weights and one layer's states.

        working = T b (8 H + 3 F)       logits are of the slots' label words only
    """
    b, place = BYTES[dtype], "gpu" if has_gpu else "host"
    working = tokens * b * (8 * model.hidden_size + 3 * model.intermediate_size)
    return [Item("weights", b * model.num_weights, place),
            Item("activations", working, place, is_known=False, is_lasting=False), *process(has_gpu)]


@dataclass(frozen=True)
class Engine:
    """A vLLM engine: what it takes of each of its GPUs, or of the host, and how many sequences it holds at once.

    room: bytes of KV cache that are surely left at most. num_sequences: of max_model_len tokens in the KV cache, an
    estimate on a GPU.
    """

    items: list[Item]
    room: float
    num_sequences: int


def kv_bytes(model: Shape, config: EngineConfig) -> float:
    """Bytes of KV cache that one token takes on each GPU: 2 L b kv_width, the heads shared out over the GPUs."""
    shared = min(config.tensor_parallel_size, model.num_kv_heads)
    return 2 * model.num_layers * BYTES[config.dtype] * model.kv_width / shared


def engine_memory(model: Shape, config: EngineConfig, gpu: GpuKind | None) -> Engine:
    """An engine on GPUs of kind `gpu`, or on CPUs.

        GPU: gpu_memory_utilization M together: weights b P / tensor_parallel_size, and the rest; of that an estimate of
             the working memory for a prefill of 8192 tokens and the logits of max_num_seqs goes off the KV cache
        CPU: weights b P and kv_cache_mb
    """
    b, size = BYTES[config.dtype], config.tensor_parallel_size
    weights, sequence = b * model.num_weights / size, kv_bytes(model, config) * config.max_model_len
    if gpu is None:
        cache = float(config.kv_cache_mb << 20)
        items = [Item("weights", weights, "host"), Item("KV cache", cache, "host"), *process(False)]
        return Engine(items, cache, int(cache // sequence))
    budget = config.gpu_memory_utilization * gpu.memory
    working = (_PREFILL * b * (8 * model.hidden_size + 3 * model.intermediate_size / size)
               + config.max_num_seqs * model.vocab_size * (b + 8) + _CUDA)
    cache = max(0.0, budget - weights - working)
    items = [Item("weights", weights, "gpu"), Item(KV_CACHE, max(0.0, budget - weights), "gpu"),
             *(item for item in process(True) if item.place == "host")]
    if config.sleeps:       # vLLM keeps the weights of an engine that sleeps on the host
        items.append(Item("weights asleep", weights, "host"))
    return Engine(items, budget - weights, int(cache // sequence))
