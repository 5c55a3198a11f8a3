"""Evaluation of a judge: explanations of every row, then its scores, part by part, then the figures and their files."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from actors.cluster.placement import Placement
from actors.fitting.explaining import COUNTS, explain_splits
from actors.fitting.fitting import run_folder
from actors.judging.judges import all_ready, start_judges
from rlaif.batch import check
from rlaif.config.checks import UserError
from rlaif.config.files import config_hash
from rlaif.config.reward import EvaluateConfig
from rlaif.config.train import ExplainerConfig
from rlaif.data.judged_rows import content_hash, judged_rows
from rlaif.data.tables import write_parquet
from rlaif.esfp.gold import GOLD
from rlaif.esfp.judges import Judge, explainer_of, find_judge, write_judge
from rlaif.esfp.reward_model import Scored
from rlaif.metrics import Max, Mean, Metric, Min, Sum, merge, values
from rlaif.reward_evaluation.evaluation import (
    Edited,
    EvaluationOptions,
    edited_rows,
    evaluate,
    evaluate_edits,
    headline,
)
from rlaif.reward_evaluation.report import write_evaluation
from rlaif.reward_evaluation.scored_rows import SCORED_ROWS, of_both_orders, one_side_at_a_time, scored_rows, texts_of
from rlaif.running.report import Report
from rlaif.running.run_folder import refuse_other_run
from rlaif.running.versions import versions

JUDGED_SPLIT, EDITED_SPLIT = "judged", "edited"
_MADE_OF = b"made_of"       # key of a part's metadata, beside COUNTS
_UNUSABLE = ("explanations_cut", "explanations_failed", "explanations_empty", "explainer_inputs_cut")
_REDUCTIONS = {"Mean": Mean, "Sum": Sum, "Max": Max, "Min": Min}


def run_evaluation(config: EvaluateConfig) -> None:
    """launch/evaluate.py: what the judge says of the data, and how far that is right; lands in config.output_dir."""
    if refuse_other_run(config.output_dir, config):
        print(f"{config.output_dir} is complete; nothing to do", flush=True)
        return
    judge = find_judge(config.judge, "judge.")
    explainer = explainer_of(judge, config.judge.explainer, "judge.")
    sets = [judged_rows(source, judge.template, f"data[{number}]", with_explanations=explainer.source == "column")
            for number, source in enumerate(config.data)]
    rows = pa.concat_tables(sets)
    if judge.kind == "gold":
        _refuse_unjudgeable(judge.model, rows)
    splits, edited = {JUDGED_SPLIT: rows}, None
    if config.with_edits:
        edited = edited_rows(rows, judge.template, config.num_edited_rows, config.seed)
        splits[EDITED_SPLIT] = edited.rows
    is_explained = explainer.source in ("model", "server")
    stages = [{"judge": config.placement.judge}]
    if is_explained:
        stages.append({"explainer": config.placement.explainer})
    with run_folder(config, stages) as report:
        explained = asyncio.run(explain_splits(explainer, config.placement.explainer, splits, config.output_dir,
                                               config.seed, report, config.ready_timeout_s))
        scored, version = asyncio.run(_score_splits(config, judge, explained, report))
        facts = _facts(config, judge, explainer, sets, version)
        counted = _counts(explainer, explained, scored)
        _conclude(config, judge, explained[JUDGED_SPLIT], scored, edited, facts, counted, report)


def _refuse_unjudgeable(name: str, rows: pa.Table) -> None:
    for number, prompt in enumerate(rows["prompt"].to_pylist()):
        try:
            GOLD[name]([prompt], [""])
        except ValueError as error:
            raise UserError(f"data must suit judge.reward.model = gold:{name}, got row {number}: {error}; use another "
                            "judge for other prompts") from error


async def _score_splits(config: EvaluateConfig, judge: Judge, splits: dict[str, pa.Table], report: Report
                        ) -> tuple[dict[str, pa.Table], str]:
    """SCORED_ROWS of every split, what was counted in the schema's metadata; and the judge's version.

    Takes up the parts that an earlier attempt wrote into output_dir.
    """
    role, settings = config.placement.judge, config.judge
    placement = Placement({"judge": role}, "PACK", config.ready_timeout_s)
    try:
        started = time.perf_counter()
        actors = start_judges(judge, settings.reward, settings.reward.engine, placement, "judge", role,
                              seed=config.seed)
        version = await all_ready(actors, config.ready_timeout_s)
        report.say(f"judge {settings.reward.model} ready in {time.perf_counter() - started:.1f} s, version {version}")
        found = {split: await _score(actors, judge, rows, split, version, config, report)
                 for split, rows in splits.items()}
        return found, version
    finally:
        placement.remove()


async def _score(actors: Sequence[Any], judge: Judge, rows: pa.Table, split: str, version: str, config: EvaluateConfig,
                 report: Report) -> pa.Table:
    """Every part of `rows` scored, as many parts at once as there are actors."""
    folder, done, began, num_fresh = Path(config.output_dir), 0, time.perf_counter(), 0
    starts = list(range(0, rows.num_rows, config.batch_size))
    waiting = iter(starts)

    async def work(actor: Any) -> None:
        nonlocal done, num_fresh
        for start in waiting:
            path, part = _part_path(folder, split, start), rows.slice(start, config.batch_size)
            made_of = f"{version} {content_hash(part)}"
            if not _is_made_of(path, made_of):
                write_parquet(await _score_part(actor, judge, part, start, made_of), path)
                num_fresh += part.num_rows
            done += part.num_rows
            speed = num_fresh / (time.perf_counter() - began)
            report.say(f"scored {done}/{rows.num_rows} {split} rows" + (f"  {speed:.0f} rows/s" if num_fresh else ""))

    await asyncio.gather(*map(work, actors))
    parts = [pa.parquet.read_table(_part_path(folder, split, start)) for start in starts]
    if not parts:
        return SCORED_ROWS.empty_table().replace_schema_metadata({COUNTS: b"{}"})
    counts = merge(_loaded(json.loads(part.schema.metadata[COUNTS])) for part in parts)
    whole = check(pa.concat_tables([part.replace_schema_metadata(None) for part in parts]), SCORED_ROWS)
    return whole.replace_schema_metadata({COUNTS: json.dumps(_dumped(counts))})


async def _score_part(actor: Any, judge: Judge, rows: pa.Table, start: int, made_of: str) -> pa.Table:
    began = time.perf_counter()
    if not judge.template.is_pairwise:
        texts = one_side_at_a_time(rows)
        scored, metrics = await actor.score_texts.remote(texts)
        table, num_texts = scored_rows(rows, scored, judge.template, start), len(texts)
    else:
        texts = texts_of(rows)
        one, metrics = await actor.score_texts.remote(texts, in_order=True)
        other, counted = await actor.score_texts.remote(texts.swapped(), in_order=True)
        scored, first, second = of_both_orders(one, other, judge.template)
        if judge.template.reads_explanations:       # each order has counted one side only
            scored = dataclasses.replace(scored, num_without_explanation=texts.num_without_explanation)
        table, num_texts = scored_rows(rows, scored, judge.template, start, first=first, second=second), 2 * len(texts)
        metrics = merge([metrics, counted])
    counts = metrics | _counted(scored, num_texts) | {"judge_s": Sum(time.perf_counter() - began)}
    return table.replace_schema_metadata({COUNTS: json.dumps(_dumped(counts)), _MADE_OF: made_of})


def _counted(scored: Scored, num_texts: int) -> dict[str, Metric]:
    return {"texts_judged": Sum(num_texts), "inputs_cut": Sum(scored.num_truncated),
            "judged_without_explanation": Sum(scored.num_without_explanation)}


def _counts(explainer: ExplainerConfig, explained: dict[str, pa.Table], scored: dict[str, pa.Table]) -> dict[str, Any]:
    """What was counted on the way to the scores of the judged rows, and how long the judge took."""
    counts = values(_loaded(json.loads(scored[JUDGED_SPLIT].schema.metadata[COUNTS])))
    seconds, rows = counts.pop("judge_s"), explained[JUDGED_SPLIT]
    counts = {name: int(value) if value == int(value) else value for name, value in counts.items()}
    if explainer.source in ("model", "server"):
        num_texts = rows.num_rows + len(rows) - rows["other"].null_count
        kept = sum(len(texts) for name in ("explanations", "other_explanations") for texts in rows[name].to_pylist())
        counts |= {"explanations": num_texts * explainer.num_samples,
                   "explanations_unusable": num_texts * explainer.num_samples - kept}
        told = json.loads((rows.schema.metadata or {}).get(COUNTS, b"{}"))
        counts |= {name: told[name] for name in _UNUSABLE if name in told}
    # By one actor; several work side by side.
    return {"counts": {"num_rows": rows.num_rows} | counts,
            "speed": {"judge_s": seconds, "rows_per_s": rows.num_rows / seconds if seconds else None}}


def _facts(config: EvaluateConfig, judge: Judge, explainer: ExplainerConfig, sets: Sequence[pa.Table], version: str
           ) -> dict[str, Any]:
    data = {f"data[{number}]": {"path": source.path, "kind": source.kind, "num_rows": rows.num_rows,
                                "sha256": content_hash(rows)}
            for number, (source, rows) in enumerate(zip(config.data, sets, strict=True))}
    return {"judge": {"model": config.judge.reward.model, "kind": judge.kind, "version": version,
                      "head": judge.template.head if judge.reward else None, "temperature": _temperature(judge),
                      "explanations": explainer.source, "explainer": explainer.model},
            "data": data, "run": {"config": config_hash(config), "seed": config.seed}, "versions": versions()}


def _temperature(judge: Judge) -> float | None:
    """That divides the judge's class logits; None for a judge without."""
    if judge.generative is not None:
        return judge.generative.temperature
    return judge.template.temperature if judge.reward is not None else None


def _conclude(config: EvaluateConfig, judge: Judge, rows: pa.Table, scored: dict[str, pa.Table], edited: Edited | None,
              facts: dict[str, Any], counted: dict[str, Any], report: Report) -> None:
    """Figures, files and the closing lines."""
    folder = Path(config.output_dir)
    options = EvaluationOptions(config.seed, config.num_bootstraps, config.pair_temperature)
    main = scored[JUDGED_SPLIT].cast(SCORED_ROWS)
    found = evaluate(rows, main, judge.template, options)
    if edited is not None and edited.rows.num_rows:
        edits = evaluate_edits(edited, scored[EDITED_SPLIT].cast(SCORED_ROWS), main, judge.template)
        found.figures["edits"] = edits
    if judge.generative is not None:
        write_judge(folder, judge.generative)
    paths = write_evaluation(folder, facts | found.figures | counted, bins=found.bins, scores=found.scores)
    write_parquet(main, folder / "scored.parquet")
    for path in folder.glob("scored_*.part-*.parquet"):
        path.unlink()
    for line in headline(found.figures):
        report.say(line)
    counts = counted["counts"]
    shown = "  ".join(f"{name.replace('_', ' ')} {counts[name]}" for name in (
        "texts_judged", "inputs_cut", "judged_without_explanation", "explanations_unusable") if name in counts)
    report.say(f"{shown}  {counted['speed']['rows_per_s']:.0f} rows/s")
    report.say("  ".join(str(path) for path in [*paths, folder / "scored.parquet"]))


def _part_path(folder: Path, split: str, start: int) -> Path:
    return folder / f"scored_{split}.part-{start:09d}.parquet"


def _is_made_of(path: Path, made_of: str) -> bool:
    """Whether a part is there, of these rows and by a judge of this version."""
    return path.is_file() and pa.parquet.read_schema(path).metadata[_MADE_OF] == made_of.encode()


def _dumped(metrics: dict[str, Metric]) -> dict[str, list]:
    return {name: [type(metric).__name__, *dataclasses.astuple(metric)] for name, metric in metrics.items()}


def _loaded(metrics: dict[str, list]) -> dict[str, Metric]:
    return {name: _REDUCTIONS[kind](*numbers) for name, (kind, *numbers) in metrics.items()}
