"""All actors of a reinforcement-learning run: started side by side, awaited with a limit, stopped together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from actors.explainer import ExplainerActor
from actors.gang import Gang
from actors.judges import start_judge
from actors.learner import LearnerSpec
from actors.placement import Placement
from actors.pool import Pool, look_at
from actors.restarts import Lost, lost, told
from actors.reward_functions import RewardFunctionActor
from actors.rollout import RolloutActor
from rlaif.config.train import TrainConfig
from rlaif.learning.objectives import PolicyOptions
from rlaif.modeling.weights import version_label
from rlaif.pipeline.board import Board
from rlaif.pipeline.budgets import Budget
from rlaif.planning.roles import judge_role, roles
from rlaif.rewards.plan import JudgePart, RewardPlan
from rlaif.running.preflight import Checked


def learner_spec(config: TrainConfig, plan: RewardPlan) -> LearnerSpec:
    """What the learners of `config` train."""
    algorithm = config.algorithm
    assert config.policy.model is not None
    return LearnerSpec(
        model=config.policy, tokenizer=config.policy.model, learner=config.learner, seed=config.seed,
        total_steps=config.steps * algorithm.num_epochs * algorithm.num_minibatches,
        objective=PolicyOptions(algorithm, config.rollout.temperature, config.rollout.max_tokens, plan.weights))


@dataclass
class _Published:
    """The weights of now. digest: of them as they lie in an engine, told by the first that has them."""

    version: int
    expected: str                                           # what an engine is to call them
    install: Callable[[Any], Awaitable[tuple[str, str]]]    # brings them to an actor; gives what it then holds
    digest: str | None = None


class Fleet:
    """Handles of all actors of a run. What it is made of was found by rlaif.running.preflight.

    say: gets a line for every fault and its cure.
    """

    def __init__(self, config: TrainConfig, checked: Checked, say: Callable[[str], None] = print) -> None:
        self.config, self.plan, self.board = config, checked.plan, Board()
        self.budget = Budget(config.faults.max_restarts)
        self._checked, self._say = checked, say
        self._roles = role = roles(config, checked.explainer, checked.plan)
        timeout_s = config.placement.ready_timeout_s
        self._placement = Placement(role, config.placement.strategy, timeout_s)
        # The learners are asked first: they take longest to be ready.
        self.learners = Gang(learner_spec(config, checked.plan), self._placement, role["learner"].num_actors)
        self.rollouts = self._pool("rollout", RolloutActor, (
            config.policy.model, config.rollout, config.sync, role["rollout"].num_gpus, config.seed), self._catch_up)
        self.explainers = self._pool("explainer", ExplainerActor, (
            checked.explainer, role["explainer"].num_gpus if "explainer" in role else 0.0, config.seed))
        self.judges = [self._judges(part) for part in checked.plan.judges]
        self.functions = self._pool("functions", RewardFunctionActor, (checked.plan, config.evaluation.gold, timeout_s))
        self._published: _Published | None = None
        self._installing = [asyncio.Lock() for _ in self.rollouts.actors]

    @property
    def pools(self) -> list[Pool]:
        """Everybody whose actors are stateless, but for the weights of the rollout engines."""
        return [self.rollouts, self.explainers, *self.judges, self.functions]

    def figures(self) -> dict[str, float]:
        """What the pools count, over the run."""
        return {name: value for pool in self.pools for name, value in pool.figures().items()}

    def _pool(self, role: str, kind: Any, arguments: tuple[Any, ...],
              catch_up: Callable[[int], Awaitable[None]] | None = None) -> Pool:
        return self._pool_of(role, lambda index: kind.options(**self._placement.options(role, index)).remote(
            *arguments), catch_up)

    def _judges(self, part: JudgePart) -> Pool:
        name = judge_role(part)
        # One judge asks gold, as its verdicts are all the same.
        gold = self.config.evaluation.gold if part is self.plan.judges[0] else None
        return self._pool_of(name, lambda index: start_judge(
            self._checked.judges[part.name], part.reward, part.reward.engine, self._placement, name, index,
            self._roles[name], part=part.name, gold=gold, on_unusable=self._checked.explainer.on_unusable,
            seed=self.config.seed))

    def _pool_of(self, role: str, make: Callable[[int], Any],
                 catch_up: Callable[[int], Awaitable[None]] | None = None) -> Pool:
        num_actors = self._roles[role].num_actors if role in self._roles else 0
        return Pool(role, make, num_actors, self.budget, self.config.faults, board=self.board, catch_up=catch_up,
                    ready_timeout_s=self.config.placement.ready_timeout_s, say=self._say)

    async def ready(self) -> str:
        """Returns when every actor answers: in words what the learners have to say of how they read rows, or "".

        Raises TimeoutError naming the actors that do not answer in ready_timeout_s.
        """
        joined = asyncio.ensure_future(self._join())
        opened = [asyncio.ensure_future(pool.ready()) for pool in self.pools]
        timeout_s = self.config.placement.ready_timeout_s
        done, late = await asyncio.wait({joined, *opened}, timeout=timeout_s, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            if not isinstance(task.exception(), TimeoutError):
                task.result()
        if late or any(task.exception() for task in done):
            for task in late:
                task.cancel()
            names = [name for pool in self.pools for name in pool.starting] + ["learner"] * (joined in late)
            raise TimeoutError(f"actors must be ready within placement.ready_timeout_s = {timeout_s:g}, still waiting "
                               f"for {', '.join(sorted(names))}; see Ray's log files")
        if self.config.sync.backend != "shared_memory":
            await asyncio.wait_for(self._open_channel(), timeout_s)
        return joined.result()

    async def _join(self) -> str:
        if self.config.rollout.engine.sleeps:       # an engine measures at its start what is free beside it
            await self.rollouts.ready()
        return await self.learners.join()

    @contextlib.asynccontextmanager
    async def learning(self) -> AsyncIterator[None]:
        """Inside, GPUs that engines share with learners are the learners': the engines sleep, and wake at the end. For
        engines that do not sleep (rollout.engine.sleeps) nothing happens."""
        if not self.config.rollout.engine.sleeps:
            yield
            return
        await self._tell_engines(lambda actor: actor.sleep.remote())
        try:
            yield
        finally:
            await self.learners.release()
            await self._tell_engines(lambda actor: actor.wake.remote())

    async def _tell_engines(self, call: Callable[[Any], Awaitable[None]]) -> None:
        actors = list(self.rollouts.actors)
        answers = await asyncio.gather(*(_await(call(actor)) for actor in actors), return_exceptions=True)
        for index, answer in enumerate(answers):
            if isinstance(answer, Exception):
                if lost(answer) is not Lost.ACTOR:
                    raise answer
                self.rollouts.lose(index, actors[index], told(answer))

    async def _open_channel(self) -> None:
        actors = self.rollouts.actors
        num_workers = len(actors) * self.config.rollout.engine.tensor_parallel_size
        await self.learners.open_channel(self.config.sync.backend, actors, num_workers)

    async def sync(self, version: int) -> str:
        """Brings the learners' weights to every rollout engine as `version`; returns the digest of what they hold.

        An engine that is lost or late gets them later, and no prompts until then: see `_bring`. Raises RuntimeError if
        an engine reports another version or other weights than the rest.
        """
        if self.config.sync.backend == "shared_memory":
            manifest, buckets = await self.learners.publish(self.config.sync.bucket_mb << 20)
            self._published = _Published(version, version_label(version, manifest.checksum), lambda actor: _await(
                actor.install.remote(version, manifest, *buckets)))
        else:
            await self.learners.send(version)
            self._published = _Published(version, version_label(version, "direct"), lambda actor: _await(
                actor.holds.remote()))
        return await self._bring_all(self._published)

    async def _bring_all(self, published: _Published) -> str:
        actors = self.rollouts.actors
        bringing = {self._bring(index): index for index, health in enumerate(self.rollouts.health) if health.is_alive}
        bringing = {asyncio.ensure_future(work): index for work, index in bringing.items()}
        late = set(bringing)
        if bringing:
            done, late = await asyncio.wait(bringing, timeout=self.config.faults.hang_s)
            for task in done:
                task.result()
        for task in late:
            index = bringing[task]
            task.add_done_callback(look_at)
            await self.rollouts.late(index, actors[index], f"nothing after {self.config.faults.hang_s:g} s")
        await self.rollouts.any_ready()
        assert published.digest is not None, "an engine that is ready has told its digest"
        return published.digest

    async def _bring(self, index: int) -> None:
        """Brings the weights of now to rollout actor `index`, and to whoever takes its place; then it is READY."""
        async with self._installing[index]:
            while self._published is not None and self.rollouts.health[index].version != self._published.version:
                published, actor = self._published, self.rollouts.actors[index]
                try:
                    held = await published.install(actor)
                except Exception as error:
                    if lost(error) is not Lost.ACTOR:
                        raise
                    self.rollouts.lose(index, actor, told(error))
                    return      # another one catches up
                published.digest = published.digest or held[1]
                if held != (published.expected, published.digest):
                    raise RuntimeError(f"rollout-{index} must hold weights {published.expected} with digest "
                                       f"{published.digest} like the others, got {held}")
                if actor is self.rollouts.actors[index]:
                    self.rollouts.current(index, published.version)

    async def _catch_up(self, index: int) -> None:
        await self._bring(index)

    def split(self, prompts: pa.Table) -> list[tuple[Any, pa.Table]]:
        """`prompts` shared out evenly over the rollout actors, in order."""
        actors = self.rollouts.actors
        size = -(-prompts.num_rows // len(actors))
        return [(actor, prompts.take(list(range(start, min(start + size, prompts.num_rows)))))
                for actor, start in zip(actors, range(0, prompts.num_rows, size), strict=False)]

    def stop(self) -> None:
        """Ends every actor and gives the place back."""
        for pool in self.pools:
            pool.close()
        self._placement.remove()


async def _await(reference: Awaitable[Any]) -> Any:
    return await reference
