"""Who carries buckets from the learner to the engines: memory that both see, or gloo pairs over the network.

An engine that cannot be reached is told of, by its actor and in words; nothing is raised, and the others go on.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import ray
import torch
from ray.exceptions import RayError
from torch import Tensor

from actors.carriers.gloo_pair import meeting_place, pair
from actors.carriers.shared_memory import Offer, SharedMemory

LOOK_S = 0.1    # seconds between looks at an engine that is to be met

Unreached = dict[Any, str]      # actor -> why


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

    def carry(self, memory: Tensor, actors: Iterable[Any], near: Mapping[Any, bool]
              ) -> tuple[dict[Any, Any], Unreached]:
        """What goes to each engine beside its call: a reference to the bucket, where it cannot see the memory."""
        far = [actor for actor in actors if not near[actor]]
        if not far:
            return {}, {}
        data = ray.put(memory.numpy())
        return dict.fromkeys(far, data), {}

    def settle(self, actors: Iterable[Any]) -> Unreached:
        """Nothing is under way beside the calls."""
        return {}

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
        self._under_way: deque[list[tuple[Any, Any]]] = deque()     # by bucket: engine and what is being sent to it

    def open(self, rollouts: Sequence[Any], workers_per_engine: int, timeout_s: float) -> None:
        """Meets the workers of `rollouts`; of those met before (a restarted actor is another one) anew. Who is not met
        in `timeout_s` gets no bucket, which is told when one is carried."""
        host = ray.util.get_node_ip_address()
        self._store, port = meeting_place(host, timeout_s)
        asked = {}
        for actor in rollouts:
            self._pairs.pop(actor, None)
            name = uuid.uuid4().hex
            # Each through a connection of its own to the store: one that waits holds up all others of a connection.
            meeting = _beside(lambda name=name: [pair(host, port, f"{name}-{worker}", 0, timeout_s)
                                                 for worker in range(workers_per_engine)])
            asked[actor] = meeting, actor.open_channel.remote(
                {"host": host, "port": port, "name": name, "timeout_s": timeout_s})
        deadline = time.monotonic() + timeout_s
        for actor, (meeting, answer) in asked.items():
            pairs = _met(meeting, answer, deadline)
            if pairs is not None:
                self._pairs[actor] = pairs

    def memories(self, num_bytes: int) -> list[Tensor]:
        self._under_way.clear()     # of a stream that broke off
        if not self._memories or len(self._memories[0]) < num_bytes:
            self._memories = [torch.empty(num_bytes, dtype=torch.uint8) for _ in range(2)]
        return self._memories

    def carry(self, memory: Tensor, actors: Iterable[Any], near: Mapping[Any, bool]
              ) -> tuple[dict[Any, Any], Unreached]:
        """Nothing goes beside a call; who cannot be sent to is told of."""
        sent, unreached = [], {}
        for actor in actors:
            try:
                sent += [(actor, each.send([memory], 1, 0)) for each in self._pairs[actor]]
            except KeyError:
                unreached[actor] = "no channel leads to it: it did not meet the learner"
            except RuntimeError as error:
                unreached[actor] = self._broken(actor, error)
        self._under_way.append(sent)
        return {}, unreached

    def settle(self, actors: Iterable[Any]) -> Unreached:
        """What was sent longest ago to `actors` has left; the pairs of those that were left out are given up."""
        left, unreached = set(actors), Unreached()
        for actor, sending in self._under_way.popleft():
            if actor not in left:
                self._pairs.pop(actor, None)
                continue
            try:
                sending.wait()
            except RuntimeError as error:
                unreached[actor] = self._broken(actor, error)
                left.discard(actor)
        return unreached

    def _broken(self, actor: Any, error: RuntimeError) -> str:
        self._pairs.pop(actor, None)
        return f"the channel to it broke: {str(error).splitlines()[0]}"

    def forget(self) -> None:
        self._memories = []


def _beside(work: Callable[[], Any]) -> Future[Any]:
    """Does `work` in a thread that, unlike an executor's, holds up no process's end."""
    found: Future[Any] = Future()

    def done() -> None:
        try:
            found.set_result(work())
        except Exception as error:
            found.set_exception(error)

    threading.Thread(target=done, daemon=True).start()
    return found


def _met(meeting: Future[Any], answer: ray.ObjectRef, deadline: float) -> Any:
    """The pairs with an engine, once it says that it has met them; None where it cannot, or is gone."""
    while time.monotonic() < deadline:
        ended, _ = ray.wait([answer], timeout=LOOK_S)
        if ended:
            try:
                ray.get(answer)
                return meeting.result(max(0.0, deadline - time.monotonic()))
            except (RayError, RuntimeError, TimeoutError):
                return None
    return None
