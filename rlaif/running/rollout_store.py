"""Scored rollouts in files, step by step: what a run writes beside its training, or in place of it, and another reads.

    rollouts.json               format, schema, tokenizer, temperature, weights of the reward's parts, names of classes
    step-000000001.parquet      the SCORED rows of a step: of every group that it rolled out
    step-000000001.json         that the file is whole: rows, bytes, blake2b; the groups that were chosen to train on

A step is there once its .json is, which is written last and renamed into place.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rlaif.batch import SCORED, check
from rlaif.config.checks import UserError
from rlaif.policy.training_batch import ORDER
from rlaif.running.checkpoints import told
from rlaif.running.manifest import sync

__all__ = ["RolloutStore", "StoredRollouts"]

HEADER, FORMAT = "rollouts.json", 1
_STEP = re.compile(r"step-(\d{9,})\.json")


def schema_digest() -> str:
    """16 hex digits that follow the names and types of SCORED."""
    content = json.dumps([[field.name, str(field.type), field.nullable] for field in SCORED])
    return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


class RolloutStore:
    """Writes into `folder`. made_of: what replays must agree with or want to know, as JSON: tokenizer (its hash),
    temperature, weights (of the reward's parts, by name), class_names (of the slots)."""

    def __init__(self, folder: str | Path, made_of: dict[str, Any]) -> None:
        self._folder = Path(folder)
        self._header = {"format": FORMAT, "schema": schema_digest()} | made_of

    def rewind(self, step: int) -> None:
        """Begins, or goes on after `step`: what there is of later steps is removed."""
        with told(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            for path in self._folder.iterdir():
                found = re.match(r"step-(\d{9,})\.", path.name)
                if found and int(found[1]) > step:
                    path.unlink()
            _write(self._folder / HEADER, json.dumps(self._header, indent=1) + "\n")

    def write(self, step: int, tables: Sequence[pa.Table], groups: Sequence[int], kept: Sequence[int]) -> None:
        """The rows of `groups` out of SCORED `tables`, in order. kept: those of them to train on.

        Raises UserError, one line, where the disk does not take it.
        """
        rows = pa.concat_tables(tables)
        rows = rows.filter(pc.is_in(rows["group_id"], value_set=pa.array(groups, pa.int64()))).sort_by(ORDER)
        path = self._folder / f"step-{step:09d}.parquet"
        beside = path.with_suffix(".parquet.partial")
        with told(self._folder):
            pq.write_table(check(rows, SCORED), beside, compression="zstd")
            digest, num_bytes = _digest(beside), beside.stat().st_size
            sync(beside)        # a checkpoint that comes after it counts on it
            beside.rename(path)
            sync(self._folder)
            _write(path.with_suffix(".json"), json.dumps({
                "step": step, "rows": rows.num_rows, "bytes": num_bytes, "blake2b": digest,
                "kept": sorted(kept)}) + "\n")
            sync(self._folder)


class StoredRollouts:
    """What `RolloutStore` wrote into `folder`, to train on. `groups`: (step, group_id) of every group to train on, in
    the order of the run that rolled them out.

    Every UserError names file, rule, what was found and the cure.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.header = self._read_header()
        self._steps = {step: self._read(path) for step, path in self._entries()}
        self.groups = [(step, group) for step, found in self._steps.items() for group in found["kept"]]
        self._refuse_gaps()

    @property
    def num_steps(self) -> int:
        return len(self._steps)

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each part of the reward, by its name."""
        return dict(self.header["weights"])

    @property
    def digest(self) -> str:
        """16 hex digits that follow everything that is stored."""
        content = json.dumps([self.header, list(self._steps.values())], sort_keys=True)
        return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()

    def rows(self, step: int, groups: Sequence[int]) -> pa.Table:
        """The SCORED rows of `groups` of `step`, in order. Raises UserError for a file that is not as it was written,
        and for a group without rows."""
        known, path = self._steps[step], self._path(step)
        if not path.is_file() or _digest(path) != known["blake2b"]:
            found = "another one" if path.is_file() else "no file"
            raise UserError(f"{path} must have blake2b {known['blake2b']} as {path.stem}.json says, got {found}; copy "
                            "it anew from where it was written")
        try:
            table = check(pq.read_table(path), SCORED)
        except (ValueError, OSError) as error:
            raise UserError(f"{path} must hold rows of this version's schema, got others: {error}; roll them out anew "
                            "with mode=rollout") from error
        table = pa.table(table.columns, schema=SCORED)      # Parquet adds metadata of its own
        table = table.filter(pc.is_in(table["group_id"], value_set=pa.array(groups, pa.int64())))
        self._refuse_rows(path, table, groups)
        return table.combine_chunks()

    def _refuse_rows(self, path: Path, table: pa.Table, groups: Sequence[int]) -> None:
        missing = set(groups) - set(table["group_id"].unique().to_pylist())
        if missing:
            raise UserError(f"{path} must hold rows of every group of {path.stem}.json, got none of group "
                            f"{min(missing)}; copy both anew from where they were written")
        finite = pc.is_finite(table["reward"])
        if not pc.all(finite).as_py():
            row = table.slice(finite.to_pylist().index(False), 1).to_pylist()[0]
            raise UserError(f"{path} must hold finite rewards, got {row['reward']} in the row of group "
                            f"{row['group_id']}, sample {row['sample']}; judge that step anew with mode=rollout")

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}.parquet"

    def _read_header(self) -> dict[str, Any]:
        path = self.folder / HEADER
        if not path.is_file():
            raise UserError(f"stored.read must be a folder of stored rollouts, got {str(self.folder)!r}, which has no "
                            f"{HEADER}; name output_dir/rollouts of a run with mode=rollout or stored.write=true")
        header = self._read(path)
        for name, value in (("format", FORMAT), ("schema", schema_digest())):
            if header.get(name) != value:
                raise UserError(f"{path} must have {name} {value}, got {header.get(name)!r}: another version has "
                                "written it; roll out anew with mode=rollout")
        return header

    def _entries(self) -> list[tuple[int, Path]]:
        found = ((_STEP.fullmatch(path.name), path) for path in self.folder.iterdir())
        return sorted((int(match[1]), path) for match, path in found if match)

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(content, dict):
                return content
        except (OSError, ValueError):
            pass
        raise UserError(f"{path} must be a JSON object, got something else; copy it anew from where it was written")

    def _refuse_gaps(self) -> None:
        for wanted, step in enumerate(self._steps, 1):
            if step != wanted:
                raise UserError(f"{self.folder} must hold every step from 1 on, got none {wanted}; copy the missing "
                                "files from where they were written")
        before = -1
        for step, group in self.groups:
            if group <= before:
                raise UserError(f"{self._path(step).with_suffix('.json')} must name groups after {before}, got {group};"
                                " stored rollouts of two runs do not go into one folder")
            before = group


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _write(path: Path, text: str) -> None:
    """The whole file or none: on the disk, then renamed into place."""
    beside = path.with_suffix(path.suffix + ".partial")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.rename(path)
