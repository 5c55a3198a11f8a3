"""One engine at a time looks at the memory of a GPU that it shares."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def starting_alone() -> Iterator[None]:
    """Inside, no other engine of this user looks at the same GPUs of this machine. Whoever dies inside is out."""
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "all").replace("/", "_")
    with (Path(tempfile.gettempdir()) / f"rlaif-{os.getuid()}-gpus-{gpus}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)    # not by closing alone: a process that was forked meanwhile has it too
