"""Who carries buckets from the learner to the engines: memory that both see, or gloo pairs over the network."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ray
import torch
from torch import Tensor

from actors.carriers.gloo_pair import meeting_place, pair
from actors.carriers.shared_memory import Offer, SharedMemory


class SharedMemoryLine:
    """Two buckets in memory that engines of this machine read; to those of others they go through the object store."""

    def __init__(self) -> None:
        self._memories: list[SharedMemory] = []

    def open(self, rollouts: Sequence[Any], workers_per_engine: int, timeout_s: float) -> None:
        """Nothing is to be done: engines find the memory by what they are told of a stream."""

    def memories(self, num_bytes: int) -> list[Tensor]:
        """Two of `num_bytes` bytes at least: those of the last stream, where they are large enough."""
        if not self._memories or self._memories[0].offer.num_bytes < num_bytes:
            self.forget()
            self._memories = [SharedMemory(num_bytes) for _ in range(2)]
        return [memory.tensor for memory in self._memories]

    @property
    def offers(self) -> tuple[Offer, ...]:
        return tuple(memory.offer for memory in self._memories)

    def carry(self, memory: Tensor, actors: Iterable[Any], near: Mapping[Any, bool]) -> dict[Any, Any]:
        """What goes to each engine beside its call: a reference to the bucket, where it cannot see the memory."""
        far = [actor for actor in actors if not near[actor]]
        if not far:
            return {}
        data = ray.put(memory.numpy())
        return dict.fromkeys(far, data)

    def settle(self, actors: Iterable[Any]) -> None:
        """Nothing is under way beside the calls."""

    def forget(self) -> None:
        """The next stream gets other memory: an engine that was left out may still read this one."""
        for memory in self._memories:
            memory.close()
        self._memories = []


class GlooLine:
    """Two buckets in this process; a gloo pair with each worker of each engine carries them over the network."""

    offers: tuple[Offer, ...] = ()

    def __init__(self) -> None:
        self._memories: list[Tensor] = []
        self._pairs: dict[Any, list[Any]] = {}
        self._under_way: list[tuple[Any, Any]] = []     # engine and what is being sent to it

    def open(self, rollouts: Sequence[Any], workers_per_engine: int, timeout_s: float) -> None:
        """Meets the workers of `rollouts`; of those met before (a restarted actor is another one) anew."""
        host = ray.util.get_node_ip_address()
        self._store, port = meeting_place(host, timeout_s)
        names = [uuid.uuid4().hex for _ in rollouts]
        asked = [actor.open_channel.remote({"host": host, "port": port, "name": name, "timeout_s": timeout_s})
                 for actor, name in zip(rollouts, names, strict=True)]
        for actor, name in zip(rollouts, names, strict=True):
            self._pairs[actor] = [pair(host, port, f"{name}-{worker}", 0, timeout_s, self._store)
                                  for worker in range(workers_per_engine)]
        ray.get(asked, timeout=timeout_s)

    def memories(self, num_bytes: int) -> list[Tensor]:
        if not self._memories or len(self._memories[0]) < num_bytes:
            self._memories = [torch.empty(num_bytes, dtype=torch.uint8) for _ in range(2)]
        return self._memories

    def carry(self, memory: Tensor, actors: Iterable[Any], near: Mapping[Any, bool]) -> dict[Any, Any]:
        for actor in actors:
            self._under_way += [(actor, each.send([memory], 1, 0)) for each in self._pairs[actor]]
        return {}

    def settle(self, actors: Iterable[Any]) -> None:
        """What was sent to `actors` has left; the pairs of those that were left out are given up."""
        left = set(actors)
        for actor, sending in self._under_way:
            if actor in left:
                sending.wait()
            else:
                self._pairs.pop(actor, None)
        self._under_way = []

    def forget(self) -> None:
        self._memories = []
