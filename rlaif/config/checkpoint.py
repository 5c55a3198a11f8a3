"""Configuration of checkpoints: how often a run is written down, and whether it goes on from there.

As rlaif.config.train.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlaif.config.checks import not_negative, one_of, positive

RESUME = ("auto", "never")


@dataclass
class CheckpointConfig:
    """Checkpoints of a run, in output_dir/checkpoints. Every run that is asked to end (SIGTERM, a node that is taken
    away) writes one, whatever `every` says."""

    every: int = 20                     # steps between checkpoints, >= 0; 0: only when the run is asked to end
    keep: int = 2                       # newest checkpoints that are kept, >= 1; that of the best evaluation stays too
    resume: str = "auto"                # auto: the same command again goes on | never: it begins anew

    def __post_init__(self) -> None:
        not_negative(self, "every")
        positive(self, "keep")
        one_of(self, "resume", RESUME)
