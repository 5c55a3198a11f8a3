"""One process writes into a run's folder: a lock that a dead process cannot keep.

The kernel holds it (flock), and lets go when the process ends, however it ends. Where a shared file system keeps such
locks on each host alone, the file itself tells: it names host and pid of the holder, who changes it every few seconds.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rlaif.config.checks import UserError
from rlaif.running.checkpoints import told

LOCK_FILE = "lock"
BEAT_S = 5.0            # the holder changes the file so often
UNKNOWN = {"host": "an unknown host", "pid": "unknown"}
_PATIENCE = 4           # beats that a holder on another host may miss and still live


@contextlib.contextmanager
def held(folder: str | Path, say: Callable[[str], None] = print, *, host: str | None = None) -> Iterator[None]:
    """Inside, no other process may hold `folder`, which is made where it is missing.

    host: what this host is called; None: its own name. Raises UserError with host and pid of who holds it, and where
    the disk does not take a lock.
    """
    folder, host = Path(folder), host or socket.gethostname()
    with told(folder):
        handle, is_alone = _open(folder)
    try:
        holder = _read(handle)
        if is_alone is False or (is_alone is None and holder.get("host") == host and _lives(holder)):
            raise UserError(_refused(folder, holder or UNKNOWN))
        if holder and holder["host"] != host:
            say(f"{folder} was held by process {holder['pid']} on {holder['host']}: waiting "
                f"{BEAT_S * _PATIENCE:g} s to see whether it lives")
            if _changes(folder / LOCK_FILE, os.pread(handle, 4096, 0)):
                raise UserError(_refused(folder, holder))
        if holder:
            say(f"{folder} is taken over from process {holder['pid']} on {holder['host']}, which has ended")
        mine = {"host": host, "pid": os.getpid(), "beat": 0}
        with told(folder):
            _write(handle, mine)
        with _beating(handle, mine):
            try:
                yield
            finally:
                (folder / LOCK_FILE).unlink(missing_ok=True)
                with contextlib.suppress(OSError):      # it has files
                    folder.rmdir()
    finally:
        os.close(handle)


def _open(folder: Path) -> tuple[int, bool | None]:
    """The lock's file, and whether it is ours as in `_flock`."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        is_alone = _flock(handle)
        try:
            is_there = os.path.samestat(os.fstat(handle), (folder / LOCK_FILE).stat())
        except FileNotFoundError:
            is_there = False
        if is_there:
            return handle, is_alone
        os.close(handle)        # its holder has removed it meanwhile


def _flock(handle: int) -> bool | None:
    """Whether the kernel gave the lock; None where the file system has none."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError:
        return None


def _refused(folder: Path, holder: dict[str, Any]) -> str:
    return (f"output_dir must be used by one process at a time, got {str(folder)!r}, which process "
            f"{holder['pid']} on {holder['host']} is using; wait for it, end it, or choose another output_dir")


def _lives(holder: dict[str, Any]) -> bool:
    try:
        os.kill(int(holder["pid"]), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:     # of another user
        return True
    return True


def _read(handle: int) -> dict[str, Any]:
    """What the file says of its holder; nothing where it has none."""
    text = os.pread(handle, 4096, 0)
    try:
        return UNKNOWN | json.loads(text) if text else {}
    except (ValueError, TypeError):     # it was cut short
        return UNKNOWN


def _write(handle: int, holder: dict[str, Any]) -> None:
    text = json.dumps(holder).encode()
    os.pwrite(handle, text, 0)
    os.ftruncate(handle, len(text))
    os.fsync(handle)        # a network file system may keep it on this host for half a minute


def _changes(path: Path, before: bytes) -> bool:
    """Whether a holder on another host is heard of, were it by its giving the lock back; by this host's own clock,
    whatever the time is over there. The file is opened anew each time: a network file system looks for news then."""
    deadline = time.monotonic() + BEAT_S * _PATIENCE
    while time.monotonic() < deadline:
        time.sleep(BEAT_S / 10)
        if _content(path) != before:
            return True
    return False


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def _beating(handle: int, mine: dict[str, Any]) -> Iterator[None]:
    """Inside, the file is changed every few seconds."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_S):
            mine["beat"] += 1
            with contextlib.suppress(OSError):      # a full disk is told by what cannot be written there
                _write(handle, mine)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
