import pytest

from rlaif.config.checks import UserError
from rlaif.pipeline.budgets import Budget, BudgetSpent


def test_a_budget_is_spent_by_the_fault_after_the_last_one_allowed():
    budget = Budget(2)
    budget.spend("rollout-0", "it died")
    budget.spend("slot-1", "it died")
    with pytest.raises(BudgetSpent) as spent:
        budget.spend("rollout-0", "no answer\n  to a ping")
    assert str(spent.value) == (
        "faults.max_restarts must be at least 3 for this run to go on, got 2: rollout-0 failed 2 times, last because "
        "no answer to a ping; see Ray's log files, raise it for machines that come and go")
    assert isinstance(spent.value, UserError) and budget.spent == {"rollout-0": 2, "slot-1": 1}


def test_a_budget_of_nothing_allows_nothing():
    with pytest.raises(BudgetSpent, match="skips must be at least 3 for this run to go on, got 0: rows failed 3 times"):
        Budget(0, "skips").spend("rows", "bad", 3)


def test_faults_of_earlier_attempts_are_counted():
    budget = Budget(3, before=2)
    budget.spend("group 4", "it is empty")
    with pytest.raises(BudgetSpent, match="must be at least 4 for this run to go on, got 3: group 5 failed 1 times"):
        budget.spend("group 5", "it is empty")
