"""A training that outlives its learners: they are started anew, and it goes on from the last checkpoint."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from actors.learners.ranks import LearnersLost

Result = TypeVar("Result")


async def surviving(rebuild: Callable[[], Awaitable[None]], attempt: Callable[[], Awaitable[Result]]) -> Result:
    """What `attempt` gives, which goes on from the last checkpoint; made again, after `rebuild`, whenever the learners
    are lost in it.

    Raises BudgetSpent after faults.max_learner_restarts losses.
    """
    are_lost = False
    while True:
        try:
            if are_lost:
                await rebuild()
            return await attempt()
        except LearnersLost:
            are_lost = True
