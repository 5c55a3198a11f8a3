"""All actors of a reinforcement-learning run: started side by side, awaited with a limit, stopped together."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from actors.explainer import ExplainerActor
from actors.gang import Gang
from actors.judges import start_judges
from actors.learner import LearnerSpec
from actors.placement import Placement
from actors.pool import Pool
from actors.reward_functions import RewardFunctionActor
from actors.rollout import RolloutActor
from rlaif.config.train import ExplainerConfig, RoleConfig, TrainConfig
from rlaif.learning.objectives import PolicyOptions
from rlaif.modeling.weights import version_label
from rlaif.rewards.plan import JudgePart, RewardPlan
from rlaif.running.preflight import Checked


def roles(config: TrainConfig, explainer: ExplainerConfig, plan: RewardPlan) -> dict[str, RoleConfig]:
    """Every role of the run, in bundle order: no explainers where the complete `explainer` asks for none, and of the
    judges and reward functions those that `plan` needs."""
    placement = config.placement
    found = {"rollout": placement.rollout}
    if explainer.source != "none":
        found["explainer"] = placement.explainer
    found |= {judge_role(judge): judge.placement or placement.slot for judge in plan.judges}
    if not plan.is_plain:
        found["functions"] = placement.functions
    return found | {"learner": placement.learner}


def judge_role(judge: JudgePart) -> str:
    """The role of a judge: slot for the one of `reward`, judge_<name> for one with a place of its own."""
    return "slot" if judge.placement is None else f"judge_{judge.name}"


def learner_spec(config: TrainConfig, plan: RewardPlan) -> LearnerSpec:
    """What the learners of `config` train."""
    algorithm = config.algorithm
    assert config.policy.model is not None
    return LearnerSpec(
        model=config.policy, tokenizer=config.policy.model, learner=config.learner, seed=config.seed,
        total_steps=config.steps * algorithm.num_epochs * algorithm.num_minibatches,
        objective=PolicyOptions(algorithm, config.rollout.temperature, config.rollout.max_tokens, plan.weights))


class Fleet:
    """Handles of all actors of a run. What it is made of was found by rlaif.running.preflight."""

    def __init__(self, config: TrainConfig, checked: Checked) -> None:
        self.config, self.plan = config, checked.plan
        role = roles(config, checked.explainer, checked.plan)
        timeout_s = config.placement.ready_timeout_s
        self._placement = Placement(role, config.placement.strategy, timeout_s)
        options = self._placement.options
        # The learners are asked first: they take longest to be ready.
        self.learners = Gang(learner_spec(config, checked.plan), self._placement, role["learner"].num_actors)
        self.rollouts = [
            RolloutActor.options(**options("rollout", index)).remote(
                config.policy.model, config.rollout, config.sync, role["rollout"].num_gpus, config.seed)
            for index in range(role["rollout"].num_actors)]
        self.explainers = Pool([
            ExplainerActor.options(**options("explainer", index)).remote(
                checked.explainer, role["explainer"].num_gpus, config.seed)
            for index in range(role["explainer"].num_actors)] if "explainer" in role else [])
        self.judges = [Pool(self._start_judges(part, checked, role)) for part in checked.plan.judges]
        self.functions = Pool([
            RewardFunctionActor.options(**options("functions", index)).remote(
                checked.plan, config.evaluation.gold, timeout_s)
            for index in range(role["functions"].num_actors)] if "functions" in role else [])

    def _start_judges(self, part: JudgePart, checked: Checked, role: Mapping[str, RoleConfig]) -> list[Any]:
        name = judge_role(part)
        # One judge asks gold, as its verdicts are all the same.
        gold = self.config.evaluation.gold if part is self.plan.judges[0] else None
        return start_judges(checked.judges[part.name], part.reward, part.reward.engine, self._placement, name,
                            role[name], part=part.name, gold=gold, on_unusable=checked.explainer.on_unusable,
                            seed=self.config.seed)

    async def ready(self) -> str:
        """Returns when every actor answers: in words what the learners have to say of how they read rows, or "".

        Raises TimeoutError naming the roles that do not answer in ready_timeout_s.
        """
        joined = asyncio.ensure_future(self.learners.join())
        waiting: dict[asyncio.Future, str] = {joined: "learner"}
        judges = [(judge_role(part), pool.actors) for part, pool in zip(self.plan.judges, self.judges, strict=True)]
        for role, actors in (("rollout", self.rollouts), ("explainer", self.explainers.actors), *judges,
                             ("functions", self.functions.actors)):
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
        return joined.result()

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
