"""What runs inside vLLM's worker processes: how an engine takes weights that came through shared memory or gloo.

Named as vLLM's worker extension, so that the worker imports this module, which registers the backends. What is used of
vLLM: WeightTransferEngine and its factory, and the layerwise reload (begin, finish, what a layer still waits for).
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroupGloo
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from actors.carriers.gloo_pair import pair
from actors.carriers.shared_memory import Offer, attach
from rlaif.modeling.weights import Bucket, Part, mark, taken_out


class WorkerExtension:
    """Methods that vLLM adds to its worker; called with collective_rpc."""

    def forget_half_update(self: Any) -> None:
        """After an update that was not finished: the layers that wait for the rest take back what they had, so that
        another update can begin. What the engine then holds is of two versions."""
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload
        from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

        model = self.weight_transfer_engine.model
        for layer in model.modules():
            info = get_layerwise_info(layer)
            info.loaded_weights.clear()
            info.load_numel = 0
        with set_current_vllm_config(self.vllm_config):
            finalize_layerwise_reload(model, self.model_config)
        self._weight_update_active = False

    def weight_marks(self: Any) -> tuple[dict[str, str], float]:
        """The mark of every parameter as it lies here, computed where it lies; packed layers of a CPU keep none. And
        the seconds of the last reload, where it was ours."""
        marks = {name: f"{mark(weight):016x}" for name, weight in self.model_runner.get_model().named_parameters()}
        return marks, getattr(self.weight_transfer_engine, "reload_s", 0.0)


@dataclass
class _NoInitInfo(WeightTransferInitInfo):
    pass


@dataclass
class _BucketUpdate(WeightTransferUpdateInfo):
    """A bucket: its parts (name, dtype, shape, start), their marks, and where its bytes are."""

    parts: list[Any]
    marks: dict[str, int]
    is_partial: bool
    memory: list[Any]       # path, number of bytes, token; of gloo: the numbers of bytes of this and the next bucket


class _BucketTransfer(WeightTransferEngine[Any, _BucketUpdate]):
    """Loads buckets, on a CPU or a GPU.

    vLLM's layerwise reload undoes and redoes what a device does to weights after loading (prepacking on a CPU); its
    seconds in this update are `reload_s`.
    """

    init_info_cls: type[Any] = _NoInitInfo
    update_info_cls = _BucketUpdate

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._is_partial = False
        self.reload_s = 0.0
        self._short: set[str] = set()       # layers that even a whole set of weights does not fill: padding
        if self.device.type == "cpu":
            keep_freed_memory()

    def init_transfer_engine(self, init_info: Any) -> None:
        pass

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        started = time.perf_counter()
        initialize_layerwise_reload(self.model)
        self.reload_s = time.perf_counter() - started

    def update_weights(self, update_info: dict[str, Any]) -> None:
        # The base class synchronizes an accelerator, which a CPU lacks; load_weights here is synchronous.
        self.receive_weights(self.parse_update_info(update_info))
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: _BucketUpdate) -> None:
        parts = tuple(Part(name, dtype, tuple(shape), start) for name, dtype, shape, start in update_info.parts)
        self._is_partial = update_info.is_partial
        memory = self._memory(update_info)
        arrived = taken_out(Bucket(parts, len(memory)), memory, update_info.marks)
        started, self._arriving_s = time.perf_counter(), 0.0
        self.model.load_weights(self._timed(arrived))
        if self.device.type == "cpu":
            self._keep_what_waits()
        self.reload_s += time.perf_counter() - started - self._arriving_s

    def _timed(self, arrived: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """`arrived` on this device; the seconds that this takes are not those of the reload."""
        while True:
            started = time.perf_counter()
            name, tensor = next(arrived, ("", None))
            if tensor is None:
                return
            tensor = tensor.to(self.device)
            self._arriving_s += time.perf_counter() - started
            yield name, tensor

    def _memory(self, update_info: _BucketUpdate) -> Tensor:
        raise NotImplementedError

    def _keep_what_waits(self) -> None:
        """Copies what layers keep that are not whole yet: the sender fills its memory anew."""
        for _, info in self._waiting():
            for _, bound in info.loaded_weights:
                for name, value in bound.arguments.items():
                    if isinstance(value, Tensor) and not value.is_meta:
                        bound.arguments[name] = value.clone()

    def _waiting(self) -> Iterator[tuple[str, Any]]:
        """The layers that have been given some of their weights and wait for others."""
        from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

        for name, layer in self.model.named_modules():
            info = get_layerwise_info(layer)
            if info.can_load() and info.loaded_weights:
                yield name, info

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        short = {name for name, _ in self._waiting()}
        if self._is_partial and short - self._short:
            raise ValueError(f"changed weights must fill the layers that they are of, got {min(short - self._short)} "
                             "with some of its weights only; send whole weights")
        if not self._is_partial:
            self._short = short
        started = time.perf_counter()
        finalize_layerwise_reload(self.model, self.model_config)
        if self.device.type == "cpu":
            self._repack_kept_weights()
        self.reload_s += time.perf_counter() - started

    def _repack_kept_weights(self) -> None:
        # A CPU layer that keeps its plain weight beside the packed one (the embedding that a tied output layer
        # multiplies by) is packed from a temporary tensor during the reload: pack it again from the weight it kept.
        from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

        for layer in self.model.modules():
            if hasattr(layer, "cpu_linear") and layer.weight.numel():
                dispatch_cpu_unquantized_gemm(layer, remove_weight=False)

    def shutdown(self) -> None:
        pass


class SharedMemoryTransfer(_BucketTransfer):
    """Buckets lie in memory that the learner, or the actor of this engine, shares."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._attached: dict[str, tuple[str, Tensor]] = {}      # path -> token and memory

    def _memory(self, update_info: _BucketUpdate) -> Tensor:
        offer = Offer(*update_info.memory)
        token, memory = self._attached.get(offer.path, ("", torch.empty(0)))
        if token != offer.token:
            if len(self._attached) > 1:     # of another sender, or of one that has set other memory aside
                self._attached.clear()
            memory = attach(offer)
            self._attached[offer.path] = offer.token, memory
        return memory


@dataclass
class _GlooInitInfo(WeightTransferInitInfo):
    """Where the learner keeps the store at which pairs meet, and the name of this engine's."""

    host: str
    port: int
    name: str
    timeout_s: float


class GlooTransfer(_BucketTransfer):
    """Buckets come from the learner over the network, the next one while this one is loaded."""

    init_info_cls = _GlooInitInfo

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._pair: ProcessGroupGloo | None = None
        self._memories: list[Tensor] = []
        self._coming: dict[int, tuple[Tensor, Any]] = {}        # bucket -> its memory and what says that it is there

    def init_transfer_engine(self, init_info: _GlooInitInfo) -> None:
        self._pair = None
        self._pair = pair(init_info.host, init_info.port, f"{init_info.name}-{self._rank}", 1, init_info.timeout_s)

    @property
    def _rank(self) -> int:
        return self.parallel_config.rank

    def start_weight_update(self) -> None:
        self._coming.clear()        # of an update that failed
        super().start_weight_update()

    def _memory(self, update_info: _BucketUpdate) -> Tensor:
        number, sizes, largest = update_info.memory
        assert self._pair is not None, "the channel was not opened"
        if not self._memories or len(self._memories[0]) < largest:
            self._memories = [torch.empty(largest, dtype=torch.uint8) for _ in range(2)]
        for later, size in enumerate(sizes):
            if number + later not in self._coming:
                piece = self._memories[(number + later) % 2][:size]
                self._coming[number + later] = piece, self._pair.recv([piece], 0, 0)
        piece, coming = self._coming.pop(number)
        coming.wait()
        return piece


def keep_freed_memory() -> None:
    """Makes this process keep the memory that it frees for what it allocates next.

    A reload allocates and frees every layer's weights; with glibc's defaults each large block is mapped anew and its
    pages come one fault at a time, which costs several times what the copy does.
    """
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(-1, 2**31 - 1)     # M_TRIM_THRESHOLD: bytes at the end that are given back
        libc.mallopt(-4, 0)             # M_MMAP_MAX: blocks that are mapped by themselves
    except (OSError, AttributeError):
        pass    # another C library: slower, and just as right


BACKENDS: Mapping[str, type[_BucketTransfer]] = {"shared_memory": SharedMemoryTransfer, "gloo": GlooTransfer}

for _name, _backend in BACKENDS.items():
    if _name not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(_name, _backend)
