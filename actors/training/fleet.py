"""All actors of a reinforcement-learning run: started side by side, awaited with a limit, stopped together."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from ray.exceptions import RayActorError

from actors.cluster.placement import Placement
from actors.engines.rollout import RolloutActor
from actors.faults.pool import Pool
from actors.faults.restarts import last_words
from actors.judging.explainer import ExplainerActor
from actors.judging.judges import start_judge
from actors.judging.reward_functions import RewardFunctionActor
from actors.learners.gang import Gang, LearnersLost
from actors.learners.learner import LearnerSpec
from actors.learners.sending import DIRECT, Outcome, WeightsMovedOn
from actors.training.absent import NoLearners
from actors.training.sleeping import Sleepers
from actors.training.weight_sync import WeightSync
from rlaif.config.checks import Unavailable
from rlaif.config.train import TrainConfig
from rlaif.learning.objectives import PolicyOptions
from rlaif.pipeline.board import Board
from rlaif.pipeline.budgets import Budget
from rlaif.planning.roles import judge_role, roles
from rlaif.rewards.plan import JudgePart, RewardPlan
from rlaif.running.preflight import Checked

STOP_S = 30.0       # in which a cluster takes the place back


def learner_spec(config: TrainConfig, plan: RewardPlan) -> LearnerSpec:
    """What the learners of `config` train."""
    algorithm = config.algorithm
    assert config.policy.model is not None
    return LearnerSpec(
        model=config.policy, tokenizer=config.policy.model, learner=config.learner, seed=config.seed,
        total_steps=config.steps * algorithm.num_epochs * algorithm.num_minibatches,
        objective=PolicyOptions(algorithm, config.rollout.temperature, config.rollout.max_tokens, plan.weights))


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
        self._has_learners, self._has_engines = "learner" in role, "rollout" in role
        self.learners: Gang | NoLearners = NoLearners()
        if self._has_learners:
            self.learners = Gang(learner_spec(config, checked.plan), self._placement, role["learner"].num_actors,
                                 config.faults, board=self.board, say=say)
        # Without learners, an engine serves with the weights it was started with.
        self.rollouts = self._pool("rollout", RolloutActor, (
            config.policy.model, config.rollout, config.sync, config.placement.rollout.num_gpus, config.seed),
            self._catch_up if self._has_learners else None)
        self.explainers = self._pool("explainer", ExplainerActor, (
            checked.explainer, role["explainer"].num_gpus if "explainer" in role else 0.0, config.seed,
            config.pipeline.is_reproducible))
        self.judges = [self._judges(part) for part in checked.plan.judges]
        self.functions = self._pool("functions", RewardFunctionActor, (checked.plan, config.evaluation.gold, timeout_s))
        self._sleepers = Sleepers(self.rollouts, self.board, config.faults)
        self.weights = self._weight_sync()
        self._version: int | None = None        # of the last sync
        self._sending = asyncio.Lock()          # one stream at a time

    def _weight_sync(self) -> WeightSync:
        learner = self.config.learner
        return WeightSync(self.learners, self.config.sync, self.config.rollout.engine,
                          timeout_s=self.config.faults.hang_s,
                          is_partial=learner.lora.rank is not None or bool(learner.frozen))

    @property
    def pools(self) -> list[Pool]:
        """Everybody whose actors are stateless, but for the weights of the rollout engines."""
        return [self.rollouts, self.explainers, *self.judges, self.functions]

    @property
    def handles(self) -> dict[str, Any]:
        """Every actor by its name."""
        return {name: actor for pool in self.pools for name, actor in pool.handles.items()} | self.learners.handles

    def figures(self) -> dict[str, float]:
        """What the pools count, over the run."""
        rebuilt = self.learners.num_rebuilt
        return {name: value for pool in self.pools for name, value in pool.figures().items()} | (
            {"restarts_learner": rebuilt} if rebuilt else {})

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
            seed=self.config.seed, reproducible=self.config.pipeline.is_reproducible))

    def _pool_of(self, role: str, make: Callable[[int], Any],
                 catch_up: Callable[[int], Awaitable[None]] | None = None) -> Pool:
        num_actors = self._roles[role].num_actors if role in self._roles else 0
        return Pool(role, make, num_actors, self.budget, self.config.faults, board=self.board, catch_up=catch_up,
                    ready_timeout_s=self.config.placement.ready_timeout_s, say=self._say,
                    lacks=lambda index: self._placement.lacks(role, index))

    async def ready(self) -> str:
        """Returns when every actor answers: in words what the learners have to say of how they read rows, or "".

        Raises Unavailable, one line, for actors that end, or do not answer in ready_timeout_s.
        """
        joined = asyncio.ensure_future(self._join())
        opened = [asyncio.ensure_future(pool.ready()) for pool in self.pools]
        timeout_s = self.config.placement.ready_timeout_s
        done, late = await asyncio.wait({joined, *opened}, timeout=timeout_s, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            error = task.exception()
            if isinstance(error, (LearnersLost, RayActorError)):
                why = error.__cause__ if isinstance(error, LearnersLost) and error.__cause__ else error
                raise Unavailable(f"every actor must start, one ended: {last_words(why)}; see Ray's log files"
                                  ) from error
            if not isinstance(error, TimeoutError):
                task.result()
        if late or any(task.exception() for task in done):
            for task in late:
                task.cancel()
            names = [name for pool in self.pools for name in pool.starting] + ["learner"] * (joined in late)
            raise Unavailable(f"actors must be ready within placement.ready_timeout_s = {timeout_s:g} s, got no answer "
                              f"of {', '.join(sorted(names))}; see Ray's log files, or raise it")
        try:
            await asyncio.wait_for(self._open_channel(), timeout_s)
        except TimeoutError:
            raise Unavailable(f"sync.backend {self.config.sync.backend} must open a channel from the learners to all "
                              f"engines within placement.ready_timeout_s = {timeout_s:g} s, got none; see that their "
                              "nodes reach each other") from None
        return joined.result()

    async def _open_channel(self) -> None:
        if self._has_learners and self._has_engines:
            await self.weights.open(self._live_engines)

    @property
    def _live_engines(self) -> list[Any]:
        """Whoever starts again is met when it is there: by `_catch_up`."""
        return [actor for actor, health in zip(self.rollouts.actors, self.rollouts.health, strict=True)
                if health.is_alive]

    async def _join(self) -> str:
        if 0 < self.config.placement.learner.num_gpus < 1:      # an engine measures at its start what is free beside it
            await asyncio.gather(*(pool.ready() for pool in self.pools))
        return await self.learners.join()

    async def rebuild_learners(self) -> None:
        """After LearnersLost: other learners, which hold nothing of what was trained. Load a checkpoint, then `sync`:
        until then no engine is READY. Raises BudgetSpent after faults.max_learner_restarts of them."""
        async with self._sending:
            self._version = None
            self.rollouts.rewind()
            await self.learners.rebuild()
            if self._sleepers.are_asleep:
                await self._sleepers.wake()
            self.weights = self._weight_sync()
            await self._open_channel()

    @contextlib.asynccontextmanager
    async def learning(self) -> AsyncIterator[None]:
        """Inside, GPUs that engines share with learners are the learners': the engines sleep, and wake at the end. For
        engines that do not sleep (rollout.engine.sleeps) nothing happens."""
        if not self.config.rollout.engine.sleeps:
            yield
            return
        async with self._sending:       # an engine that sleeps has no memory to take weights into
            await self._sleepers.sleep()
            try:
                yield
                await self.learners.release()
            except LearnersLost:        # what is left of the ranks has the memory: the engines wake when it is ended
                raise
            except BaseException:
                await self._sleepers.wake()
                raise
            await self._sleepers.wake()

    async def sync(self, version: int) -> str:
        """Brings the learners' weights to every rollout engine as `version`; returns the checksum of what they hold.

        An engine that is lost or late gets them later, and no prompts until then. One that refuses them, or does not
        take them in time, gets them once more, and is then restarted. Without engines, the checksum alone is found;
        without learners there is none, "".
        """
        if not self._has_learners:
            return ""
        async with self._sending:
            self._version, actors = version, self.rollouts.actors
            there = [index for index, health in enumerate(self.rollouts.health) if health.is_alive]
            sent = await self.weights.send(version, [actors[index] for index in there])
            missed = [index for index, outcome in zip(there, sent.outcomes, strict=True) if outcome.held is None]
            for index, outcome in zip(there, sent.outcomes, strict=True):
                await self._note(index, actors[index], outcome)
        await asyncio.gather(*(self._catch_up(index) for index in missed if self.rollouts.health[index].is_alive))
        if self._has_engines:
            await self.rollouts.any_ready()
        return sent.checksum

    async def _catch_up(self, index: int) -> None:
        """Brings the weights of now to rollout actor `index`, which has missed them. Where the learners have trained on
        since, the next sync brings it along."""
        async with self._sending:
            if self._version is None or self.rollouts.health[index].version == self._version:
                return
            actor = self.rollouts.actors[index]
            if self.config.sync.backend != "shared_memory":
                await self.weights.open(self._live_engines if self.config.sync.backend in DIRECT else [actor])
            try:
                sent = await self.weights.send(self._version, [actor], is_again=True)
            except WeightsMovedOn:
                return
            outcome = sent.outcomes[0]
            await self._note(index, actor, outcome)
            if outcome.held is None:        # though it may answer a ping: what is behind it hangs
                self.rollouts.lose(index, actor, outcome.error)

    async def _note(self, index: int, actor: Any, outcome: Outcome) -> None:
        """What the pool is to know of an engine that was sent the weights of now."""
        if outcome.held is None:
            if outcome.is_lost:
                await self.rollouts.late(index, actor, outcome.error)
            else:
                self.rollouts.missed(index, actor, outcome.error)
        elif actor is self.rollouts.actors[index] and self.rollouts.health[index].is_alive:     # not lost meanwhile
            self.rollouts.current(index, self._version)

    def stop(self) -> None:
        """Ends every actor and gives the place back."""
        for pool in self.pools:
            pool.close()
        # Beside: a cluster whose head is gone does not answer, and the process is to end all the same.
        removing = threading.Thread(target=self._placement.remove, daemon=True)
        removing.start()
        removing.join(STOP_S)
