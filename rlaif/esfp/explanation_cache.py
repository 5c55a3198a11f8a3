"""Explanations that were written before: an SQLite file keyed by what was asked, of which model, and how.

A row is found again only where nothing that shapes an explanation has changed, so a cache needs no clearing: another
model, template, principle or length is another key.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from rlaif.config.checks import Unavailable

FORMAT = 1                          # of the file; raised when its table changes
CACHED = ("stop", "length")         # other ends are failures, or depend on more than the key holds
BUSY_S = 60.0                       # how long to wait for other processes that write, seconds
KEYS_PER_QUERY = 500                # older SQLite takes 999 parameters a statement
# What shapes a model's answers: weights, configuration, tokenizer, chat template.
MODEL_FILES = (".safetensors", ".json", ".model", ".txt", ".jinja")


@dataclass(frozen=True)
class Written:
    """One explanation as its writer ended it: "stop", "length", or "failed" (then the text is empty)."""

    text: str
    num_tokens: int
    finish_reason: str


@dataclass(frozen=True)
class Author:
    """Who writes and how: all that shapes an explanation, apart from the question and the number of the sample."""

    model: str              # `model_identity` or `server_identity`
    template: str
    principles: str
    max_tokens: int
    temperature: float      # 0 is greedy
    seed: int               # of the run


def explanation_key(author: Author, question: str, sample: int) -> str:
    """SHA-256, in hex, over a canonical JSON of everything an explanation depends on.

    question: the filled-in template. sample: its number among those of the question. A greedy explanation depends on
    neither seed nor sample, so at temperature 0 its key does not either.
    """
    content = asdict(author) | {"temperature": float(author.temperature), "question": question, "sample": sample}
    if author.temperature == 0:
        content |= {"seed": 0, "sample": 0}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def server_identity(url: str, model: str, api: str) -> str:
    """A server's model: its name is all that is known of it, so other weights need another name."""
    return f"server {url.rstrip('/')} {api} {model}"


def model_identity(model: str) -> str:
    """The content of a model folder, wherever it lies; of a Hugging Face name its commit, once it was downloaded.

    A folder is read whole, several files at once: as fast as the disk, and the engine then finds it in memory.
    """
    folder = Path(model)
    if not folder.is_dir():
        config = try_to_load_from_cache(model, "config.json")
        return f"hub {model} {Path(config).parent.name if isinstance(config, str) else ''}".strip()
    files = sorted(path for path in folder.iterdir() if path.suffix in MODEL_FILES and path.is_file())
    with ThreadPoolExecutor(8) as pool:
        digests = list(pool.map(_file_digest, files))
    whole = json.dumps([(path.name, digest) for path, digest in zip(files, digests, strict=True)])
    return f"folder {hashlib.sha256(whole.encode()).hexdigest()}"


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class ExplanationCache:
    """An SQLite file of explanations; threads and processes of one machine may share it.

    Not on a network file system: write-ahead logging needs memory that its processes share. `num_hits` of
    `num_lookups` keys were found by this object. Waiting for another process blocks the calling thread. Every method
    raises UserError where the file cannot be used.
    """

    def __init__(self, path: str | Path) -> None:
        self._path, self._lock = Path(path), threading.Lock()
        self.num_hits = self.num_lookups = 0
        with self._one_line():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self._path, timeout=BUSY_S, isolation_level=None,
                                               check_same_thread=False)
            self._write_ahead()
            self._connection.execute("PRAGMA synchronous=NORMAL")   # losing the last rows in a power cut is no harm
            self._make_table()

    def get_many(self, keys: Iterable[str]) -> dict[str, Written]:
        """What is known of `keys`; unknown ones are absent. A key given twice is looked up once."""
        wanted, found = list(dict.fromkeys(keys)), {}
        with self._lock, self._one_line():
            for start in range(0, len(wanted), KEYS_PER_QUERY):
                part = wanted[start:start + KEYS_PER_QUERY]
                marks = ",".join("?" * len(part))
                rows = self._connection.execute(
                    f"SELECT key, text, num_tokens, finish_reason FROM explanations WHERE key IN ({marks})", part)
                found |= {key: Written(*value) for key, *value in rows}
            self.num_lookups += len(wanted)
            self.num_hits += len(found)
        return found

    def put_many(self, entries: Mapping[str, Written]) -> int:
        """Keeps the `entries` that ended as in CACHED, all or none of them, and returns how many were new.

        The first explanation of a key stays: all who share the file read the same.
        """
        rows = [(key, entry.text, entry.num_tokens, entry.finish_reason) for key, entry in entries.items()
                if entry.finish_reason in CACHED]
        if not rows:
            return 0
        with self._lock, self._one_line(), self._connection:     # commits, or rolls back on any error
            self._connection.execute("BEGIN IMMEDIATE")
            before = self._connection.total_changes
            self._connection.executemany("INSERT OR IGNORE INTO explanations VALUES (?, ?, ?, ?)", rows)
            return self._connection.total_changes - before

    def close(self) -> None:
        self._connection.close()

    def _write_ahead(self) -> None:
        """SQLite does not wait while another process makes the same change, but says at once that the file is busy."""
        deadline = time.monotonic() + BUSY_S
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def _make_table(self) -> None:
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            version = self._connection.execute("PRAGMA user_version").fetchone()[0]
            tables = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if version == 0 and tables == 0:
                self._connection.execute("CREATE TABLE explanations (key TEXT PRIMARY KEY, text TEXT NOT NULL, "
                                         "num_tokens INTEGER NOT NULL, finish_reason TEXT NOT NULL)")
                self._connection.execute(f"PRAGMA user_version={FORMAT}")
            elif version != FORMAT:
                raise Unavailable(f"explanation cache must be of format {FORMAT}, got {str(self._path)!r} of another "
                                "program or version; name another file or delete it")

    @contextlib.contextmanager
    def _one_line(self) -> Iterator[None]:
        """What SQLite and the file system say of a file they cannot use, in one line that names it."""
        try:
            yield
        except (OSError, sqlite3.OperationalError) as error:
            raise Unavailable(f"explanation cache must be a file that can be read and written, got "
                              f"{str(self._path)!r}: {error}; name another file or free this one") from error
        except sqlite3.DatabaseError as error:
            if type(error) is not sqlite3.DatabaseError:
                raise       # a wrong use of the connection, not of the file
            raise Unavailable(f"explanation cache must be a whole SQLite file, got {str(self._path)!r}: {error}; "
                              "delete it, its explanations are written again") from error
