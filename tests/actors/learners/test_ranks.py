"""What a gang makes of its ranks' answers, with ranks that are no actors. tests/real/test_ranks.py kills real ones."""

import asyncio
from types import SimpleNamespace

import pytest
from ray.exceptions import ObjectLostError, RayTaskError

from actors.faults.restarts import InputsLost
from actors.faults.vitals import Vitals
from actors.learners.ranks import LearnersLost, Ranks
from rlaif.config.checks import UserError
from rlaif.config.faults import FaultsConfig
from rlaif.pipeline.board import Board

GONE = RayTaskError("update_policy", "", ObjectLostError("ab", None, ""))


class Rank:
    """Says `answers[rank]` of a step: an error is raised after its seconds, None is never said."""

    def __init__(self, answer):
        self._answer = answer
        self.ping = SimpleNamespace(remote=self._ping)

    async def _ping(self, with_stacks=False):
        return Vitals("node", ())

    async def step(self):
        if self._answer is None:
            await asyncio.Event().wait()
        error, seconds = self._answer
        await asyncio.sleep(seconds)
        if error is not None:
            raise error


def step(*answers):
    async def go():
        ranks = Ranks("learner", lambda rank: Rank(answers[rank]), len(answers), FaultsConfig(hang_s=5.0, ping_s=0.2),
                      Board(), lambda line: None)
        await ranks.met()
        try:
            await asyncio.wait_for(ranks.all("a step", lambda actor: actor.step()), 5.0)
        finally:
            with pytest.raises(LearnersLost) if ranks._why else pytest.raises(InputsLost):
                await ranks.all("a step", lambda actor: actor.step())

    asyncio.run(go())


def test_rows_that_no_rank_can_read_are_no_loss_of_a_rank():
    with pytest.raises(InputsLost, match="learners cannot read what they are to work on: ObjectLostError"):
        step((GONE, 0.0), (GONE, 0.1))


@pytest.mark.parametrize("other", [None, (None, 0.0), (RuntimeError("the others are late"), 0.1)])
def test_rows_that_some_ranks_can_read_are_the_loss_of_all_as_these_have_begun(other):
    with pytest.raises(LearnersLost, match="some cannot read what others are at work on: ObjectLostError"):
        step(other, (GONE, 0.0))


def test_a_rank_that_has_no_place_after_the_loss_of_its_node_ends_the_run_in_time(monkeypatch):
    monkeypatch.setattr("actors.faults.awaiting.PLACE_S", 0.05)
    monkeypatch.setattr("actors.learners.ranks.end", lambda actor, known: asyncio.sleep(0))
    lines = []

    class Homeless(Rank):
        async def _ping(self, with_stacks=False):
            await asyncio.Event().wait()

    async def go():
        made = iter([Rank(None), Rank(None), Rank(None), Homeless(None)])
        ranks = Ranks("learner", lambda rank: next(made), 2, FaultsConfig(), Board(), lines.append,
                      lacks=lambda rank: "no node has room for it" if rank else None, place_timeout_s=0.3)
        with pytest.raises(UserError, match=r"learner-1 must get another place .* got none: no node has room for it"):
            await asyncio.wait_for(ranks.rebuild(), 5.0)

    asyncio.run(go())
    assert lines[1:] == ["learner-1 waits for a place in the cluster, for 0.3 s at most (placement.ready_timeout_s): "
                         "no node has room for it"]
