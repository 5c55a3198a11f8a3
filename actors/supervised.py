"""Supervised training and reward training on the same learners as reinforcement learning."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import ray

from actors.cluster import connect
from actors.explainer import ExplainerActor
from actors.gang import Gang
from actors.learner import LearnerSpec
from actors.placement import Placement, Roles, refuse_too_large
from rlaif.batch import JUDGED, check
from rlaif.cli import working
from rlaif.config import ExplainerConfig, RewardTrainConfig, RoleConfig, SftConfig, UserError
from rlaif.explanations import check_template
from rlaif.metrics import merge, values
from rlaif.models import absolute, load_tokenizer, refuse_incomplete, word_tokenizer
from rlaif.preflight import check_context, check_slot_model
from rlaif.report import Report, write_json
from rlaif.reward_model import RewardSpec, write_spec
from rlaif.run_folder import claim, finish, refuse_other_run
from rlaif.slots import Slot, SlotTemplate, compile_template
from rlaif.supervision import batches, class_index, judged_rows, supervised_rows, supervised_texts
from rlaif.tables import read_rows
from rlaif.versions import versions

READY_TIMEOUT_S = 300.0
EXPLAIN_ROWS = 1024     # rows an explainer is given at a time while a data set is explained
TOKENIZER, EXPLAINED_FILE = "start_tokenizer", "explained_{split}.parquet"


def run_sft(config: SftConfig) -> None:
    """launch/sft.py: trains a causal LM on (input, target) rows; output_dir becomes its Hugging Face folder."""
    if refuse_other_run(config.output_dir, config):
        print(f"{config.output_dir} is complete; nothing to do", flush=True)
        return
    texts = {split: supervised_texts(config, split) for split in ("train", "dev")}
    if config.policy.model is None:
        tokenizer = word_tokenizer((f"{a} {b}" for part in texts.values() for a, b in part), masked=False)
    else:
        refuse_incomplete(config.policy.model, "policy.model")
        tokenizer = load_tokenizer(config.policy.model)
        check_context(config.policy.model, config.max_tokens, "max_tokens")
    rows = {split: supervised_rows(part, tokenizer, config.max_tokens, f"data.{split}")
            for split, part in texts.items()}
    with _run(config, {"learner": config.placement}) as report:
        folder = str(Path(config.output_dir) / TOKENIZER)
        tokenizer.save_pretrained(folder)
        model = dataclasses.replace(config.policy, model=absolute(config.policy.model))
        spec = LearnerSpec(model=model, tokenizer=str(Path(folder).resolve()), learner=config.learner,
                           total_steps=config.steps, seed=config.seed)
        asyncio.run(_fit(config, spec, rows["train"], rows["dev"], report))


def run_reward_training(config: RewardTrainConfig) -> None:
    """launch/train_reward.py: explains every row, then trains the slot model; output_dir becomes a reward folder."""
    if refuse_other_run(config.output_dir, config):
        print(f"{config.output_dir} is complete; nothing to do", flush=True)
        return
    template = slot_template(config)
    refuse_incomplete(config.explainer.model, "explainer.model")
    check_template(config.explainer.template, config.explainer.principles, "explainer.template")
    check_context(config.explainer.model, config.explainer.engine.max_model_len, "explainer.engine.max_model_len")
    if config.slot_model.model is None:
        compile_template(template, word_tokenizer(_slot_texts({}, template), masked=True))
    else:
        refuse_incomplete(config.slot_model.model, "slot_model.model")
        check_slot_model(config.slot_model.model, template)
    rows, labels = {}, {}
    for split in ("train", "dev"):
        key = f"data.{split}"
        rows[split] = read_rows(getattr(config.data, split), columns=["prompt", "completion", config.label_column],
                                num_rows=getattr(config.data, f"num_{split}"), seed=config.data.seed, key=key)
        labels[split] = [class_index(config.template.slots[0], row[config.label_column], key, number)
                         for number, row in enumerate(rows[split])]
    role = RoleConfig(config.explainer.num_actors, config.explainer.num_cpus, config.explainer.num_gpus,
                      config.explainer.num_threads)
    with _run(config, {"explainer": role}) as report:
        refuse_too_large({"learner": config.placement}, ray.cluster_resources())
        judged = asyncio.run(_explain(config, role, rows, labels, report))
        model = dataclasses.replace(config.slot_model, model=absolute(config.slot_model.model))
        tokenizer_folder = model.model
        if tokenizer_folder is None:
            tokenizer = word_tokenizer(_slot_texts(judged, template), masked=True)
            tokenizer_folder = str((Path(config.output_dir) / TOKENIZER).resolve())
            tokenizer.save_pretrained(tokenizer_folder)
            compile_template(template, tokenizer)
        spec = LearnerSpec(model=model, tokenizer=tokenizer_folder, learner=config.learner,
                           total_steps=config.steps, seed=config.seed, objective=template, is_masked=True)
        figures = asyncio.run(_fit(config, spec, judged["train"], judged["dev"], report))
        write_spec(config.output_dir, RewardSpec(
            template=template, explainer=_reference(config.explainer.model, config.output_dir),
            explanation_template=config.explainer.template,
            principles=config.explainer.principles, facts={"dev": figures}))


def slot_template(config: RewardTrainConfig) -> SlotTemplate:
    """The template of the configuration. Raises ValueError for one that cannot be filled."""
    if not config.template.slots:
        raise UserError("template.slots must name at least one slot, got none")
    if len(config.template.slots) > 1:
        raise UserError(f"template.slots must be one slot for {config.label_column!r}, got "
                        f"{len(config.template.slots)}")
    try:
        slots = [Slot(slot.name, slot.classes, slot.values, slot.weight) for slot in config.template.slots]
        return SlotTemplate(config.template.text, slots, config.template.max_tokens)
    except ValueError as error:
        raise UserError(f"{error} (under template)") from error


@contextlib.contextmanager
def _run(config: SftConfig | RewardTrainConfig, first_roles: Roles) -> Iterator[Report]:
    """Ray, the run's folder and its report around a training; marks the run complete at the end."""
    where = connect()
    report = None
    try:
        refuse_too_large(first_roles, ray.cluster_resources())
        claim(config.output_dir, config)
        report = Report(config.output_dir)
        report.say(f"{where}; results go to {Path(config.output_dir).resolve()}")
        with working():
            yield report
        shutil.rmtree(Path(config.output_dir) / TOKENIZER, ignore_errors=True)
        finish(config.output_dir)
    finally:
        if report is not None:
            report.close()
        ray.shutdown()


async def _fit(config: SftConfig | RewardTrainConfig, spec: LearnerSpec, train: pa.Table, dev: pa.Table,
               report: Report) -> dict[str, float]:
    """Trains, measures on `dev`, saves; returns the figures on `dev`."""
    started = time.perf_counter()
    placement = Placement({"learner": config.placement}, "PACK", READY_TIMEOUT_S)
    try:
        gang = Gang(spec, placement, config.placement.num_actors)
        await asyncio.wait_for(gang.join(), READY_TIMEOUT_S)
        report.say(f"learners ready in {time.perf_counter() - started:.1f} s; {train.num_rows} rows, "
                   f"{config.steps} steps of {min(config.batch_size, train.num_rows)}")
        started, parts = time.perf_counter(), []
        order = batches(train.num_rows, config.batch_size, config.steps, config.seed)
        for step, chosen in enumerate(order, start=1):
            parts.append(await gang.update(ray.put(train.take(chosen))))
            if step % config.log_every == 0 or step == config.steps:
                shown = values(merge(parts))
                report.step(step, shown)
                report.say(f"step {step}/{config.steps}  " + _shown(shown) +
                           f"  {(time.perf_counter() - started) / step:.3f} s a step")
                parts = []
        figures = values(await gang.measure(ray.put(dev)))
        report.say(f"dev: {dev.num_rows} rows  " + _shown(figures))
        await _save_into(gang, config.output_dir)
        write_json(Path(config.output_dir) / "summary.json", {
            "steps": config.steps, "seed": config.seed, "dev": figures, "num_train": train.num_rows,
            "num_dev": dev.num_rows, "train_s": time.perf_counter() - started, "versions": versions()})
        return figures
    finally:
        placement.remove()


def _shown(figures: dict[str, float]) -> str:
    return "  ".join(f"{name} {figures[name]:.4f}" for name in ("loss", "nll", "slot_accuracy", "slot_nll", "grad_norm")
                     if name in figures)


async def _save_into(gang: Gang, output_dir: str) -> None:
    """Saves the model's files into `output_dir` itself; the weights arrive last."""
    beside = Path(output_dir).resolve() / "model"
    shutil.rmtree(beside, ignore_errors=True)
    await gang.save(str(beside))
    for path in sorted(beside.iterdir(), key=lambda path: path.suffix == ".safetensors"):
        path.replace(Path(output_dir) / path.name)
    beside.rmdir()


async def _explain(config: RewardTrainConfig, role: RoleConfig, rows: dict[str, list[dict]],
                   labels: dict[str, list[int]], report: Report) -> dict[str, pa.Table]:
    """JUDGED rows of every split, explained by the explainer; what an earlier attempt explained is read back."""
    files = {split: Path(config.output_dir) / EXPLAINED_FILE.format(split=split) for split in rows}
    if all(path.is_file() for path in files.values()):
        report.say("explanations are there already")
        return {split: check(pa.parquet.read_table(path), JUDGED) for split, path in files.items()}
    source = config.explainer
    explainer = ExplainerConfig(model=absolute(source.model), template=source.template, principles=source.principles,
                                max_tokens=source.max_tokens, engine=source.engine)
    placement = Placement({"explainer": role}, "PACK", READY_TIMEOUT_S)
    try:
        actors = [ExplainerActor.options(**placement.options("explainer", index)).remote(
            explainer, role.num_gpus, config.seed) for index in range(role.num_actors)]
        await asyncio.wait_for(asyncio.gather(*(_ready(actor) for actor in actors)), READY_TIMEOUT_S)
        found = {}
        for split in rows:
            table = judged_rows(rows[split], await _texts(actors, rows[split], split, report), labels[split])
            pa.parquet.write_table(table, files[split].with_suffix(".partial"))
            files[split].with_suffix(".partial").rename(files[split])
            found[split] = table
        return found
    finally:
        placement.remove()


async def _ready(actor: ray.actor.ActorHandle) -> None:
    await actor.ready.remote()


async def _texts(actors: list, rows: list[dict], split: str, report: Report) -> list[str]:
    texts: list[str] = []
    parts = []
    started = time.perf_counter()
    span = EXPLAIN_ROWS * len(actors)
    for start in range(0, len(rows), span):
        pieces = [rows[i : i + EXPLAIN_ROWS] for i in range(start, min(start + span, len(rows)), EXPLAIN_ROWS)]
        answers = await asyncio.gather(*(
            actor.explain_texts.remote([row["prompt"] for row in piece], [row["completion"] for row in piece])
            for actor, piece in zip(actors, pieces, strict=False)))
        for found, metrics in answers:
            texts += found
            parts.append(metrics)
        cut = values(merge(parts))
        report.say(f"explained {len(texts)}/{len(rows)} {split} rows  {cut['explanations_cut']:.0f} cut  "
                   f"{time.perf_counter() - started:.1f} s")
    return texts


def _slot_texts(judged: dict[str, pa.Table], template: SlotTemplate) -> Iterator[str]:
    """Every text the slot model will read: the columns, the template's own words, the label words."""
    for table in judged.values():
        for name in ("prompt", "completion", "explanation"):
            yield from table[name].to_pylist()
    yield re.sub(r"\{\w+\}|\[\w+\]", " ", template.text)
    yield " ".join(word for slot in template.slots for words in slot.classes for word in words)


def _reference(explainer: str, output_dir: str) -> str:
    """How the reward folder names its explainer: a folder as seen from there, a name as it is."""
    return os.path.relpath(explainer, output_dir) if Path(explainer).is_dir() else explainer
