"""Explanations of whole files of judged rows, before a reward model reads them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from actors.cluster.placement import Placement, within
from actors.judging.explainer import Explained, ExplainerActor
from rlaif.batch import JUDGED, check
from rlaif.config.checks import UserError
from rlaif.config.train import ExplainerConfig, RoleConfig
from rlaif.data.tables import write_parquet
from rlaif.esfp.explanations import usable_or_refuse
from rlaif.metrics import Metric, Sum, merge, values
from rlaif.running.report import Report

COUNTS = b"counts"
ROWS_PER_PART = 1024    # rows whose explanations are kept in one file: what a run that is killed loses at most


async def explain_splits(config: ExplainerConfig, role: RoleConfig, rows: dict[str, pa.Table], output_dir: str,
                         seed: int, report: Report, ready_timeout_s: float) -> dict[str, pa.Table]:
    """JUDGED `rows` of every split with their usable explanations, both sides of a pair each by itself, and COUNTS in
    the schema's metadata: what was counted on the way, as JSON.

    What an earlier attempt wrote into output_dir is read back. Rows of a source that needs no explainer come back as
    they are.
    """
    if config.source in ("none", "column"):
        return rows
    whole = {split: Path(output_dir) / f"explained_{split}.parquet" for split in rows}
    if all(path.is_file() for path in whole.values()):
        report.say("explanations are there already")
        found = {split: check(pa.parquet.read_table(path), JUDGED) for split, path in whole.items()}
        refuse_other_rows(rows, found)
        return found
    placement = Placement({"explainer": role}, "PACK", ready_timeout_s)
    try:
        actors = [ExplainerActor.options(**placement.options("explainer", index)).remote(config, role.num_gpus, seed)
                  for index in range(role.num_actors)]
        await within(asyncio.gather(*(_ready(actor) for actor in actors)), ready_timeout_s, "explainers")
        found = {}
        for split, table in rows.items():
            found[split] = await _explain(actors, table, split, config.on_unusable, Path(output_dir), report)
            write_parquet(found[split], whole[split])
        for path in Path(output_dir).glob("explained_*.part-*.parquet"):
            path.unlink()
        return found
    finally:
        placement.remove()


def refuse_other_rows(splits: dict[str, pa.Table], explained: dict[str, pa.Table]) -> None:
    """Raises UserError where the explanations that an earlier attempt left are of other rows than those of now."""
    for split, rows in splits.items():
        for name in ("prompt", "completion", "other", "labels", "preference", "source"):
            if not explained[split][name].equals(rows[name]):
                raise UserError(f"data must be the rows that output_dir's explanations are of, got another {name} in "
                                "the file now; choose another output_dir or remove that one")


async def _ready(actor) -> None:
    await actor.ready.remote()


async def _explain(actors: Sequence, table: pa.Table, split: str, on_unusable: str, folder: Path, report: Report
                   ) -> pa.Table:
    """Every part of `table` explained, as many parts at once as there are actors."""
    starts = list(range(0, table.num_rows, ROWS_PER_PART))
    if not starts:
        return table.replace_schema_metadata({COUNTS: "{}"})
    started, metrics, done = time.perf_counter(), [], 0
    waiting = iter(starts)

    async def work(actor) -> None:
        nonlocal done
        for start in waiting:
            path = folder / f"explained_{split}.part-{start:09d}.parquet"
            part = table.slice(start, ROWS_PER_PART)
            if path.is_file():
                refuse_other_rows({split: part}, {split: pa.parquet.read_table(path)})
            else:
                explained, counted = await _explain_part(actor, part, start, on_unusable)
                sums = {name: metric.value for name, metric in counted.items() if isinstance(metric, Sum)}
                write_parquet(explained.replace_schema_metadata({COUNTS: json.dumps(sums)}), path)
                metrics.append(counted)
            done += part.num_rows
            shown = values(merge(metrics))
            report.say(f"explained {done}/{table.num_rows} {split} rows  {shown.get('explanations_cut', 0):.0f} cut  "
                       f"{shown.get('explanations_failed', 0):.0f} failed  {shown.get('explanations_empty', 0):.0f} "
                       f"empty  {time.perf_counter() - started:.1f} s")

    await asyncio.gather(*map(work, actors))
    parts = [pa.parquet.read_table(folder / f"explained_{split}.part-{start:09d}.parquet") for start in starts]
    told = [json.loads(part.schema.metadata[COUNTS]) for part in parts]
    whole = check(pa.concat_tables([part.replace_schema_metadata(None) for part in parts]), JUDGED)
    counts = {name: sum(one.get(name, 0) for one in told) for name in dict.fromkeys(n for one in told for n in one)}
    return whole.replace_schema_metadata({COUNTS: json.dumps(counts)})


async def _explain_part(actor, part: pa.Table, start: int, on_unusable: str) -> tuple[pa.Table, dict[str, Metric]]:
    """`part`, whose first row is row `start`, with explanations of its completions, and of its pairs' other sides."""
    prompts, others = part["prompt"].to_pylist(), part["other"].to_pylist()
    paired = [row for row, other in enumerate(others) if other is not None]
    answer: tuple[Explained, dict[str, Metric]] = await actor.explain_texts.remote(
        prompts + [prompts[row] for row in paired], part["completion"].to_pylist() + [others[row] for row in paired])
    explained, metrics = answer
    numbers = [start + row for row in [*range(part.num_rows), *paired]]
    kept = usable_or_refuse(explained.texts, explained.finish_reasons, on_unusable, numbers)
    theirs: list[list[str]] = [[] for _ in prompts]
    for place, row in enumerate(paired):
        theirs[row] = kept[len(prompts) + place]
    columns = {"explanations": kept[: len(prompts)], "other_explanations": theirs}
    for name, texts in columns.items():
        field = JUDGED.field(name)
        part = part.set_column(part.schema.get_field_index(name), field, pa.array(texts, type=field.type))
    return part, metrics
