"""What a direct sender (nccl, ipc) calls on the inference side: the rollout actors, as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray


class SyncClient:
    """vLLM's VLLMWeightSyncClient over rollout actors; every engine gets its own ranks in the group.

    Source: the protocol in vllm.distributed.weight_transfer.base.
    """

    def __init__(self, rollouts: Sequence[ray.actor.ActorHandle], workers_per_engine: int) -> None:
        self._rollouts, self._workers_per_engine = rollouts, workers_per_engine
        self.version = 0

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        infos = [dict(init_info) for _ in self._rollouts]
        for index, info in enumerate(infos):
            if "rank_offset" in info:
                info["rank_offset"] += index * self._workers_per_engine
        ray.get([actor.open_channel.remote(info) for actor, info in zip(self._rollouts, infos, strict=True)])

    def start_weight_update(self) -> None:
        ray.get([actor.begin_sync.remote() for actor in self._rollouts])

    def update_weights(self, update_info: dict[str, Any]) -> None:
        ray.get([actor.receive.remote(update_info) for actor in self._rollouts])

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        ray.get([actor.end_sync.remote(self.version) for actor in self._rollouts])
