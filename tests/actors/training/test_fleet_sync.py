"""What becomes of an engine in a sync: with a real pool, and actors and weights that are none."""

import asyncio
from types import SimpleNamespace

import pytest

from actors.engines.receiving import Held
from actors.faults.pool import Pool
from actors.faults.vitals import Vitals
from actors.learners.sending import Outcome
from actors.training.fleet import Fleet
from rlaif.config.faults import FaultsConfig
from rlaif.config.train import WeightSyncConfig
from rlaif.pipeline.budgets import Budget
from rlaif.pipeline.health import State

WHOLE, LATE = Outcome(Held("1:ab", "as they lie")), Outcome(None, "gave no answer in 300 s", is_lost=True)
REFUSED = Outcome(None, "another mark")


class Actor:
    """Answers pings."""

    def __init__(self):
        self.ready = SimpleNamespace(remote=self._answer)
        self.ping = SimpleNamespace(remote=self._answer)

    async def _answer(self, with_stacks=False):
        return Vitals("node", ())


class Weights:
    """Every send finds each actor as `outcomes` says, a list for each, then whole; `meanwhile` happens in it."""

    def __init__(self):
        self.outcomes, self.sent, self.meanwhile = {}, [], lambda: None

    async def send(self, version, actors, is_again=False):
        await asyncio.sleep(0)
        self.meanwhile()
        self.sent.append((version, list(actors), is_again))
        found = [self.outcomes.get(actor, []) for actor in actors]
        return SimpleNamespace(checksum="ab", outcomes=[each.pop(0) if each else WHOLE for each in found])


def synced(body):
    async def end(actor, known):
        for _ in range(5):
            await asyncio.sleep(0)

    async def go():
        fleet = object.__new__(Fleet)
        fleet.config = SimpleNamespace(sync=WeightSyncConfig())
        fleet.weights, fleet._version, fleet._sending = Weights(), None, asyncio.Lock()
        fleet._has_learners = fleet._has_engines = True
        fleet.rollouts = Pool("rollout", lambda index: Actor(), 2, Budget(4), FaultsConfig(), catch_up=fleet._catch_up)
        await fleet.rollouts.ready()
        try:
            await body(fleet, fleet.rollouts, fleet.weights)
        finally:
            fleet.rollouts.close()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("actors.faults.pool.end", end)
        asyncio.run(asyncio.wait_for(go(), 10.0))


async def all_ready(pool):
    while not all(health.is_ready for health in pool.health):
        await asyncio.sleep(0)


def test_all_engines_are_ready_with_the_version_that_was_sent():
    async def body(fleet, pool, weights):
        assert await fleet.sync(3) == "ab"
        assert [(health.state, health.version) for health in pool.health] == [(State.READY, 3)] * 2
        assert weights.sent == [(3, pool.actors, False)]

    synced(body)


def test_an_engine_that_is_lost_after_it_took_the_weights_is_replaced_and_gets_them_again():
    """Its call fails, or its ping, while the learners still wait for the other engine."""
    async def body(fleet, pool, weights):
        await fleet.sync(0)
        former = pool.actors[0]

        def die():
            weights.meanwhile = lambda: None
            pool.lose(0, former, "it died")

        weights.meanwhile = die
        await fleet.sync(1)
        assert pool.health[1].version == 1
        await all_ready(pool)
        assert pool.actors[0] is not former and [health.version for health in pool.health] == [1, 1]
        assert weights.sent[-1] == (1, [pool.actors[0]], True)

    synced(body)


@pytest.mark.parametrize("outcome", [LATE, REFUSED])
def test_an_engine_that_does_not_take_the_weights_gets_them_once_more_and_is_then_restarted(outcome):
    """One that is late answers pings all the same: its actor lives, the engine behind it hangs."""
    async def body(fleet, pool, weights):
        first = pool.actors[0]
        weights.outcomes[first] = [outcome]
        await fleet.sync(1)
        assert pool.actors[0] is first and [health.version for health in pool.health] == [1, 1]
        weights.outcomes[first] = [outcome, outcome]
        await fleet.sync(2)
        assert pool.health[1].version == 2
        await all_ready(pool)
        assert pool.actors[0] is not first and pool.health[0].version == 2
        assert pool.figures()["restarts_rollout"] == 1

    synced(body)
