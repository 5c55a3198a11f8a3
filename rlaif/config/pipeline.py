"""How generation and learning overlap."""

from __future__ import annotations

from dataclasses import dataclass

from rlaif.config.checks import UserError, not_negative, positive


@dataclass
class PipelineConfig:
    """max_staleness 0 is the synchronous mode: a step's rollouts are of the weights that it updates. With k > 0
    rollouts are written, explained and scored while the learners work, by weights at most k steps old."""

    max_staleness: int = 0              # learner steps, >= 0
    # The same bytes from the same seed; portions are then explained in turn. null: where max_staleness is 0.
    reproducible: bool | None = None
    portion_groups: int | None = None   # groups that are scored together, > 0; null derives it from groups_per_step
    max_buffered_mb: int = 1024         # MiB of scored rollouts that wait for the learners, > 0; a step's are let in

    def __post_init__(self) -> None:
        not_negative(self, "max_staleness")
        positive(self, "max_buffered_mb", *(["portion_groups"] if self.portion_groups is not None else []))
        if self.reproducible and self.max_staleness > 0:
            raise UserError(f"reproducible must be false or null with max_staleness {self.max_staleness}, got True: "
                            "which weights write a token then depends on the clock; set max_staleness to 0")

    @property
    def is_reproducible(self) -> bool:
        return self.max_staleness == 0 if self.reproducible is None else self.reproducible
