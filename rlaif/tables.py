"""Rows of text from a file or from the built-in world, checked before anything expensive starts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from rlaif import scenes
from rlaif.config import UserError

SCENES = "scenes:"
DEFAULT_NUM_ROWS = 4096     # of the built-in world, which has no end


def read_rows(source: str, *, columns: Sequence[str], num_rows: int | None, seed: int, key: str) -> list[dict]:
    """The first `num_rows` rows (null: all) of `source`, each with the text `columns`.

    `source` is "scenes:<table>" (drawn from `seed`) or a .parquet, .jsonl or .csv file; `key` is the config key it came
    from, named in errors. Raises UserError: file missing or empty, column missing, or a null, naming the row.
    """
    if source.startswith(SCENES):
        table = source.removeprefix(SCENES)
        if table not in scenes.TABLES:
            raise UserError(f"{key} must name one of {', '.join(scenes.TABLES)} after {SCENES!r}, got {table!r}")
        rows = scenes.rows(table, seed=seed, num_rows=num_rows or DEFAULT_NUM_ROWS)
    else:
        rows = _read_file(Path(source), key)[:num_rows]
    if not rows:
        raise UserError(f"{key} must hold rows, got none in {source!r}")
    for number, row in enumerate(rows):
        for column in columns:
            if column not in row:
                raise UserError(f"{key} must have the column {column!r}, got {sorted(row)} in row {number} of "
                                f"{source!r}; map it in the config")
            if not isinstance(row[column], str):
                raise UserError(f"{key} column {column!r} must hold text, got {row[column]!r} in row {number} of "
                                f"{source!r}")
    return rows


def _read_file(path: Path, key: str) -> list[dict]:
    if not path.is_file():
        raise UserError(f"{key} must be a file or {SCENES}<table>, got {str(path)!r}, which is not there")
    readers = {".parquet": lambda: pa.parquet.read_table(path).to_pylist(),
               ".csv": lambda: pa.csv.read_csv(path).to_pylist(),
               ".jsonl": lambda: _read_jsonl(path, key)}
    if path.suffix not in readers:
        raise UserError(f"{key} must end in one of {', '.join(readers)}, got {str(path)!r}")
    try:
        return readers[path.suffix]()
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise UserError(f"{key} must be readable as {path.suffix}, got {str(path)!r}: "
                        f"{str(error).splitlines()[0]}") from error


def _read_jsonl(path: Path, key: str) -> list[dict]:
    rows = []
    # Not splitlines(): a JSON text may hold U+2028 and other characters that are line ends to it.
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{key} must hold one JSON object a line, got line {number} of {str(path)!r}: "
                            f"{error.msg}") from error
        if not isinstance(row, dict):
            raise UserError(f"{key} must hold one JSON object a line, got {type(row).__name__} in line {number} of "
                            f"{str(path)!r}")
        rows.append(row)
    return rows


def write_parquet(table: pa.Table, path: Path) -> None:
    """Writes `table` beside `path` and renames it there: a file that is there is whole."""
    beside = path.with_suffix(".partial")
    pa.parquet.write_table(table, beside)
    beside.rename(path)
