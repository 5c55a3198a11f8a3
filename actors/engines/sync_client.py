"""What goes from GPU to GPU by vLLM's own senders (nccl, ipc): the learner's side, and the engines' as they see it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
import torch
from torch import Tensor

from actors.engines.receiving import Channel, Coming, Held
from rlaif.modeling.weights import Manifest, Shape, manifest_of, plan_buckets


class SyncClient:
    """vLLM's VLLMWeightSyncClient over rollout actors; every engine gets its own ranks in the group.

    `coming` is set before each transfer; `held` is what each engine holds after it.

    Source: the protocol in vllm.distributed.weight_transfer.base.
    """

    def __init__(self, rollouts: Sequence[ray.actor.ActorHandle], workers_per_engine: int, timeout_s: float) -> None:
        self._rollouts, self._workers_per_engine, self._timeout_s = rollouts, workers_per_engine, timeout_s
        self.coming: Coming | None = None
        self.held: dict[ray.actor.ActorHandle, Held] = {}

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        infos = [dict(init_info) for _ in self._rollouts]
        for index, info in enumerate(infos):
            if "rank_offset" in info:
                info["rank_offset"] += index * self._workers_per_engine
        self._all([actor.open_channel.remote(info) for actor, info in zip(self._rollouts, infos, strict=True)])

    def start_weight_update(self) -> None:
        self._all([actor.begin_sync.remote(self.coming) for actor in self._rollouts])

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._all([actor.receive_direct.remote(update_info) for actor in self._rollouts])

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        assert self.coming is not None
        held = self._all([actor.end_sync.remote(self.coming.stream, None) for actor in self._rollouts])
        self.held = dict(zip(self._rollouts, held, strict=True))

    def _all(self, answers: list[ray.ObjectRef]) -> list[Any]:
        return ray.get(answers, timeout=self._timeout_s)


def buffer_bytes(manifest: Manifest, asked: int) -> int:
    """What vLLM's senders gather at a time: `asked`, or as much as the largest weight, which ipc would refuse."""
    return max(asked, *(bucket.num_bytes for bucket in plan_buckets(manifest, 1)))


class DirectSender:
    """Weights from GPU to GPU, as vLLM's own senders do it: all engines together, or none."""

    def __init__(self, rank: int, channel: Channel, address: tuple[str, int], rollouts: Sequence[Any],
                 shapes: Sequence[tuple[str, torch.dtype, Shape]],
                 whole: Callable[[], Iterator[tuple[str, Tensor]]]) -> None:
        from actors.engines.engine import open_sender

        self.manifest = manifest_of(shapes, getattr(torch, channel.dtype))
        dtypes = {name: getattr(torch, dtype) for name, (dtype, _) in self.manifest.tensors.items()}
        self._bucket_bytes = channel.bucket_bytes
        self._client = SyncClient(rollouts, channel.workers_per_engine, channel.timeout_s)
        self._sender = open_sender(
            channel.backend, rank=rank, address=address, num_workers=len(rollouts) * channel.workers_per_engine,
            client=self._client, bucket_bytes=buffer_bytes(self.manifest, channel.bucket_bytes),
            shapes=[(name, dtypes[name], shape) for name, _, shape in shapes],
            whole=lambda: ((name, tensor.to(dtypes[name])) for name, tensor in whole()))

    def send(self, version: int) -> dict[Any, Held]:
        """Sends the weights of now, to all engines; what each holds then, on rank 0. Raises what goes wrong with any.
        """
        self._client.coming = Coming(uuid.uuid4().hex, version, self.manifest, self.manifest.num_bytes,
                                     self._bucket_bytes)
        self._sender.send_weights()
        return self._client.held

    def close(self) -> None:
        self._sender.shutdown()
