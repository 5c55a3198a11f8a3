"""vLLM's worker on a part of a GPU. What is used of vLLM: its GPU worker, when it starts and when it has started."""

from __future__ import annotations

import contextlib
from typing import Any

from vllm.v1.worker.gpu_worker import Worker

from actors.engines.gpu_turns import starting_alone


class SharingWorker(Worker):
    """A worker that starts while no other one does on its GPU.

    What is taken of the GPU's memory from its first look until its KV cache is there, it counts as its own: another
    engine's KV cache would leave it none.
    """

    def init_device(self) -> None:
        self._starting = contextlib.ExitStack()
        self._starting.enter_context(starting_alone())
        super().init_device()

    def compile_or_warm_up_model(self) -> Any:
        with self._starting:
            return super().compile_or_warm_up_model()
