"""All actors of a reinforcement-learning run: started side by side, awaited with a limit, stopped together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from actors.explainer import ExplainerActor
from actors.gang import Gang
from actors.judges import start_judges
from actors.learner import LearnerSpec
from actors.placement import Placement
from actors.rollout import RolloutActor
from rlaif.config import ExplainerConfig, RoleConfig, TrainConfig
from rlaif.judges import Judge
from rlaif.losses import LossOptions
from rlaif.objectives import PolicyOptions
from rlaif.weights import version_label


def roles(config: TrainConfig, explainer: ExplainerConfig) -> dict[str, RoleConfig]:
    """Every role of the run, in bundle order; no explainers where the complete `explainer` asks for none."""
    placement = config.placement
    found = {"rollout": placement.rollout, "explainer": placement.explainer, "slot": placement.slot,
             "learner": placement.learner}
    if explainer.source == "none":
        del found["explainer"]
    return found


def learner_spec(config: TrainConfig) -> LearnerSpec:
    """What the learners of `config` train."""
    algorithm = config.algorithm
    loss = LossOptions(clip_low=algorithm.clip_low, clip_high=algorithm.clip_high,
                       importance_cap=algorithm.importance_cap, kl_coefficient=algorithm.kl_coefficient,
                       kl_estimator=algorithm.kl_estimator)
    assert config.policy.model is not None
    return LearnerSpec(
        model=config.policy, tokenizer=config.policy.model, learner=config.learner, seed=config.seed,
        total_steps=config.steps * algorithm.num_epochs * algorithm.num_minibatches,
        objective=PolicyOptions(loss, config.rollout.temperature), num_epochs=algorithm.num_epochs,
        num_minibatches=algorithm.num_minibatches)


class Pool:
    """Equal actors that share work: each call goes to the one with the least in flight, counted in rows."""

    def __init__(self, actors: Sequence[Any]) -> None:
        self.actors = list(actors)
        self._in_flight = [0] * len(self.actors)

    def take(self, num_rows: int) -> tuple[int, Any]:
        index = min(range(len(self.actors)), key=self._in_flight.__getitem__)
        self._in_flight[index] += num_rows
        return index, self.actors[index]

    def give_back(self, index: int, num_rows: int) -> None:
        self._in_flight[index] -= num_rows


class Fleet:
    """Handles of all actors of a run. `explainer` is the complete explainer configuration."""

    def __init__(self, config: TrainConfig, explainer: ExplainerConfig, judge: Judge) -> None:
        self.config = config
        role = roles(config, explainer)
        timeout_s = config.placement.ready_timeout_s
        self._placement = Placement(role, config.placement.strategy, timeout_s)
        options = self._placement.options
        # The learners are asked first: they take longest to be ready.
        self.learners = Gang(learner_spec(config), self._placement, role["learner"].num_actors)
        self.rollouts = [
            RolloutActor.options(**options("rollout", index)).remote(
                config.policy.model, config.rollout, config.sync, role["rollout"].num_gpus, config.seed)
            for index in range(role["rollout"].num_actors)]
        self.explainers = Pool([
            ExplainerActor.options(**options("explainer", index)).remote(
                explainer, role["explainer"].num_gpus, config.seed)
            for index in range(role["explainer"].num_actors)] if "explainer" in role else [])
        self.slots = Pool(start_judges(
            judge, config.reward, config.reward.engine, self._placement, "slot", role["slot"],
            gold=config.evaluation.gold, on_unusable=explainer.on_unusable, seed=config.seed))

    async def ready(self) -> None:
        """Returns when every actor answers. Raises TimeoutError naming the roles that do not in ready_timeout_s."""
        waiting = {asyncio.ensure_future(self.learners.join()): "learner"}
        for role, actors in (("rollout", self.rollouts), ("explainer", self.explainers.actors),
                             ("slot", self.slots.actors)):
            waiting |= {asyncio.ensure_future(_wait(actor)): f"{role}-{index}" for index, actor in enumerate(actors)}
        timeout_s = self.config.placement.ready_timeout_s
        done, late = await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
        if late:
            for task in late:
                task.cancel()
            names = ", ".join(sorted(waiting[task] for task in late))
            raise TimeoutError(f"actors must be ready within placement.ready_timeout_s = {timeout_s:g}, still waiting "
                               f"for {names}; see Ray's log files")
        if self.config.sync.backend != "shared_memory":
            num_workers = len(self.rollouts) * self.config.rollout.engine.tensor_parallel_size
            await asyncio.wait_for(
                self.learners.open_channel(self.config.sync.backend, self.rollouts, num_workers), timeout_s)

    async def sync(self, version: int) -> str:
        """Brings the learners' weights to every rollout engine as `version`; returns the checksum they hold.

        Raises RuntimeError if an engine reports another version or other weights than the rest.
        """
        if self.config.sync.backend == "shared_memory":
            manifest, buckets = await self.learners.publish(self.config.sync.bucket_mb << 20)
            expected = version_label(version, manifest.checksum)
            held = await asyncio.gather(*(
                actor.install.remote(version, manifest, *buckets) for actor in self.rollouts))
        else:
            await self.learners.send(version)
            expected = version_label(version, "direct")
            held = await asyncio.gather(*(_holds(actor) for actor in self.rollouts))
        for index, found in enumerate(held):
            if found != (expected, held[0][1]):
                raise RuntimeError(f"rollout-{index} must hold weights {expected} with digest {held[0][1]} like "
                                   f"rollout-0, got {found}")
        return held[0][1]

    def split(self, prompts: pa.Table) -> list[tuple[Any, pa.Table]]:
        """`prompts` shared out evenly over the rollout actors, in order."""
        size = -(-prompts.num_rows // len(self.rollouts))
        return [(actor, prompts.take(list(range(start, min(start + size, prompts.num_rows)))))
                for actor, start in zip(self.rollouts, range(0, prompts.num_rows, size), strict=False)]

    def stop(self) -> None:
        """Ends every actor and gives the place back."""
        self._placement.remove()


async def _wait(actor: Any) -> None:
    await actor.ready.remote()


async def _holds(actor: Any) -> tuple[str, str]:
    return await actor.holds.remote()
