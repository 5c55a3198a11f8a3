"""Engines and learners that share GPUs in turn: who is told what, and when. The engines themselves need a GPU."""

import asyncio
from types import SimpleNamespace

import pytest

from actors.learners.gang import LearnersLost
from actors.learners.sending import WeightsMovedOn
from actors.training.fleet import Fleet
from actors.training.sleeping import Sleepers
from rlaif.config.checks import Unavailable
from rlaif.config.faults import FaultsConfig
from rlaif.config.train import EngineConfig, PlacementConfig, RoleConfig, RolloutConfig, WeightSyncConfig
from rlaif.pipeline.board import Board
from rlaif.pipeline.health import Health, State


class Notes(list):
    """Actors whose every call is noted, `lost` of them with the error that Ray gives for an actor that is gone."""

    def verb(self, name, error=None):
        async def run():
            self.append(name)
            if error is not None:
                raise error
        return SimpleNamespace(remote=lambda: asyncio.ensure_future(run()))

    def actor(self, number, error=None):
        return SimpleNamespace(sleep=self.verb(f"sleep {number}", error), wake=self.verb(f"wake {number}"))


def fleet(notes, sleeps, *actors):
    made = object.__new__(Fleet)
    made.config = SimpleNamespace(rollout=RolloutConfig(engine=EngineConfig(sleeps=sleeps)))
    made.rollouts = SimpleNamespace(actors=actors, failure=None, health=[Health(State.READY)] * len(actors),
                                    lose=lambda index, actor, why, *_: notes.append(f"lost {index}"))
    made.board, made._version = Board(), None
    made._sleepers = Sleepers(made.rollouts, made.board, FaultsConfig(hang_s=0.05, ping_s=0.05))

    async def release():
        notes.append("release")

    made.learners, made._sending = SimpleNamespace(release=release), asyncio.Lock()
    return made


def learn(made, notes, error=None):
    async def run():
        async with made.learning():
            notes.append("learn")
            if error is not None:
                raise error
    asyncio.run(run())


def test_engines_sleep_while_learners_learn_and_wake_when_the_memory_is_given_back():
    notes = Notes()
    learn(fleet(notes, True, notes.actor(0), notes.actor(1)), notes)
    assert notes == ["sleep 0", "sleep 1", "learn", "release", "wake 0", "wake 1"]


def test_engines_that_do_not_sleep_are_told_nothing():
    notes = Notes()
    learn(fleet(notes, False, notes.actor(0)), notes)
    assert notes == ["learn"]


def test_engines_sleep_on_until_lost_learners_have_been_ended():
    notes = Notes()
    made = fleet(notes, True, notes.actor(0))
    with pytest.raises(LearnersLost):
        learn(made, notes, LearnersLost("learner-1 is gone"))
    assert notes == ["sleep 0", "learn"]

    async def ended():
        notes.append("rebuilt")

    async def opened():
        notes.append("channel")

    made.learners.rebuild, made._weight_sync, made._open_channel = ended, lambda: None, opened
    made.rollouts.rewind = lambda: None
    asyncio.run(made.rebuild_learners())
    assert notes == ["sleep 0", "learn", "rebuilt", "wake 0", "channel"]


def never():
    return asyncio.get_running_loop().create_future()


def test_an_engine_that_hangs_is_replaced_and_is_on_the_board_meanwhile():
    notes = Notes()
    hangs = SimpleNamespace(sleep=SimpleNamespace(remote=never), ping=SimpleNamespace(remote=lambda *_: never()),
                            wake=notes.verb("wake 0"))
    made = fleet(notes, True, hangs, notes.actor(1))
    waited_for = []
    made.rollouts.lose = lambda index, actor, why, *_: (
        notes.append(f"lost {index}: {why}"), waited_for.extend(made.board.entries))
    learn(made, notes)
    assert notes == ["sleep 1", "lost 0: no answer for 0.05 s, nor to a ping within 0.05 s", "learn", "release",
                     "wake 0", "wake 1"]
    assert [(entry.who, entry.what) for entry in waited_for] == [("rollout-0", "its sleep")]


def test_a_pool_that_has_failed_for_good_ends_the_wait():
    notes = Notes()
    waits = SimpleNamespace(sleep=SimpleNamespace(remote=never))
    made = fleet(notes, True, waits)
    made.rollouts.health, made.rollouts.failure = [Health(State.STARTING)], Unavailable("rollout-0 must get a place")
    with pytest.raises(Unavailable, match="must get a place"):
        learn(made, notes)


def test_engines_wake_when_the_learners_fail():
    notes = Notes()
    with pytest.raises(RuntimeError, match="a rank is gone"):
        learn(fleet(notes, True, notes.actor(0)), notes, RuntimeError("a rank is gone"))
    assert notes == ["sleep 0", "learn", "wake 0"]


def test_an_engine_that_was_restarted_is_sent_no_weights_while_it_sleeps():
    notes = Notes()
    made = fleet(notes, True, notes.actor(0))
    made._version, made.rollouts.health = 3, [Health(State.STALE)]

    class Weights:
        async def send(self, version, actors, is_again):
            notes.append("weights")
            raise WeightsMovedOn

    made.weights, made.config.sync = Weights(), WeightSyncConfig()

    async def run():
        async with made.learning():
            catching_up = asyncio.ensure_future(made._catch_up(0))
            await asyncio.sleep(0.01)
            notes.append("learn")
        await catching_up

    asyncio.run(run())
    assert notes == ["sleep 0", "learn", "release", "wake 0", "weights"]


def test_an_engine_that_fails_to_sleep_ends_the_step_and_one_that_is_gone_is_replaced():
    from ray.exceptions import ActorDiedError

    notes = Notes()
    learn(fleet(notes, True, notes.actor(0, ActorDiedError()), notes.actor(1)), notes)
    assert notes == ["sleep 0", "sleep 1", "lost 0", "learn", "release", "wake 0", "wake 1"]
    with pytest.raises(ValueError, match="no such mode"):
        learn(fleet(notes, True, notes.actor(0, ValueError("no such mode"))), notes)


@pytest.mark.parametrize(("num_gpus", "order"), [(0.3, ["pool"] * 3 + ["learners"]), (1.0, ["learners"]),
                                                 (0.0, ["learners"])])
def test_learners_that_share_a_gpu_wait_for_engines_which_measure_its_memory(num_gpus, order):
    notes = Notes()

    async def note(name):
        notes.append(name)

    made = object.__new__(Fleet)
    made.config = SimpleNamespace(placement=PlacementConfig(learner=RoleConfig(num_gpus=num_gpus)))
    made.rollouts, made.explainers, made.functions = (SimpleNamespace(ready=lambda: note("pool")) for _ in range(3))
    made.judges = []
    made.learners = SimpleNamespace(join=lambda: note("learners"))
    asyncio.run(made._join())
    assert notes == order
