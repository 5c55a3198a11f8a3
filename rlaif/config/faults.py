"""How many faults a run may live through, and how long it waits before it calls something one."""

from __future__ import annotations

from dataclasses import dataclass

from rlaif.config.checks import UserError, not_negative, positive


@dataclass
class FaultsConfig:
    """Budgets are counted over the run; the machines' faults and the data's each have their own."""

    max_restarts: int = 16              # of rollout, explainer, judge and function actors together, >= 0
    max_learner_restarts: int = 2       # of the learners' gang, from the last checkpoint, >= 0
    max_skipped_groups: int = 0         # groups whose data an actor refuses, >= 0; 0 ends the run at the first
    hang_s: float = 300.0               # seconds of one call until its actor is asked whether it lives, > 0
    ping_s: float = 20.0                # seconds in which a living actor answers that, > 0
    warn_s: float = 60.0                # seconds without progress until one line says what is waited for, > 0
    stuck_s: float = 1800.0             # seconds without progress until stacks are written and the run ends, > warn_s

    def __post_init__(self) -> None:
        not_negative(self, "max_restarts", "max_learner_restarts", "max_skipped_groups")
        positive(self, "hang_s", "ping_s", "warn_s", "stuck_s")
        if self.stuck_s <= self.warn_s:
            raise UserError(f"stuck_s must be above warn_s {self.warn_s:g}, got {self.stuck_s:g}; a run is warned of "
                            "before it is ended")
