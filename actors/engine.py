"""The one door to vLLM: an asynchronous engine that generates and takes new weights while it lives.

What is used of vLLM: AsyncLLM, AsyncEngineArgs, SamplingParams, the pause / resume pair and the weight-transfer API
(init, start, update, finish, version). Nothing else in the project imports vllm.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from vllm import SamplingParams
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferInitRequest,
    WeightTransferUpdateInfo,
    WeightTransferUpdateRequest,
)
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from actors.generation import Generation
from rlaif.config import EngineConfig
from rlaif.weights import Manifest, checksum_bytes

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
        self._backend = backend
        self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(
            model=model, dtype=config.dtype, seed=seed, max_model_len=config.max_model_len,
            max_num_seqs=config.max_num_seqs, tensor_parallel_size=config.tensor_parallel_size,
            enforce_eager=config.enforce_eager, trust_remote_code=False, load_format="safetensors",
            logprobs_mode="processed_logprobs", disable_log_stats=True,
            weight_transfer_config={"backend": backend} if backend else None,
            worker_extension_cls="actors.engine.RegistersBackend", **device_args))
        self._num_requests = 0

    async def open(self, init_info: dict[str, Any] | None = None) -> None:
        """Readies the weight-transfer channel; call once before the first `install`."""
        if self._backend:
            await self._llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info or {}))

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
        final = None
        async for final in self._llm.generate(prompt, params, request_id=str(self._num_requests)):
            pass
        assert final is not None and final.finished
        answer = final.outputs[0]
        ids = list(answer.token_ids)
        logprobs = [entry[token].logprob for token, entry in zip(ids, answer.logprobs or (), strict=with_logprobs)]
        return Generation(ids, logprobs, answer.finish_reason)

    async def install(self, version: int, manifest: Manifest, buckets: Sequence[bytes]) -> str:
        """Installs the weights of `manifest`, sent as safetensors `buckets`, while requests in flight wait.

        Returns the checksum that the engine process computed over what it loaded. Bytes travel to the engine process
        through a file in shared memory, one bucket at a time.
        """
        await self._llm.pause_generation(mode="keep")
        try:
            await self._llm.start_weight_update()
            for bucket in buckets:
                with tempfile.NamedTemporaryFile(dir=_shared_memory(), suffix=".safetensors") as file:
                    file.write(bucket)
                    file.flush()
                    update = {"path": file.name, "checksum": checksum_bytes(bucket)}
                    await self._llm.update_weights(WeightTransferUpdateRequest(update))
            await self._llm.finish_weight_update(weight_version=f"{version}:{manifest.checksum}")
        finally:
            await self._llm.resume_generation()
        return (await self._llm.get_weight_version()).partition(":")[2]

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
