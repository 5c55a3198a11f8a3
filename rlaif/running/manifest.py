"""What a folder must hold, file by file: its manifest, by which any damage is found.

Checksums tell what a disk or a copy has damaged. They do not tell who wrote a file: checkpoints hold pickles of
DeepSpeed's, and are taken up from the run's own folder alone, after every byte of them has been verified.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rlaif.config.checks import Unavailable, UserError

MANIFEST = "manifest.json"
_SEEN_WITHIN_S = 90.0       # a file system may show what another host wrote only after so long
# Of a file that is not to be had now, as on storage that another host serves: nothing is said of its bytes.
_OUT_OF_REACH = frozenset({errno.EACCES, errno.EPERM, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN,
                           errno.EHOSTUNREACH, errno.ENOLCK, errno.EMFILE, errno.ENFILE})


@dataclass(frozen=True)
class Entry:
    """What a manifest says of a file."""

    size: int       # bytes
    blake2b: str    # 64 hex digits


Entries = Mapping[str, Entry]   # by path inside the folder, with "/" between folders


class Damaged(Exception):
    """Which file is not as it was written, and why."""


def seal(folder: Path, known: Entries | None = None) -> None:
    """Brings the files under `folder` to the disk and writes their manifest. known: files whose writers
    have told their checksums; they are not read again."""
    entries = dict(known or {})
    _wait_for(folder, entries)
    entries |= entries_of(folder, [name for name in _files(folder) if name not in entries])
    (folder / MANIFEST).write_bytes(_manifest(entries))
    sync(folder / MANIFEST)
    for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        sync(place)


def entries_of(folder: Path, names: Collection[str]) -> dict[str, Entry]:
    """Brings the files `names` of `folder` to the disk; their sizes and checksums."""
    def entry(name: str) -> Entry:
        sync(folder / name)
        return _entry(folder / name)

    with ThreadPoolExecutor(8) as pool:
        return dict(zip(names, pool.map(entry, names), strict=True))


def verify(folder: Path) -> None:
    """Raises Damaged, with the file's name and what is wrong with it, unless `folder` is as `seal` left it; and
    Unavailable where a file cannot be read for reasons that are none of its own."""
    entries = _read_manifest(folder)
    there = set(_files(folder))
    for name, entry in sorted(entries.items()):
        path = folder / name
        if name not in there:
            raise Damaged(f"{name} is missing")
        if path.stat().st_size != entry.size:
            raise Damaged(f"{name} has {path.stat().st_size} bytes of {entry.size}")
    if there - set(entries):
        raise Damaged(f"{min(there - set(entries))} is not in {MANIFEST}")

    def fault(name: str) -> str | None:
        try:
            found = _entry(folder / name)
        except OSError as error:
            _refuse_out_of_reach(folder / name, error)
            return f"{name} cannot be read ({error.strerror})"
        return None if found == entries[name] else f"{name} is not the file that was written (its blake2b differs)"

    with ThreadPoolExecutor(8) as pool:
        for text in filter(None, pool.map(fault, sorted(entries))):
            raise Damaged(text)


def _refuse_out_of_reach(path: Path, error: OSError) -> None:
    if error.errno in _OUT_OF_REACH:
        raise Unavailable(f"output_dir must be a folder that can be read, got {error.strerror!r} for {str(path)!r}; "
                          "make it readable and run the same command again") from error


def _read_manifest(folder: Path) -> dict[str, Entry]:
    try:
        text = (folder / MANIFEST).read_bytes()
    except OSError as error:
        _refuse_out_of_reach(folder / MANIFEST, error)
        raise Damaged(f"{MANIFEST} is missing" if error.errno == errno.ENOENT else
                      f"{MANIFEST} cannot be read ({error.strerror})") from error
    try:
        entries = {name: Entry(**entry) for name, entry in json.loads(text)["files"].items()}
        is_whole = text == _manifest(entries)
    except (ValueError, TypeError, KeyError, AttributeError):
        is_whole = False
    if not is_whole:
        raise Damaged(f"{MANIFEST} is not the file that was written")
    return entries


def _manifest(entries: Entries) -> bytes:
    """One text for one content, closed by its own checksum: no byte of it can change unseen."""
    files = {name: {"size": entry.size, "blake2b": entry.blake2b} for name, entry in sorted(entries.items())}
    own = hashlib.blake2b(json.dumps(files).encode(), digest_size=32).hexdigest()
    return (json.dumps({"files": files, "blake2b": own}, indent=1) + "\n").encode()


def _entry(path: Path) -> Entry:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()
        return Entry(os.fstat(file.fileno()).st_size, digest)


def _files(folder: Path) -> list[str]:
    """Paths of the files under `folder` but its manifest. A link could lead out of the run's own folder: it is none of
    the files that are written here."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise Damaged(f"{path.relative_to(folder).as_posix()} is a link")
        if path.is_file() and path != folder / MANIFEST:
            found.append(path.relative_to(folder).as_posix())
    return found


def _wait_for(folder: Path, entries: Entries) -> None:
    """Returns when the files that other hosts wrote are seen here, in full."""
    deadline = time.monotonic() + _SEEN_WITHIN_S
    for name, entry in entries.items():
        while not (folder / name).is_file() or (folder / name).stat().st_size != entry.size:
            if time.monotonic() > deadline:
                raise UserError(f"output_dir must be a folder that all hosts share, got {str(folder)!r}, where {name} "
                                f"of a learner was not seen within {_SEEN_WITHIN_S:g} s")
            time.sleep(0.2)


def sync_all(folder: Path) -> None:
    """Brings all that is under `folder` to the disk."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() or path.is_dir():
            sync(path)
    sync(folder)


def sync(path: Path) -> None:
    """Returns when a file, or what a folder lists, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:     # of file systems that know no such thing for folders
            raise
    finally:
        os.close(handle)
