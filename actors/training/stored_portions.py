"""Scored portions as files: what waits for the learners when a run is written down."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pyarrow as pa
import ray

from rlaif.metrics import as_json, from_json
from rlaif.pipeline.portions import ScoredPortion


async def write_portion(folder: Path, portion: ScoredPortion) -> None:
    """Writes `portion` into the new `folder`: table-<n>.arrow, summary.arrow where there is one, portion.json."""
    folder.mkdir()
    for number, reference in enumerate(portion.tables):
        await asyncio.to_thread(_write, folder / f"table-{number}.arrow", await reference)
    if portion.summary is not None:
        _write(folder / "summary.arrow", portion.summary)
    content = {"group_ids": portion.group_ids, "num_tables": len(portion.tables), "num_rows": portion.num_rows,
               "num_bytes": portion.num_bytes,
               "metrics": as_json(portion.metrics)}
    (folder / "portion.json").write_text(json.dumps(content) + "\n", encoding="utf-8")


def read_portion(folder: Path) -> ScoredPortion:
    """What `write_portion` wrote, its tables in the object store again."""
    content = json.loads((folder / "portion.json").read_text(encoding="utf-8"))
    summary = folder / "summary.arrow"
    return ScoredPortion(
        group_ids=content["group_ids"], num_rows=content["num_rows"], num_bytes=content["num_bytes"],
        tables=[ray.put(_read(folder / f"table-{number}.arrow")) for number in range(content["num_tables"])],
        summary=_read(summary) if summary.is_file() else None,
        metrics=from_json(content["metrics"]))


def _write(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def _read(path: Path) -> pa.Table:
    with pa.OSFile(str(path), "rb") as file, pa.ipc.open_file(file) as reader:
        return reader.read_all()
