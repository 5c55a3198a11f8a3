"""How much may go wrong in a run: a limit, what has gone wrong so far, and one line once it is too much."""

from __future__ import annotations

from collections import Counter

from rlaif.config.checks import UserError

__all__ = ["Budget", "BudgetSpent"]


class BudgetSpent(UserError):
    """More went wrong than the configuration allows."""


class Budget:
    """Faults of one kind over the whole run. field: the limit's name in the configuration; cure: what to do then.
    before: faults of earlier attempts of the run."""

    def __init__(self, limit: int, field: str = "faults.max_restarts",
                 cure: str = "see Ray's log files, raise it for machines that come and go", before: int = 0) -> None:
        assert limit >= 0, f"limit must be >= 0, got {limit}"
        self._limit, self._field, self._cure, self._before = limit, field, cure, before
        self.spent: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return self._before + self.spent.total()

    def spend(self, who: str, reason: str, amount: int = 1) -> None:
        """Counts `amount` faults of `who`. Raises BudgetSpent, one line, where that is more than the limit."""
        self.spent[who] += amount
        if self.total > self._limit:
            why = " ".join(reason.split())
            raise BudgetSpent(f"{self._field} must be at least {self.total} for this run to go on, got {self._limit}: "
                              f"{who} failed {self.spent[who]} times, last because {why}; {self._cure}")
