import asyncio

import pytest

from actors.learners.ranks import LearnersLost
from actors.learners.surviving import surviving
from rlaif.pipeline.budgets import Budget, BudgetSpent


class Fleet:
    def __init__(self, limit, fails=()):
        self.budget, self.fails, self.rebuilt = Budget(limit, "faults.max_learner_restarts"), list(fails), 0

    async def rebuild_learners(self):
        self.budget.spend("learner", "it died")
        self.rebuilt += 1
        if self.rebuilt in self.fails:
            raise LearnersLost("died while they met")


def attempts(fleet, num_losses):
    made = []

    async def attempt():
        made.append(fleet.rebuilt)
        if len(made) <= num_losses:
            raise LearnersLost("learner-1 died")
        return "trained"

    return asyncio.run(surviving(fleet.rebuild_learners, attempt)), made


def test_each_loss_is_followed_by_new_learners_and_another_attempt():
    fleet = Fleet(2)
    assert attempts(fleet, 2) == ("trained", [0, 1, 2])


def test_learners_that_are_lost_while_they_start_are_started_once_more():
    fleet = Fleet(2, fails=[1])
    assert attempts(fleet, 1) == ("trained", [0, 2])


def test_too_many_losses_end_the_run():
    with pytest.raises(BudgetSpent, match="max_learner_restarts must be at least 2 for this run to go on, got 1"):
        attempts(Fleet(1), 5)
