"""Weights from the learners to the rollout engines, as the driver asks for them.

    weights = WeightSync(learners, config.sync, config.rollout.engine, timeout_s=..., is_partial=...)
    await weights.open(rollouts)                        # before the first sync, and for each engine that was restarted
    sent = await weights.send(version, rollouts)        # a new version, to all
    sent = await weights.send(version, missed, is_again=True)       # the same, to engines that missed it
    sent.refuse_losses()

No version is kept: an engine that missed one gets it from the learners again, which costs no memory; they refuse once
they have trained on, and then the next sync, which is to come after that update, brings the engine along.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from actors.engines.receiving import Channel
from actors.learners.gang import Gang
from actors.learners.sending import DIRECT, Order, Outcome, Published
from rlaif.config.train import EngineConfig, WeightSyncConfig


@dataclass(frozen=True)
class Sent:
    """A version, and what became of each engine, in the order in which they were given."""

    version: int
    label: str
    checksum: str
    outcomes: list[Outcome]
    num_bytes: int
    is_partial: bool
    seconds: float
    missed: list[int] = field(init=False)       # indices of engines without whole weights

    def __post_init__(self) -> None:
        object.__setattr__(self, "missed", [index for index, outcome in enumerate(self.outcomes)
                                            if outcome.held is None])

    def refuse_losses(self) -> str:
        """The checksum that every engine holds. Raises RuntimeError if one does not."""
        for index in self.missed:
            raise RuntimeError(f"rollout-{index} must hold weights {self.label}, got none: "
                               f"{self.outcomes[index].error}")
        return self.checksum


class WeightSync:
    """Brings the weights of `learners` to rollout actors.

    is_partial: training leaves some weights as they are (LoRA, frozen parts): after a whole set, the others alone go.
    timeout_s: an engine that does not take a bucket for so long is left out, and the others go on.
    """

    def __init__(self, learners: Gang, config: WeightSyncConfig, engine: EngineConfig, *, timeout_s: float,
                 is_partial: bool = False) -> None:
        self._learners, self._config, self._engine = learners, config, engine
        self._timeout_s = timeout_s
        self._is_partial = is_partial and config.backend not in DIRECT
        self._usual = (-1, "")          # the last version, and the digest with which its weights lie in most engines
        self._was_whole = False         # whether these learners have sent a whole set: they know the marks of all

    async def open(self, rollouts: Sequence[Any]) -> None:
        """Opens the channel to `rollouts`, where the backend has one. Direct backends know one group of engines: give
        all, and the channel is opened anew."""
        if self._config.backend != "shared_memory":
            await self._learners.open_channel(Channel(
                self._config.backend, self._engine.tensor_parallel_size, self._config.bucket_mb << 20,
                self._engine.dtype, self._timeout_s), rollouts)

    async def send(self, version: int, rollouts: Sequence[Any], *, is_again: bool = False) -> Sent:
        """Sends the weights of now as `version`. An engine that fails is told of in the answer; nothing is raised.

        is_again: `version` was sent before; raises actors.learners.sending.WeightsMovedOn where the learners hold
        another one by now.
        """
        started = time.perf_counter()
        is_partial = self._is_partial and self._was_whole and await _all_whole(rollouts, self._timeout_s)
        order = Order(version, self._config.bucket_mb << 20, self._engine.dtype, self._timeout_s, is_partial, is_again)
        published: Published = await self._learners.publish(order, rollouts)
        self._was_whole = True
        digests = [outcome.held.installed for outcome in published.outcomes if outcome.held is not None]
        if digests and self._usual[0] != version:
            self._usual = version, max(digests, key=digests.count)
        return Sent(version, published.label, published.checksum, _alike(published.outcomes, self._usual[1]),
                    published.num_bytes, is_partial,
                    time.perf_counter() - started)


async def _all_whole(rollouts: Sequence[Any], timeout_s: float) -> bool:
    """Whether every engine holds whole weights that a sync brought; one that does not answer gets whole ones."""
    held = await asyncio.gather(*(asyncio.wait_for(_label(actor), timeout_s) for actor in rollouts),
                                return_exceptions=True)
    return all(isinstance(label, str) and label for label in held)


async def _label(actor: Any) -> str:
    return (await actor.holds.remote()).label


def _alike(outcomes: Sequence[Outcome], usual: str) -> list[Outcome]:
    """The outcomes, where an engine in which the weights lie with another digest than `usual` is told of as a failure;
    one that is sent them alone is compared with those that had them before."""
    return [outcome if outcome.held is None or outcome.held.installed == usual else
            Outcome(None, f"its weights lie with digest {outcome.held.installed}, those of the others with {usual}")
            for outcome in outcomes]
