"""Rows of text from a file, a folder, the Hugging Face hub or the built-in world, checked before anything expensive
starts."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from rlaif import scenes
from rlaif.config.checks import UserError
from rlaif.data.data_sets import HUB_NAME, Part, folder_files, is_saved, read_hub, read_saved

SCENES = "scenes:"
HUB = "hub:"
SUFFIXES = (".parquet", ".csv", ".jsonl")
DEFAULT_NUM_ROWS = 4096     # of the built-in world, which has no end


@dataclass(frozen=True)
class Table:
    """Rows as they were read, and what they were read from: (file or source, number of its rows), in order."""

    rows: list[dict[str, Any]]
    files: list[tuple[str, int]]

    def place(self, number: int) -> tuple[str, int]:
        """The file of row `number` and its row in there, counted from 0."""
        for name, num_rows in self.files:
            if number < num_rows:
                return name, number
            number -= num_rows
        raise IndexError(number)

    def where(self, number: int) -> str:
        """As "row 3 of 'a.parquet'", for an error."""
        name, row = self.place(number)
        return f"row {row} of {name!r}"


def read_rows(source: str, *, columns: Sequence[str], num_rows: int | None, seed: int, key: str,
              part: Part | None = None) -> list[dict]:
    """The first `num_rows` rows (null: all) of `source`, each with the text `columns` and whatever else it has.

    The arguments are as in `read_table`. Raises UserError too for a missing column and for a null, naming the row.
    """
    table = read_table(source, columns=columns, num_rows=num_rows, seed=seed, key=key, part=part)
    for number, row in enumerate(table.rows):
        for column in columns:
            if column not in row:
                raise UserError(f"{key} must have the column {column!r}, got {sorted(row)} in {table.where(number)}; "
                                "map it in the config")
            if not isinstance(row[column], str):
                raise UserError(f"{key} column {column!r} must hold text, got {row[column]!r} in {table.where(number)}")
    return table.rows


def read_table(source: str, *, columns: Sequence[str], num_rows: int | None, seed: int, key: str,
               part: Part | None = None, is_narrow: bool = False) -> Table:
    """The first `num_rows` rows (null: all) of `source`, one at least.

    source: "scenes:<table>" (drawn from `seed`), a .parquet, .jsonl or .csv file, a folder of such files or of
        datasets' save_to_disk, or "hub:<owner>/<name>" (a Hugging Face data set).
    columns: read as text from a CSV, whatever their cells look like: 007 stays "007".
    key: the config key that `source` came from, named in errors.
    part: which split of a folder or hub data set, and which version of it.
    is_narrow: only `columns` are read, and asked for, where the format has one set of columns for all rows.

    Raises UserError: missing, unreadable, empty.
    """
    reading = _Reading(key, columns, num_rows, is_narrow)
    part, path = part or Part(), Path(source)
    if source.startswith(SCENES):
        found = [(source, _scenes_rows(source, num_rows, seed, key))]
    elif source.startswith(HUB):
        name = source.removeprefix(HUB)
        if not HUB_NAME.fullmatch(name):
            raise UserError(f"{key} must be {HUB}<owner>/<name>, got {source!r}; a folder is named by its path alone")
        found = [(source, reading.rows(read_hub(name, part, key), source))]
    elif path.is_dir() and is_saved(path):
        found = [(source, reading.rows(read_saved(path, part, key), source))]
    else:
        if part.split is not None and not path.is_dir():
            raise UserError(f"{key} must be a folder or of the hub to have splits, got {source!r} with split "
                            f"{part.split!r}")
        files = folder_files(path, SUFFIXES, part, key) if path.is_dir() else [path]
        found = [(str(file), reading.file(file)) for file in files]
    rows = [row for _, part_rows in found for row in part_rows][:num_rows]
    if not rows:
        raise UserError(f"{key} must hold rows, got none in {source!r}")
    return Table(rows, [(name, len(part_rows)) for name, part_rows in found])


def _scenes_rows(source: str, num_rows: int | None, seed: int, key: str) -> list[dict]:
    table = source.removeprefix(SCENES)
    if table not in scenes.TABLES:
        raise UserError(f"{key} must name one of {', '.join(scenes.TABLES)} after {SCENES!r}, got {table!r}")
    return scenes.rows(table, seed=seed, num_rows=num_rows or DEFAULT_NUM_ROWS)


@dataclass(frozen=True)
class _Reading:
    """How files are read; see `read_table`."""

    key: str
    columns: Sequence[str]
    num_rows: int | None
    is_narrow: bool

    def file(self, path: Path) -> list[dict]:
        """The rows of one file."""
        if not path.is_file():
            raise UserError(f"{self.key} must be a file or {SCENES}<table>, got {str(path)!r}, which is not there; a "
                            f"folder and {HUB}<owner>/<name> are read too")
        if path.suffix not in SUFFIXES:
            raise UserError(f"{self.key} must end in one of {', '.join(SUFFIXES)}, got {str(path)!r}")
        try:
            if path.suffix == ".jsonl":
                return list(islice(_jsonl_rows(path, self.key), self.num_rows))
            if path.suffix == ".csv":
                return self.rows(_csv_table(path, self.columns), str(path))
            with pa.parquet.ParquetFile(path) as file:
                kept = self.kept(file.schema_arrow.names, str(path))
                return self.rows(file.read(columns=kept), str(path))
        except (pa.ArrowInvalid, UnicodeDecodeError, OSError) as error:
            raise UserError(f"{self.key} must be readable as {path.suffix}, got {str(path)!r}: "
                            f"{str(error).splitlines()[0]}") from error

    def rows(self, table: pa.Table, name: str) -> list[dict]:
        """The rows of a table that was read from `name`."""
        return table.select(self.kept(table.column_names, name)).slice(0, self.num_rows).to_pylist()

    def kept(self, names: Sequence[str], name: str) -> list[str]:
        """Which of the columns `names` are read."""
        twice = sorted({column for column in names if names.count(column) > 1})
        if twice:
            raise UserError(f"{self.key} must have columns of different names, got {twice[0]!r} twice in {name!r}")
        if not self.is_narrow:
            return list(names)
        for column in self.columns:
            if column not in names:
                raise UserError(f"{self.key} must have the column {column!r}, got {sorted(names)} in {name!r}; map it "
                                "in the config")
        return list(dict.fromkeys(self.columns))


def _csv_table(path: Path, columns: Sequence[str]) -> pa.Table:
    limit = csv.field_size_limit(1 << 30)
    try:    # pyarrow takes a quote that nobody closes for one cell that holds the rest of the file
        with path.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines, strict=True)
            for _ in reader:
                pass
    except csv.Error as error:
        raise pa.ArrowInvalid(f"{error} in line {reader.line_num}") from error
    finally:
        csv.field_size_limit(limit)
    return pa.csv.read_csv(
        path, parse_options=pa.csv.ParseOptions(newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(column_types={name: pa.string() for name in columns}))


def _jsonl_rows(path: Path, key: str) -> Iterator[dict]:
    # newline: a JSON text may hold U+2028 and other characters that are line ends to splitlines().
    with path.open(encoding="utf-8-sig", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
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
            yield row


def write_parquet(table: pa.Table, path: Path) -> None:
    """Writes `table` beside `path` and renames it there: a file that is there is whole."""
    beside = path.with_suffix(".partial")
    pa.parquet.write_table(table, beside)
    beside.rename(path)
