"""The receiving side of weights, in a rollout actor: an engine serves whole weights of one version, or nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any, Protocol

import numpy as np

from actors.carriers.shared_memory import Offer, SharedMemory, is_here
from rlaif.modeling.weights import Manifest, Shape, digest, plan_buckets, refuse_mismatch, version_label


class InstallsWeights(Protocol):
    """What is asked of an engine; actors.engines.engine.Engine has it."""

    async def open(self, init_info: dict[str, Any]) -> None: ...
    async def begin_sync(self) -> None: ...
    async def receive(self, update_info: dict[str, Any]) -> None: ...
    async def end_sync(self, version: str) -> tuple[str, float]: ...


class HalfSentWeights(Exception):
    """The engine was asked what it holds while its weights are of two versions."""


@dataclass(frozen=True)
class Channel:
    """What kind of channel leads from the learners to the engines."""

    backend: str                # one of rlaif.config.train.SYNC_BACKENDS
    workers_per_engine: int     # GPUs that an engine spans, >= 1
    bucket_bytes: int
    dtype: str                  # of the engines
    timeout_s: float


@dataclass(frozen=True)
class Coming:
    """What is told of a stream of weights before its first byte."""

    stream: str                         # no two streams have the same
    version: int
    manifest: Manifest
    num_bytes: int                      # of all tensors
    max_bucket_bytes: int
    memories: tuple[Offer, ...] = ()    # where buckets will lie, bucket n in memory n % len(memories); none: gloo, nccl


@dataclass(frozen=True)
class Held:
    """Whole weights that an engine holds: the label of their version, and a digest of them as they lie there."""

    label: str = ""         # "" before the first sync: what the policy's folder holds
    installed: str = ""
    reload_s: float = 0.0   # of the seconds of the sync: the engine's own, spent on what it makes of weights


class Receiver:
    """Weights on their way into `engine`, whose model has `shapes`. Every call but `open` is of one stream."""

    def __init__(self, engine: InstallsWeights, shapes: Mapping[str, Shape]) -> None:
        self._engine, self._shapes = engine, shapes
        self._turn = asyncio.Condition()
        self._coming: Coming | None = None
        self._num_begun = self._num_loaded = 0      # buckets
        self._manifest, self._marks = Manifest({}), {}
        self._own: list[SharedMemory] = []
        self._why = ""
        self.is_whole = True
        self.held = Held()

    def refuse_prompts(self) -> None:
        """Raises HalfSentWeights where the engine holds no whole weights: after an update that was not finished."""
        if not self.is_whole:
            raise HalfSentWeights("the engine must hold whole weights to write completions, got some of "
                                  f"{self._why}; it goes on once it is sent whole weights")

    async def whole(self) -> None:
        """Returns once the engine holds whole weights: at once, or after the update that is under way; after one that
        failed, with the next. Who sends it says when an engine is given up."""
        async with self._turn:
            await self._turn.wait_for(lambda: self.is_whole)

    async def open(self, init_info: dict[str, Any]) -> None:
        """Opens the channel to the learner, where the backend has one."""
        await self._engine.open(init_info)

    async def begin(self, coming: Coming) -> bool:
        """Readies the engine for a stream; says whether the memory of its buckets is to be found here.

        Raises ValueError, the engine untouched, where the weights do not fit the model, or a part of them is sent to
        an engine that was never sent the whole.
        """
        async with self._turn:
            refuse_mismatch(coming.manifest, self._shapes, coming.num_bytes)
            if coming.manifest.is_partial and not (self.is_whole and self.held.label):
                raise ValueError("an engine must hold whole weights to be sent the changed ones, got one that does "
                                 "not; send whole weights")
            is_near = all(map(is_here, coming.memories))
            self._coming, self.is_whole = coming, False
            self._num_begun = self._num_loaded = 0
            self._why = f"version {coming.version}"
            self._turn.notify_all()     # who waits for a bucket of the stream before waits in vain
            await self._engine.begin_sync()
            return is_near

    async def receive(self, stream: str, number: int, marks: Mapping[str, int], data: np.ndarray | None = None) -> None:
        """Loads bucket `number`, each weight checked against its mark. data: the bucket, where its memory is not here.

        Calls are made without awaiting the one before, and Ray does not keep their order: each awaits its turn. The
        engine is given a bucket while it loads the one before, so that it need not wait for the next.
        """
        async with self._turn:
            await self._turn.wait_for(lambda: self._num_begun == number or not self._awaits(stream))
            coming = self._of(stream)
            loading = asyncio.ensure_future(self._engine.receive(self._described(coming, number, marks, data)))
            await asyncio.sleep(0)      # it has been sent off before the next one is
            self._num_begun += 1
            self._turn.notify_all()
        await self._loaded(coming, loading)
        self._marks = self._marks | marks

    def _described(self, coming: Coming, number: int, marks: Mapping[str, int], data: np.ndarray | None
                   ) -> dict[str, Any]:
        """What the engine's worker is told of a bucket: see actors.engines.engine_worker."""
        buckets = plan_buckets(coming.manifest, coming.max_bucket_bytes)
        memory: list[Any]
        if not coming.memories:
            sizes = [bucket.num_bytes for bucket in buckets]
            memory = [number, sizes[number:number + 2], max(sizes)]
        elif data is None:
            memory = list(astuple(coming.memories[number % len(coming.memories)]))
        else:
            memory = list(astuple(self._copied(coming, number, data)))
        return {"parts": [astuple(part) for part in buckets[number].parts], "marks": dict(marks),
                "is_partial": coming.manifest.is_partial, "memory": memory}

    def _copied(self, coming: Coming, number: int, data: np.ndarray) -> Offer:
        """Memory of this machine with the bytes of `data`; kept for the buckets to come, as the learner keeps its own.
        """
        size = max(memory.num_bytes for memory in coming.memories)
        if not self._own or self._own[0].offer.num_bytes < size:
            self._own = [SharedMemory(size) for _ in coming.memories]
        memory = self._own[number % len(self._own)]
        memory.tensor[:len(data)].numpy()[:] = data
        return memory.offer

    async def receive_direct(self, update_info: dict[str, Any]) -> None:
        """Takes part in what a direct backend (nccl, ipc) sends."""
        coming = self._coming
        assert coming is not None
        await self._loaded(coming, asyncio.ensure_future(self._engine.receive(update_info)))

    async def _loaded(self, coming: Coming, loading: asyncio.Future[None]) -> None:
        try:
            await loading
        except BaseException:
            async with self._turn:
                if self._coming is coming:
                    self._coming = None     # what this stream still sends is refused
                self._turn.notify_all()
            raise
        if self._coming is coming:
            self._num_loaded += 1

    async def end(self, stream: str, checksum: str | None) -> Held:
        """Puts the weights to use. checksum: digest of all weights on the learner's side, to be found here too; None
        where the backend (nccl, ipc) gives no marks.

        Raises ValueError, and the engine goes on refusing prompts, where the digest is another.
        """
        async with self._turn:
            coming = self._of(stream)
            if checksum is not None:
                num_buckets = len(plan_buckets(coming.manifest, coming.max_bucket_bytes))
                if self._num_loaded != num_buckets:
                    raise ValueError(f"weights must arrive in {num_buckets} buckets, got {self._num_loaded}")
                manifest = Manifest(self._manifest.tensors | coming.manifest.tensors)
                found = digest(manifest, self._marks)
                if found != checksum:
                    raise ValueError(f"weights must arrive with digest {checksum}, got {found}")
                self._manifest = manifest
            label = version_label(coming.version, "direct" if checksum is None else checksum)
            installed = await self._engine.end_sync(label)
            self._coming, self.is_whole, self.held = None, True, Held(label, *installed)
            self._turn.notify_all()     # who waits for whole weights
            return self.held

    def _awaits(self, stream: str) -> bool:
        return self._coming is not None and self._coming.stream == stream

    def _of(self, stream: str) -> Coming:
        if self._coming is None or not self._awaits(stream):
            raise ValueError("a bucket must be of the stream that the engine awaits, got one of another stream or of "
                             "one that failed")
        return self._coming
