"""Configuration of runs that do a part of the loop: what is written of rollouts, and what is read in their place.

As rlaif.config.train.
"""

from __future__ import annotations

from dataclasses import dataclass

# train: all of it. rollout: rolls out, judges and stores; no learners. replay: trains on stored rollouts; no engines,
# no judges.
MODES = ("train", "rollout", "replay")


@dataclass
class StoredConfig:
    """Scored rollouts in files, step by step: see rlaif.running.rollout_store."""

    write: bool = False             # every step's to output_dir/rollouts; with mode rollout they always are
    read: str | None = None         # folder of such rollouts, to train on with mode replay
