"""The one door to vLLM: an asynchronous engine that generates and takes new weights while it lives.

What is used of vLLM: AsyncLLM (add_request, abort, the pause / resume pair, collective_rpc, its engine_core's pause),
AsyncEngineArgs, SamplingParams, and the weight-transfer API on both sides (init, start, update, finish, version;
trainer factory, NCCL and IPC senders). Nothing else imports vllm, but engine_worker and gpu_worker beside this module,
which run in its workers.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from vllm import SamplingParams
from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.base import (
    ParamMeta,
    WeightSource,
    WeightTransferInitRequest,
    WeightTransferUpdateRequest,
)
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.outputs import CompletionOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from actors.engines.engine_worker import WorkerExtension
from actors.engines.generation import Generation
from actors.faults.vitals import EngineLost
from rlaif.config.train import EngineConfig

LOOK_S = 1.0            # seconds between looks at whether the engine's process lives, while it is waited for

Answer = TypeVar("Answer")


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
            # The smallest blocks that a CPU takes: its attention reads whole ones, 128 tokens where nothing is said.
            device_args = {"kv_cache_memory_bytes": config.kv_cache_mb << 20, "block_size": 32,
                           "enable_chunked_prefill": False,
                           "max_num_batched_tokens": max(4096, config.max_model_len)}
        elif num_gpus < 1:
            device_args["worker_cls"] = "actors.engines.gpu_worker.SharingWorker"
        if backend == "ipc":    # handles of GPU memory, which vLLM passes to its own processes as pickles or not at all
            os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
        if config.dtype == "float32":       # else vLLM's attention multiplies with 10 bits of mantissa
            os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")
        self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(
            model=model, dtype=config.dtype, seed=seed, max_model_len=config.max_model_len,
            max_num_seqs=config.max_num_seqs, tensor_parallel_size=config.tensor_parallel_size,
            enforce_eager=config.enforce_eager, enable_sleep_mode=config.sleeps, trust_remote_code=False,
            load_format="safetensors", logprobs_mode="processed_logprobs", disable_log_stats=True,
            # Not Ray, which vLLM would choose inside a placement group: it would take the other roles' bundles.
            distributed_executor_backend="mp" if config.tensor_parallel_size > 1 else None,
            weight_transfer_config={"backend": backend} if backend else None,
            worker_extension_cls=f"{WorkerExtension.__module__}.{WorkerExtension.__qualname__}", **device_args))
        self._is_updating = False       # from the begin of a sync until its end: weights may be of two versions
        self._num_requests = 0
        self._num_awaited = 0           # requests until the scheduler goes on: see `together`
        self._num_turns = 0
        self._turn = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None     # that the engine is asked from; None before the first

    async def open(self, init_info: dict[str, Any]) -> None:
        """Opens the weight-transfer channel as its backend asks; once, before the first sync."""
        await self._told(self._llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info)))

    async def generate(self, prompt_ids: Sequence[int], *, max_tokens: int, temperature: float, seed: int | None,
                       with_logprobs: bool, cache_salt: str | None = None) -> Generation:
        """One completion of `prompt_ids`; many calls run at once and are batched by the engine."""
        params = SamplingParams(
            max_tokens=max_tokens, temperature=temperature, seed=seed, detokenize=False,
            logprobs=0 if with_logprobs else None, output_kind=RequestOutputKind.FINAL_ONLY)
        answer = await self._answer(prompt_ids, params, cache_salt)
        ids = list(answer.token_ids)
        logprobs = [entry[token].logprob for token, entry in zip(ids, answer.logprobs or (), strict=with_logprobs)]
        spans = tuple((span.version, span.end - span.start) for span in answer.weight_versions or ())
        return Generation(ids, logprobs, answer.finish_reason, spans)

    async def label_logprobs(self, token_ids: Sequence[int], label_ids: Sequence[int]) -> list[float]:
        """Log-probabilities, in nats, of each of `label_ids` as the token after `token_ids`, in one forward pass.

        They are of the whole vocabulary's distribution at temperature 1. label_ids: 1 to 128 ids.
        """
        params = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False, logprob_token_ids=list(label_ids),
                                output_kind=RequestOutputKind.FINAL_ONLY)
        answer = await self._answer(token_ids, params, None)
        assert answer.logprobs is not None
        return [answer.logprobs[0][label].logprob for label in label_ids]

    @contextlib.asynccontextmanager
    async def together(self, num_requests: int) -> AsyncIterator[None]:
        """The `num_requests` requests made inside enter the scheduler in one piece, in the order they are made, and
        have the engine for themselves: how they are batched, and with it every digit, depends on them alone.

        Whoever else asks for this waits for his turn. Prompts share what a prefix cache holds inside a turn only.
        """
        with _death_told():
            async with self._turn:
                self._num_turns += 1
                # Asked for once by vLLM, and then known without a wait: that keeps the requests in their order.
                await self._told(self._llm.get_supported_tasks())
                # One socket takes the pause, the requests and the end of the pause, in this order: no need to wait.
                pausing = asyncio.ensure_future(self._llm.pause_generation(mode="keep", clear_cache=False))
                await asyncio.sleep(0)
                self._num_awaited = num_requests
                try:
                    if num_requests == 0:
                        await self._told(self._llm.resume_generation())
                    yield
                    assert self._num_awaited == 0, f"{self._num_awaited} of {num_requests} requests were not made"
                finally:
                    if self._num_awaited:
                        self._num_awaited = 0
                        await self._told(self._llm.resume_generation())
                    await self._told(pausing)

    async def _answer(self, token_ids: Sequence[int], params: SamplingParams, cache_salt: str | None
                      ) -> CompletionOutput:
        self._num_requests += 1
        # As vLLM's renderer makes it: what comes without a type goes through a thread, in no certain order.
        prompt: dict[str, Any] = {"type": "token", "prompt_token_ids": list(token_ids)}
        if self._num_awaited:
            prompt["cache_salt"] = f"{cache_salt or ''}/{self._num_turns}"
        elif cache_salt is not None:
            prompt["cache_salt"] = cache_salt
        with _death_told():
            try:
                collector = await self._told(self._llm.add_request(str(self._num_requests), prompt, params))
            finally:
                await self._admitted()
            try:
                output = await self._told(collector.get())
            except asyncio.CancelledError:
                await self._llm.abort(collector.request_id, internal=True)
                raise
        assert output.finished
        return output.outputs[0]

    async def _admitted(self) -> None:
        """One request more is with the scheduler, or was refused."""
        if self._num_awaited:
            self._num_awaited -= 1
            if self._num_awaited == 0:
                await self._told(self._llm.resume_generation())

    async def begin_sync(self) -> None:
        """Holds requests in flight and readies the engine to receive weights, after an update that failed too."""
        if self._is_updating:
            await self._told(self._llm.collective_rpc("forget_half_update"))
        # As pause_generation("keep") does it, which then sleeps for 20 ms so that outputs are told of in order.
        await self._told(self._llm.engine_core.pause_scheduler_async(mode="keep", clear_cache=True))
        self._is_updating = True
        await self._told(self._llm.start_weight_update())

    async def receive(self, update_info: dict[str, Any]) -> None:
        """Takes one part of the weights, as the backend describes it."""
        await self._told(self._llm.update_weights(WeightTransferUpdateRequest(update_info)))

    async def end_sync(self, version: str) -> tuple[str, float]:
        """Puts the received weights to use as `version` and lets requests go on; answers as `installed` does."""
        await self._told(self._llm.finish_weight_update(weight_version=version))
        self._is_updating = False
        installed, _ = await asyncio.gather(self.installed(), self._told(self._llm.resume_generation()))
        return installed

    async def sleep(self) -> None:
        """Gives the GPU's memory back once no request is in flight: weights go to the host, the KV cache is dropped."""
        await self._told(self._llm.sleep(level=1, mode="wait"))

    async def wake(self) -> None:
        """Takes the GPU's memory again; requests and new weights are welcome."""
        await self._told(self._llm.wake_up())

    async def version(self) -> str:
        """The version of the last `end_sync`, as the engine's process keeps it."""
        return await self._told(self._llm.get_weight_version())

    async def installed(self) -> tuple[str, float]:
        """One digest of the weights as they lie in the engine, equal in equal engines; and the seconds of vLLM's reload
        in the last update, where they are known."""
        answers = await self._told(self._llm.collective_rpc("weight_marks"))
        joined = "".join(f"{name}={value};" for marks, _ in answers for name, value in sorted(marks.items()))
        digest = hashlib.blake2b(joined.encode(), digest_size=16).hexdigest()
        return digest, max(reload_s for _, reload_s in answers)

    async def installed_digest(self) -> str:
        """One digest of the weights as they lie in the engine; equal engines give equal digests."""
        return (await self.installed())[0]

    async def _told(self, call: Awaitable[Answer]) -> Answer:
        """What the engine's process answers. Raises EngineLost once it is dead: vLLM then ends requests that it knows,
        but no other call, and no request that is only being made."""
        self._loop = asyncio.get_running_loop()
        answering = asyncio.ensure_future(call)
        try:
            with _death_told():
                while not (await asyncio.wait({answering}, timeout=LOOK_S))[0]:
                    if self._llm.errored:
                        raise self._llm.dead_error
                return answering.result()
        finally:
            answering.cancel()

    async def pulse(self) -> None:
        """Returns once the engine's process has answered, whatever it is decoding; may be asked from any event loop.
        Raises EngineLost where it is dead; where it hangs, whoever asks gives up."""
        if self._loop is not None:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self.version(), self._loop))

    def close(self) -> None:
        self._llm.shutdown()


@contextlib.contextmanager
def _death_told() -> Iterator[None]:
    """Whoever asks knows no vLLM: the death of its engine process is told as EngineLost."""
    try:
        yield
    except EngineDeadError as error:
        raise EngineLost("vLLM's engine process is dead") from error


class _Source(WeightSource):
    """A learner's weights as vLLM's senders read them."""

    def __init__(self, shapes: Sequence[tuple[str, torch.dtype, tuple[int, ...]]],
                 whole: Callable[[], Iterator[tuple[str, torch.Tensor]]]) -> None:
        self._shapes, self._whole = shapes, whole

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(*entry) for entry in self._shapes]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        return self._whole()


def open_sender(backend: str, *, rank: int, address: tuple[str, int], num_workers: int, client: Any, bucket_bytes: int,
                shapes: Sequence[tuple[str, torch.dtype, tuple[int, ...]]],
                whole: Callable[[], Iterator[tuple[str, torch.Tensor]]]) -> Any:
    """On every learner rank: what sends its weights straight to the engines' GPUs (`send_weights`, `shutdown`).

    backend: "nccl" (address is where rank 0 and the `num_workers` engine workers meet) or "ipc" (learner and engine
    share the GPU). client: has the four calls of vLLM's VLLMWeightSyncClient. shapes, whole: names, dtypes and whole
    shapes, and an iterator over the whole tensors in the same order; iterating is a collective under ZeRO-3.
    bucket_bytes: what is gathered and sent at a time, in two buffers (nccl) or one (ipc).
    """
    packing = {"packed": True, "packed_buffer_size_bytes": bucket_bytes}
    if backend == "nccl":
        info = NCCLTrainerInitInfo(*address, 1 + num_workers, rank=rank, **packing)
    else:
        info = IPCTrainerInitInfo(rank=rank, **packing)
    return WeightTransferTrainerFactory.trainer_init(info, client=client, source=_Source(shapes, whole))
