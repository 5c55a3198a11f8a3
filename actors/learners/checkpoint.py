"""A checkpoint with the learners' state in it, of whatever training."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from rlaif.config.checks import UserError
from rlaif.running.checkpoints import Checkpoints, not_taken

LEARNER, BEST = "learner", "best"       # folders of a checkpoint


async def write_checkpoint(store: Checkpoints, learners: Any, step: int, fill: Callable[[Path], Awaitable[None]], *,
                           also: Collection[int] = ()) -> None:
    """Writes the checkpoint of `step`: what the learners (actors.learners.gang.Gang) write of themselves, and what
    `fill` puts into the folder it is given. also: further steps whose checkpoints stay.

    Raises UserError, one line, where the disk does not take it; older checkpoints are whole then.
    """
    beside = store.begin(step)
    try:
        with _told(store.folder):
            written = await learners.save_state(str((beside / LEARNER).resolve()))
            await fill(beside)
            known = {f"{LEARNER}/{name}": entry for name, entry in written.items()}
            committed = asyncio.ensure_future(asyncio.to_thread(store.commit, beside, known=known, also=also))
            try:
                await asyncio.shield(committed)
            except asyncio.CancelledError:
                await asyncio.wait({committed})     # a thread goes on: its files are not taken from under it
                raise
    except BaseException:
        store.abandon(beside)
        raise


@contextlib.contextmanager
def _told(folder: Path) -> Iterator[None]:
    """What the disk refuses, here or where a learner writes, as one line for the user."""
    try:
        yield
    except OSError as error:
        cause = getattr(error, "cause", None)       # of an actor's error, which Ray wraps
        raise UserError(not_taken(folder, cause if isinstance(cause, OSError) else error)) from error
