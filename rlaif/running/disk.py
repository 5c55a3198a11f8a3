"""What a disk that is full or read-only makes of a run, in one line, wherever it was written to."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

__all__ = ["disk_line"]

_REFUSALS = {errno.ENOSPC: "free some space", errno.EDQUOT: "free some space or have the quota raised",
             errno.EROFS: "make it a place that can be written"}


def disk_line(error: BaseException) -> str | None:
    """One line for the user where `error`, or what it came from in an actor or a library, is that a disk takes nothing
    more; None where it is something else."""
    for each in _origins(error):
        number = each.errno if isinstance(each, OSError) else None
        if number not in _REFUSALS:     # libraries in other languages have the words alone
            number = next((number for number in _REFUSALS if os.strerror(number) in str(each)), None)
        if number is not None:
            name = getattr(each, "filename", None)
            where = f" at {str(name)!r}" if name else ""
            return (f"every folder that is written to must take it, got {os.strerror(number)!r}{where}; "
                    f"{_REFUSALS[number]} and run the same command again: it goes on from what is whole")
    return None


def _origins(error: BaseException) -> Iterator[BaseException]:
    """What was raised first comes first. Ray keeps what an actor raised as `cause`."""
    chain: list[BaseException] = []
    here: BaseException | None = error
    while here is not None and here not in chain:
        chain.append(here)
        cause = getattr(here, "cause", None)
        here = cause if isinstance(cause, BaseException) else here.__cause__
    return reversed(chain)
