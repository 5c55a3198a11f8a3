"""What a gang makes of its ranks' answers, with ranks that are no actors. tests/real/test_ranks.py kills real ones."""

import asyncio
from types import SimpleNamespace

import pytest
from ray.exceptions import ObjectLostError, RayTaskError

from actors.faults.restarts import InputsLost
from actors.faults.vitals import Vitals
from actors.learners.ranks import LearnersLost, Ranks
from rlaif.config.faults import FaultsConfig
from rlaif.pipeline.board import Board

GONE = RayTaskError("update_policy", "", ObjectLostError("ab", None, ""))


class Rank:
    """Says `answers[rank]` of a step: an error is raised after its seconds, None is never said."""

    def __init__(self, answer):
        self._answer = answer
        self.ping = SimpleNamespace(remote=self._ping)

    async def _ping(self, with_stacks):
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
