"""The one door to vLLM: an asynchronous engine that generates and takes new weights while it lives.

What is used of vLLM: AsyncLLM, AsyncEngineArgs, SamplingParams, the pause / resume pair, and the weight-transfer API
on both sides (init, start, update, finish, version; trainer factory, NCCL and IPC senders). Nothing else imports vllm.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from vllm import SamplingParams
from vllm.distributed.weight_transfer import WeightTransferEngineFactory, WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.base import (
    ParamMeta,
    WeightSource,
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferInitRequest,
    WeightTransferUpdateInfo,
    WeightTransferUpdateRequest,
)
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from actors.generation import Generation
from rlaif.config.train import EngineConfig
from rlaif.modeling.weights import checksum_bytes

BACKEND = "shared_memory"


class Engine:
    """A vLLM engine on this actor's CPUs or GPUs.

    `receives_weights` prepares the weight-transfer channel of `backend`.
    """

    def __init__(self, model: str, config: EngineConfig, *, seed: int, num_gpus: float,
                 backend: str | None = None) -> None:
        device_args: dict[str, Any] = {"gpu_memory_utilization": config.gpu_memory_utilization}
        if num_gpus == 0:
            # Whole prompts only: vLLM rewinds the generator of a seeded request whose prompt it cut in chunks, and a
            # CPU generator has no offset to rewind.
            device_args = {"kv_cache_memory_bytes": config.kv_cache_mb << 20, "enable_chunked_prefill": False,
                           "max_num_batched_tokens": max(4096, config.max_model_len)}
        self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(
            model=model, dtype=config.dtype, seed=seed, max_model_len=config.max_model_len,
            max_num_seqs=config.max_num_seqs, tensor_parallel_size=config.tensor_parallel_size,
            enforce_eager=config.enforce_eager, trust_remote_code=False, load_format="safetensors",
            logprobs_mode="processed_logprobs", disable_log_stats=True,
            # Not Ray, which vLLM would choose inside a placement group: it would take the other roles' bundles.
            distributed_executor_backend="mp" if config.tensor_parallel_size > 1 else None,
            weight_transfer_config={"backend": backend} if backend else None,
            worker_extension_cls="actors.engine.RegistersBackend", **device_args))
        self._num_requests = 0

    async def open(self, init_info: dict[str, Any]) -> None:
        """Opens the weight-transfer channel as its backend asks; once, before the first sync."""
        await self._llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info))

    async def generate(self, prompt_ids: Sequence[int], *, max_tokens: int, temperature: float, seed: int | None,
                       with_logprobs: bool, cache_salt: str | None = None) -> Generation:
        """One completion of `prompt_ids`; many calls run at once and are batched by the engine."""
        self._num_requests += 1
        params = SamplingParams(
            max_tokens=max_tokens, temperature=temperature, seed=seed, detokenize=False,
            logprobs=0 if with_logprobs else None, output_kind=RequestOutputKind.FINAL_ONLY)
        prompt: dict[str, Any] = {"prompt_token_ids": list(prompt_ids)}
        if cache_salt is not None:
            prompt["cache_salt"] = cache_salt
        outputs = [output async for output in self._llm.generate(prompt, params, str(self._num_requests))]
        assert len(outputs) == 1 and outputs[0].finished
        answer = outputs[0].outputs[0]
        ids = list(answer.token_ids)
        logprobs = [entry[token].logprob for token, entry in zip(ids, answer.logprobs or (), strict=with_logprobs)]
        return Generation(ids, logprobs, answer.finish_reason)

    async def label_logprobs(self, token_ids: Sequence[int], label_ids: Sequence[int]) -> list[float]:
        """Log-probabilities, in nats, of each of `label_ids` as the token after `token_ids`, in one forward pass.

        They are of the whole vocabulary's distribution at temperature 1. label_ids: 1 to 128 ids.
        """
        self._num_requests += 1
        params = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False, logprob_token_ids=list(label_ids),
                                output_kind=RequestOutputKind.FINAL_ONLY)
        prompt = {"prompt_token_ids": list(token_ids)}
        outputs = [output async for output in self._llm.generate(prompt, params, str(self._num_requests))]
        assert len(outputs) == 1 and outputs[0].finished and outputs[0].outputs[0].logprobs is not None
        entry = outputs[0].outputs[0].logprobs[0]
        return [entry[label].logprob for label in label_ids]

    async def begin_sync(self) -> None:
        """Holds requests in flight and readies the engine to receive weights."""
        await self._llm.pause_generation(mode="keep")
        await self._llm.start_weight_update()

    async def receive(self, update_info: dict[str, Any]) -> None:
        """Takes one part of the weights, as the backend describes it."""
        await self._llm.update_weights(WeightTransferUpdateRequest(update_info))

    async def end_sync(self, version: str) -> None:
        """Puts the received weights to use as `version` and lets requests go on."""
        await self._llm.finish_weight_update(weight_version=version)
        await self._llm.resume_generation()

    async def install(self, version: str, buckets: Sequence[bytes]) -> None:
        """Installs safetensors `buckets`; they reach the engine's process through shared memory, one at a time.

        Every bucket's checksum is computed again where it is loaded.
        """
        await self.begin_sync()
        for bucket in buckets:
            with tempfile.NamedTemporaryFile(dir=_shared_memory(), suffix=".safetensors") as file:
                file.write(bucket)
                file.flush()
                await self.receive({"path": file.name, "checksum": checksum_bytes(bucket)})
        await self.end_sync(version)

    async def version(self) -> str:
        """The version of the last `end_sync`, as the engine's process keeps it."""
        return await self._llm.get_weight_version()

    async def installed_digest(self) -> str:
        """One digest of the weights as they lie in the engine; equal engines give equal digests."""
        digests = await self._llm.compute_weight_checksums()
        joined = "".join(f"{name}={value};" for part in digests for name, value in sorted(part.items()))
        return hashlib.sha256(joined.encode()).hexdigest()

    def close(self) -> None:
        self._llm.shutdown()


def _shared_memory() -> Path:
    path = Path("/dev/shm")
    return path if path.is_dir() and os.access(path, os.W_OK) else Path(tempfile.gettempdir())


class RegistersBackend:
    """Named as vLLM's worker extension, so that importing this module in the worker registers the backend below."""


@dataclass
class _NoInitInfo(WeightTransferInitInfo):
    pass


@dataclass
class _FileUpdate(WeightTransferUpdateInfo):
    path: str
    checksum: str


class SharedMemoryTransfer(WeightTransferEngine[_NoInitInfo, _FileUpdate]):
    """Runs inside vLLM's worker: loads safetensors buckets from a path, on a CPU or a GPU.

    vLLM's layerwise reload undoes and redoes what a device does to weights after loading (prepacking on a CPU).
    """

    init_info_cls = _NoInitInfo
    update_info_cls = _FileUpdate

    def init_transfer_engine(self, init_info: _NoInitInfo) -> None:
        pass

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model)

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)
        if self.device.type == "cpu":
            self._repack_kept_weights()

    def _repack_kept_weights(self) -> None:
        # A CPU layer that keeps its plain weight beside the packed one (the embedding that a tied output layer
        # multiplies by) is packed from a temporary tensor during the reload: pack it again from the weight it kept.
        from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

        for layer in self.model.modules():
            if hasattr(layer, "cpu_linear") and layer.weight.numel():
                dispatch_cpu_unquantized_gemm(layer, remove_weight=False)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        # The base class synchronizes an accelerator, which a CPU lacks; load_weights here is synchronous.
        self.receive_weights(self.parse_update_info(update_info))
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: _FileUpdate) -> None:
        data = Path(update_info.path).read_bytes()
        found = checksum_bytes(data)
        if found != update_info.checksum:
            raise ValueError(f"weight bucket must have checksum {update_info.checksum}, got {found}")
        tensors = load_safetensors(data)
        self.model.load_weights((name, tensor.to(self.device)) for name, tensor in tensors.items())

    def shutdown(self) -> None:
        pass


if BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(BACKEND, SharedMemoryTransfer)


class _Source(WeightSource):
    """A learner's weights as vLLM's senders read them."""

    def __init__(self, shapes: Sequence[tuple[str, torch.dtype, tuple[int, ...]]],
                 whole: Callable[[], Iterator[tuple[str, torch.Tensor]]]) -> None:
        self._shapes, self._whole = shapes, whole

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(*entry) for entry in self._shapes]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        return self._whole()


def open_sender(backend: str, *, rank: int, address: tuple[str, int], num_workers: int, client: Any,
                shapes: Sequence[tuple[str, torch.dtype, tuple[int, ...]]],
                whole: Callable[[], Iterator[tuple[str, torch.Tensor]]]) -> Callable[[], None]:
    """On every learner rank: what sends its weights straight to the engines' GPUs when called.

    backend: "nccl" (address is where rank 0 and the `num_workers` engine workers meet) or "ipc" (learner and engine
    share the GPU). client: has the four calls of vLLM's VLLMWeightSyncClient. shapes, whole: names, dtypes and whole
    shapes, and an iterator over the whole tensors in the same order; iterating is a collective under ZeRO-3.
    """
    if backend == "nccl":
        info = NCCLTrainerInitInfo(*address, 1 + num_workers, rank=rank)
    else:
        info = IPCTrainerInitInfo(rank=rank)
    return WeightTransferTrainerFactory.trainer_init(info, client=client, source=_Source(shapes, whole)).send_weights
