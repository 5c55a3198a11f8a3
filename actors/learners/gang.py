"""The learners as one: a gang of LearnerActors that meet, step and publish together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ray

from actors.carriers.tables import fewer
from actors.cluster.placement import Placement
from actors.engines.receiving import Channel
from actors.learners.learner import LearnerActor, LearnerSpec
from actors.learners.ranks import LearnersLost, Ranks
from actors.learners.sending import Order, Published
from rlaif.config.faults import FaultsConfig
from rlaif.metrics import Metric, merge
from rlaif.pipeline.board import Board
from rlaif.running.manifest import Entry

__all__ = ["Gang", "LearnersLost"]


class Gang:
    """`num_actors` learners of one `spec`; every call goes to all ranks, results are merged.

    Every call raises LearnersLost where a rank is gone or hangs; then `rebuild` makes others, which hold nothing of
    what was trained: load_state, or start from `spec`.
    """

    def __init__(self, spec: LearnerSpec, placement: Placement, num_actors: int, faults: FaultsConfig | None = None, *,
                 board: Board | None = None, say: Callable[[str], None] = print) -> None:
        self._ranks = Ranks("learner", lambda rank: LearnerActor.options(**placement.options("learner", rank)).remote(
            spec, rank, num_actors), num_actors, faults or FaultsConfig(), board or Board(), say,
            lacks=lambda rank: placement.lacks("learner", rank), place_timeout_s=placement.timeout_s)

    async def join(self) -> str:
        """Returns in words how the learners read rows, where that is not the fast way; "" where it is."""
        host, port = await self._address()
        remarks = await self._ranks.all("the ranks to meet and build the model",
                                        lambda actor: actor.join.remote(host, port))
        await self._ranks.met()
        return remarks[0]

    async def rebuild(self) -> None:
        """Other processes in the ranks' places, joined. Raises BudgetSpent after faults.max_learner_restarts of them.
        """
        await self._ranks.rebuild()
        await self.join()

    @property
    def handles(self) -> dict[str, Any]:
        """Every rank by its name."""
        return {f"learner-{rank}": actor for rank, actor in enumerate(self._ranks.actors)}

    def _fewer(self, scored: Sequence[ray.ObjectRef]) -> list[ray.ObjectRef]:
        return fewer(scored, len(self._ranks.actors))

    @property
    def num_rebuilt(self) -> int:
        return self._ranks.num_rebuilt

    async def _address(self) -> tuple[str, int]:
        """Where the ranks can meet, on the node of rank 0."""
        return (await self._ranks.all("an address to meet at", lambda actor: actor.address.remote()))[0]

    async def update(self, rows: ray.ObjectRef) -> dict[str, Metric]:
        return merge(await self._ranks.all("an update on a batch", lambda actor: actor.update.remote(rows)))

    async def measure(self, rows: ray.ObjectRef) -> dict[str, Metric]:
        return merge(await self._ranks.all("figures on rows", lambda actor: actor.measure.remote(rows)))

    async def judge(self, rows: ray.ObjectRef) -> tuple[np.ndarray, np.ndarray]:
        """Class logits `[N, S, K]` and scores `[N, 2]` of JUDGED rows, in their order."""
        parts = await self._ranks.all("scores of rows", lambda actor: actor.judge.remote(rows))
        parts = [part for part in parts if part[0]]
        order = np.argsort([row for chosen, _, _ in parts for row in chosen])
        return np.concatenate([part[1] for part in parts])[order], np.concatenate([part[2] for part in parts])[order]

    async def update_policy(self, chosen: ray.ObjectRef, kl_coefficient: float, scored: Sequence[ray.ObjectRef]
                            ) -> dict[str, Metric]:
        """chosen: group_id and sample of the rows to train. scored: SCORED batches that hold them."""
        joined = self._fewer(scored)
        return merge(await self._ranks.all(
            "the policy update", lambda actor: actor.update_policy.remote(chosen, kl_coefficient, *joined)))

    async def release(self) -> None:
        """Gives back the GPU memory that no rank needs until the next update."""
        await self._ranks.all("memory to be given back", lambda actor: actor.release.remote())

    async def drift(self, scored: Sequence[ray.ObjectRef]) -> dict[str, Metric]:
        """Ranks share the work, and each knows the whole: the first answer is the answer."""
        return (await self._ranks.all("the drift of the policy", lambda actor: actor.drift.remote(*scored)))[0]

    async def publish(self, order: Order, rollouts: Sequence[ray.actor.ActorHandle]) -> Published:
        """See actors.training.weight_sync, which calls it."""
        return (await self._ranks.all("the weights to be sent",
                                      lambda actor: actor.publish.remote(order, list(rollouts))))[0]

    async def open_channel(self, channel: Channel, rollouts: Sequence[ray.actor.ActorHandle]) -> None:
        """See actors.training.weight_sync, which calls it."""
        address = await self._address()
        await self._ranks.all("the channel to the engines",
                              lambda actor: actor.open_channel.remote(channel, address, list(rollouts)))

    async def save_state(self, folder: str) -> dict[str, Entry]:
        """Writes the learners' state into `folder`; returns its files, by their path there."""
        written = await self._ranks.all("a checkpoint", lambda actor: actor.save_state.remote(folder))
        return {name: entry for files in written for name, entry in files.items()}

    async def load_state(self, folder: str) -> None:
        await self._ranks.all("a checkpoint to be read", lambda actor: actor.load_state.remote(folder))

    async def save(self, folder: str) -> None:
        await self._ranks.all("a model folder", lambda actor: actor.save.remote(folder))
