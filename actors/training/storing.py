"""Scored rollouts of a run on their way to files: fetched and written while the learners work on them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from actors.faults.awaiting import look_at
from actors.training.feeder import Chosen
from actors.training.walk import here
from rlaif.config.train import TrainConfig
from rlaif.running.rollout_store import RolloutStore

__all__ = ["Storing", "rollouts_folder"]


def rollouts_folder(output_dir: str) -> Path:
    """Where the rollouts of a run are stored."""
    return Path(output_dir) / "rollouts"


class Storing:
    """Writes what every step has chosen, where the configuration asks for it. made_of: as RolloutStore."""

    def __init__(self, config: TrainConfig, made_of: dict[str, Any]) -> None:
        is_on = config.stored.write or config.mode == "rollout"
        self._store = RolloutStore(rollouts_folder(config.output_dir), made_of) if is_on else None

    def rewind(self, step: int) -> None:
        """The run goes on after `step`."""
        if self._store is not None:
            self._store.rewind(step)

    @contextlib.asynccontextmanager
    async def writing(self, step: int, chosen: Chosen) -> AsyncIterator[None]:
        """What `step` has chosen is in its file on the way out. After an error inside it may be written again. Raises
        InputsLost, before anything is done, where rows are gone."""
        if self._store is None:
            yield
            return
        tables = [await here(reference) for reference in chosen.scored]
        groups = chosen.summary["group_id"].unique().to_pylist()
        task = asyncio.ensure_future(asyncio.to_thread(self._store.write, step, tables, groups, chosen.kept))
        task.add_done_callback(look_at)
        try:
            yield
        except BaseException:
            # A thread goes on: its files are not written by two.
            await asyncio.wait({task})
            raise
        await task
