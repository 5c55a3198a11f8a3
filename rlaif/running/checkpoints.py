"""A folder of checkpoints: each is there whole or not at all, and any byte that changed since is found.

    step-000000120/                     a checkpoint, sealed by rlaif.running.manifest
    step-000000140.9f27c0de.partial/    being written, or left behind by a killed attempt
    step-000000100.damaged/             refused once, and set aside for who wants to look at it

Their order is that of the steps in their names; no clock is asked.
"""

from __future__ import annotations

import contextlib
import errno
import re
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from rlaif.config.checks import UserError
from rlaif.running.manifest import Damaged, Entries, seal, sync, verify

PARTIAL, DAMAGED = ".partial", ".damaged"
_NAME = re.compile(r"step-(\d{9,})")


class Checkpoints:
    """The checkpoints of one run in `folder`; the newest `keep` of them stay."""

    def __init__(self, folder: str | Path, keep: int = 2) -> None:
        self.folder, self._keep = Path(folder), keep

    @property
    def steps(self) -> list[int]:
        """Of the checkpoints that are there, damaged or not, oldest first."""
        found = (_NAME.fullmatch(path.name) for path in self._entries())
        return sorted(int(match[1]) for match in found if match)

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}"

    def tidy(self) -> int:
        """Removes what killed attempts left behind; returns how many. Only the run that holds the folder may call."""
        leftovers = [path for path in self._entries() if path.name.endswith(PARTIAL)]
        for path in leftovers:
            shutil.rmtree(path)
        return len(leftovers)

    def begin(self, step: int) -> Path:
        """A new empty folder to write the checkpoint of `step` into; then `commit` it, or `abandon` it."""
        beside = self.folder / f"{self.path(step).name}.{secrets.token_hex(4)}{PARTIAL}"
        with told(self.folder):
            beside.mkdir(parents=True)
        return beside

    def commit(self, beside: Path, *, known: Entries | None = None, also: Collection[int] = ()) -> Path:
        """Makes `beside` the checkpoint of its step: on the disk, whole, in place of one of the same step. The oldest
        are removed beyond `keep`, but none of the steps in `also`.

        known: files whose checksums their writers have told; they are not read again. Raises UserError where the disk
        does not take it; older checkpoints are whole then.
        """
        target = self.folder / beside.name.split(".")[0]
        with told(self.folder):
            seal(beside, known)
            gone = [self._aside(target)] if target.exists() else []
            beside.rename(target)
            sync(self.folder)
            kept = {*self.steps[-self._keep:], *also}
            gone += [self._aside(self.path(step)) for step in self.steps if step not in kept]
            for path in gone:
                shutil.rmtree(path)
        return target

    def abandon(self, beside: Path) -> None:
        """Removes what was begun and shall not be."""
        shutil.rmtree(beside, ignore_errors=True)

    def newest(self, say: Callable[[str], None]) -> tuple[int, Path] | None:
        """Step and folder of the newest checkpoint that is whole; None where there never was one.

        Says of each one refused which file and why, and sets it aside. Raises UserError where none is whole.
        """
        for step in reversed(self.steps):
            try:
                verify(self.path(step))
                return step, self.path(step)
            except Damaged as error:
                say(f"checkpoint {self.path(step)} is refused: {error}")
                aside = self.path(step).with_suffix(DAMAGED)
                shutil.rmtree(aside, ignore_errors=True)
                with told(self.folder):
                    self.path(step).rename(aside)
        damaged = sorted(path.name for path in self._entries() if path.name.endswith(DAMAGED))
        if damaged:
            raise UserError(f"output_dir must hold a whole checkpoint to go on from, got only damaged ones in "
                            f"{str(self.folder)!r} ({', '.join(damaged)}); put them back from a copy, or begin anew "
                            "with checkpoint.resume=never")
        return None

    def clear(self) -> int:
        """Removes all checkpoints and what is beside them; returns how many steps were kept there."""
        num_steps = len(self.steps)
        if self.folder.exists():
            shutil.rmtree(self.folder)
        return num_steps

    def _entries(self) -> list[Path]:
        return sorted(self.folder.iterdir()) if self.folder.is_dir() else []

    def _aside(self, path: Path) -> Path:
        """Where a checkpoint is that shall be removed: with half of its files it must be none."""
        gone = path.with_name(f"{path.name}.{secrets.token_hex(4)}{PARTIAL}")
        path.rename(gone)
        return gone


@contextlib.contextmanager
def told(folder: Path) -> Iterator[None]:
    """What the disk refuses inside, as one line for the user."""
    try:
        yield
    except OSError as error:
        raise UserError(not_taken(folder, error)) from error


def not_taken(folder: Path, error: OSError) -> str:
    """One line for what `folder` did not take."""
    why = error.strerror or str(error).splitlines()[0]
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        why += f" ({shutil.disk_usage(there).free / 1e6:.0f} MB free)"
        cure = "free some space"
    else:
        cure = "make it a folder that can be written"
    return (f"output_dir must take what the run writes, got {why!r} in {str(folder)!r}; {cure} and run the same "
            "command again: it goes on from the newest checkpoint")


def copy_all(source: Path, target: Path) -> None:
    """The files of `source` in `target` too. Copies, no links: what damages one must leave the other."""
    for path in sorted(source.rglob("*")):
        if path.is_file():
            there = target / path.relative_to(source)
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, there)
