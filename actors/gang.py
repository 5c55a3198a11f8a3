"""The learners as one: a gang of LearnerActors that meet, step and publish together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import ray

from actors.learner import LearnerActor, LearnerSpec
from actors.placement import Placement
from rlaif.metrics import Metric, merge
from rlaif.modeling.weights import Manifest


class Gang:
    """`num_actors` learners of one `spec`; every call goes to all ranks, results are merged."""

    def __init__(self, spec: LearnerSpec, placement: Placement, num_actors: int) -> None:
        self._actors = [LearnerActor.options(**placement.options("learner", rank)).remote(spec, rank, num_actors)
                        for rank in range(num_actors)]

    async def join(self) -> str:
        """Returns in words how the learners read rows, where that is not the fast way; "" where it is."""
        host, port = await self._actors[0].address.remote()
        return (await asyncio.gather(*(actor.join.remote(host, port) for actor in self._actors)))[0]

    async def update(self, rows: ray.ObjectRef) -> dict[str, Metric]:
        return merge(await asyncio.gather(*(actor.update.remote(rows) for actor in self._actors)))

    async def measure(self, rows: ray.ObjectRef) -> dict[str, Metric]:
        return merge(await asyncio.gather(*(actor.measure.remote(rows) for actor in self._actors)))

    async def judge(self, rows: ray.ObjectRef) -> tuple[np.ndarray, np.ndarray]:
        """Class logits `[N, S, K]` and scores `[N, 2]` of JUDGED rows, in their order."""
        parts = await asyncio.gather(*(actor.judge.remote(rows) for actor in self._actors))
        parts = [part for part in parts if part[0]]
        order = np.argsort([row for chosen, _, _ in parts for row in chosen])
        return np.concatenate([part[1] for part in parts])[order], np.concatenate([part[2] for part in parts])[order]

    async def update_policy(self, chosen: ray.ObjectRef, kl_coefficient: float, scored: Sequence[ray.ObjectRef]
                            ) -> dict[str, Metric]:
        """chosen: group_id and sample of the rows to train. scored: SCORED batches that hold them."""
        return merge(await asyncio.gather(*(
            actor.update_policy.remote(chosen, kl_coefficient, *scored) for actor in self._actors)))

    async def release(self) -> None:
        """Gives back the GPU memory that no rank needs until the next update."""
        await asyncio.gather(*(actor.release.remote() for actor in self._actors))

    async def drift(self, scored: Sequence[ray.ObjectRef]) -> dict[str, Metric]:
        """Ranks share the work, and each knows the whole: the first answer is the answer."""
        return (await asyncio.gather(*(actor.drift.remote(*scored) for actor in self._actors)))[0]

    async def publish(self, bucket_bytes: int) -> tuple[Manifest, list[ray.ObjectRef]]:
        published = await asyncio.gather(*(actor.publish.remote(bucket_bytes) for actor in self._actors))
        return published[0]

    async def open_channel(self, backend: str, rollouts: Sequence[ray.actor.ActorHandle], num_workers: int) -> None:
        address = await self._actors[0].address.remote()
        await asyncio.gather(*(actor.open_channel.remote(backend, address, rollouts, num_workers)
                               for actor in self._actors))

    async def send(self, version: int) -> None:
        await asyncio.gather(*(actor.send.remote(version) for actor in self._actors))

    async def save_state(self, folder: str) -> None:
        await asyncio.gather(*(actor.save_state.remote(folder) for actor in self._actors))

    async def load_state(self, folder: str) -> None:
        await asyncio.gather(*(actor.load_state.remote(folder) for actor in self._actors))

    async def save(self, folder: str) -> None:
        await asyncio.gather(*(actor.save.remote(folder) for actor in self._actors))
