"""Reward training: explanations of every row first, then an encoder that judges with them, then its temperature."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from actors.fitting.explaining import explain_splits
from actors.fitting.fitting import TOKENIZER, FitOptions, fit, run_folder
from actors.learners.gang import Gang
from actors.learners.learner import LearnerSpec
from rlaif.batch import JUDGED, from_rows
from rlaif.config.checks import UserError
from rlaif.config.files import config_hash
from rlaif.config.reward import RewardTrainConfig
from rlaif.config.train import ExplainerConfig
from rlaif.data.judged_rows import content_hash, draw, judged_rows, mixture
from rlaif.esfp.calibration import (
    expected_calibration_error,
    fit_prior,
    fit_score_temperature,
    fit_temperature,
    log_sigmoid,
)
from rlaif.esfp.encoding import compile_template
from rlaif.esfp.explanations import check_template
from rlaif.esfp.model_checks import check_explainer, check_slot_model, with_sampling
from rlaif.esfp.reward_spec import ExplainerReference, RewardSpec, write_spec
from rlaif.esfp.slots import SlotTemplate
from rlaif.esfp.templates import slot_template
from rlaif.learning.judging_objective import JudgingOptions
from rlaif.modeling.models import absolute, load_tokenizer, refuse_incomplete, word_tokenizer
from rlaif.running.preflight import check_learner
from rlaif.running.report import Report
from rlaif.running.run_folder import refuse_other_run

CONTENT_FREE = ("", "N/A")      # Zhao et al. 2021 (arXiv 2102.09690), section 5; their third is the mask, which is ours


def run_reward_training(config: RewardTrainConfig) -> None:
    """launch/train_reward.py: explains every row, then trains the encoder; output_dir becomes a reward folder."""
    if refuse_other_run(config.output_dir, config):
        print(f"{config.output_dir} is complete; nothing to do", flush=True)
        return
    template = slot_template(config.template)
    explainer = checked_explainer(config.explainer, template)
    refuse_loss(config, template)
    check_learner(config.learner, "reward training", None, config.steps)
    if config.slot_model.model is None:
        compile_template(template, word_tokenizer(_all_texts({}, template), masked=True))
    else:
        refuse_incomplete(config.slot_model.model, "slot_model.model")
        check_slot_model(config.slot_model.model, template)
    sets = {split: [judged_rows(source, template, f"data.{split}[{number}]",
                                with_explanations=explainer.source == "column")
                    for number, source in enumerate(getattr(config.data, split))] for split in ("train", "dev")}
    rows = {split: pa.concat_tables(tables) for split, tables in sets.items()}
    refuse_selection(config, template, rows["dev"])
    stages = [{"learner": config.placement.learner}]
    if explainer.source in ("model", "server"):
        stages.append({"explainer": config.placement.explainer})
    with run_folder(config, stages) as report:
        judged = asyncio.run(explain_splits(explainer, config.placement.explainer, rows, config.output_dir, config.seed,
                                            report, config.ready_timeout_s))
        _train(config, template, explainer, judged, [table.num_rows for table in sets["train"]], report)


def checked_explainer(config: ExplainerConfig, template: SlotTemplate) -> ExplainerConfig:
    """The complete configuration of stage 1 for rows of a file. Raises UserError for one that cannot explain."""
    if not template.reads_explanations:
        if config.source not in (None, "none"):
            raise UserError(f"template.text must have {{explanation}} with explainer.source = {config.source}, got "
                            f"{template.text!r}; add it, or set explainer.source=none")
        return dataclasses.replace(config, source="none")
    source = config.source or "model"
    if source in ("model", "server"):
        if config.model is None or config.template is None:
            missing = "model" if config.model is None else "template"
            raise UserError(f"explainer.{missing} must be given with explainer.source = {source}, got nothing")
        check_template(config.template, config.principles, "explainer.template")
    if source == "model":
        refuse_incomplete(config.model, "explainer.model")
        config = dataclasses.replace(config, model=absolute(config.model))
    config = with_sampling(dataclasses.replace(config, source=source))
    check_explainer(config)
    return config


def refuse_loss(config: RewardTrainConfig, template: SlotTemplate) -> None:
    if config.prior != "none" and template.head == "scalar":
        raise UserError(f"prior must be none with template.head = scalar, got {config.prior!r}: it has no classes")
    ordinal = [slot.name for slot in template.slots if slot.kind == "ordinal"]
    if config.loss.pairs == "ordinal" and len(ordinal) != 1:
        raise UserError(f"template must have one ordinal slot with loss.pairs = ordinal, got {len(ordinal)}; use "
                        "bradley_terry")
    if config.loss.flood_radius and not ordinal:
        raise UserError(f"template must have an ordinal slot with loss.flood_radius = {config.loss.flood_radius}, got "
                        "none; set it to 0")
    if config.loss.consistency_weight and template.head == "scalar":
        raise UserError(f"loss.consistency_weight must be 0 with template.head = scalar, got "
                        f"{config.loss.consistency_weight}: a scalar has no classes to be consistent about")
    if config.loss.masked_lm_weight and template.head != "slot":
        raise UserError(f"loss.masked_lm_weight must be 0 with template.head = {template.head}, got "
                        f"{config.loss.masked_lm_weight}: only a masked LM has the words")


def refuse_selection(config: RewardTrainConfig, template: SlotTemplate, dev: pa.Table) -> None:
    """Raises UserError where nothing in the dev rows can be measured as `select_by`, prior or temperature ask."""
    labels, preferences = dev["labels"].to_pylist(), dev["preference"].to_pylist()
    if not any(label >= 0 for row in labels for label in row):
        if config.prior == "dev":
            raise UserError(f"data.dev must hold labels of slots with prior = dev, got none in {dev.num_rows} rows; "
                            "use none or content_free")
        if not any(wins in (0.0, 1.0) for wins in preferences):
            raise UserError(f"data.dev must hold labels or decided pairs, got {dev.num_rows} ties; add some")
    # A slot whose neighbouring ratings count as right has no accuracy of its own.
    plain = [s for s, slot in enumerate(template.slots) if not (config.loss.flood_radius and slot.kind == "ordinal")]
    has_labels = any(row[s] >= 0 for row in labels for s in plain)
    # A pairwise slot is asked which side is better: its accuracy is slot_accuracy.
    has_pairs = not template.is_pairwise and any(wins in (0.0, 1.0) for wins in preferences)
    for name, has_some, wanted in (("slot_accuracy", has_labels, "labels of slots"),
                                   ("pair_accuracy", has_pairs, "pairs, judged one side at a time,")):
        if config.select_by == name and not has_some:
            raise UserError(f"data.dev must hold {wanted} with select_by = {name}, got none in {dev.num_rows} rows; "
                            "use select_by=loss")


def _train(config: RewardTrainConfig, template: SlotTemplate, explainer: ExplainerConfig, judged: dict[str, pa.Table],
           sizes: list[int], report: Report) -> None:
    train, dev = judged["train"], judged["dev"]
    model = dataclasses.replace(config.slot_model, model=absolute(config.slot_model.model))
    tokenizer_folder = model.model
    if tokenizer_folder is None:
        tokenizer = word_tokenizer(_all_texts(judged, template), masked=True)
        tokenizer_folder = str((Path(config.output_dir) / TOKENIZER).resolve())
        tokenizer.save_pretrained(tokenizer_folder)
    else:
        tokenizer = load_tokenizer(tokenizer_folder)
    compile_template(template, tokenizer)
    spec = LearnerSpec(model=model, tokenizer=tokenizer_folder, learner=config.learner, total_steps=config.steps,
                       seed=config.seed, objective=JudgingOptions(template, config.loss))
    options = FitOptions(config.output_dir, config.seed, config.steps, config.log_every, config.checkpoint_every,
                         config.dev_every, config.select_by, config.ready_timeout_s)
    weights = [source.weight for source in config.data.train]

    def batches_after(step: int) -> Iterator[pa.Table]:
        order = mixture(sizes, weights, config.batch_size, config.steps, config.seed)
        for number, chosen in enumerate(islice(order, step, None), start=step + 1):
            yield draw(train, chosen, step=number, seed=config.seed,
                       explanation_dropout=config.loss.explanation_dropout)

    async def examine(gang: Gang) -> dict[str, Any]:
        return await _calibration(gang, dev, template, config)

    best = asyncio.run(fit(options, spec, config.placement.learner, batches_after, dev, train.num_rows, report,
                           examine))
    temperature = best["temperature"]
    report.say(f"temperature {temperature:.3f}; calibration error on dev {best['calibration_error']:.4f}, before "
               f"{best['calibration_error_uncalibrated']:.4f}")
    facts = {
        "dev": best["figures"], "calibration_error": best["calibration_error"], "best_step": best["step"],
        "config": config_hash(config), "data": {split: {"num_rows": table.num_rows, "sha256": content_hash(table)}
                                                for split, table in judged.items()}}
    write_spec(config.output_dir, RewardSpec(
        template=dataclasses.replace(template, temperature=temperature), prior=best["prior"],
        explainer=_reference(explainer, config.output_dir), facts=facts))


async def _calibration(gang: Gang, dev: pa.Table, template: SlotTemplate, config: RewardTrainConfig) -> dict[str, Any]:
    """Prior and temperature of the weights as they are, and the calibration error on dev before and after."""
    logits, scores = await gang.judge(ray.put(dev))
    prior = None
    if config.prior == "content_free":
        # With a blank explanation, not without one: the form that nearly all rows have.
        blank = [{"prompt": text, "completion": text, "explanations": [text], "labels": [-1] * len(template.slots),
                  "other": text if template.is_pairwise else None, "other_explanations": [text], "preference": -1.0,
                  "source": ""} for text in CONTENT_FREE]
        mean = (await gang.judge(ray.put(from_rows(blank, JUDGED))))[0].mean(axis=0)
        prior = [mean[s, : len(slot.classes)].tolist() for s, slot in enumerate(template.slots)]
    labels = np.asarray(dev["labels"].to_pylist())
    if config.prior == "dev":
        fitted = fit_prior(logits, labels)
        prior = [fitted[s, : len(slot.classes)].tolist() for s, slot in enumerate(template.slots)]
    for s, row in enumerate(prior or []):
        logits[:, s, : len(row)] -= np.asarray(row, dtype=logits.dtype)
    found: dict[str, Any] = {"prior": prior}
    preferences = np.asarray(dev["preference"].to_pylist())
    if template.slots and (labels >= 0).any():
        temperature = fit_temperature(logits, labels)
        chosen = labels >= 0

        def error(temperature: float) -> float:
            scaled = logits[chosen].astype(np.float64) / temperature
            odds = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
            return expected_calibration_error(odds / odds.sum(axis=-1, keepdims=True), labels[chosen])
    else:
        known = preferences >= 0
        margins = (scores[:, 0] - scores[:, 1])[known].astype(np.float64)
        # A temperature divides logits: only margins and scalars shrink with them, an expected value does not.
        can_fit = all(slot.score == "margin" for slot in template.slots)
        temperature = fit_score_temperature(margins, preferences[known]) if can_fit else 1.0
        is_clear = preferences[known] != 0.5

        def error(temperature: float) -> float:
            first = np.exp(log_sigmoid(margins[is_clear] / temperature))
            return expected_calibration_error(first, preferences[known][is_clear].astype(np.int64))
    if not config.fit_temperature:
        temperature = 1.0
    return found | {"temperature": temperature, "calibration_error": error(temperature),
                    "calibration_error_uncalibrated": error(1.0)}


def _all_texts(judged: dict[str, pa.Table], template: SlotTemplate) -> Iterator[str]:
    """Every text the encoder will read: the columns, the template's own words, the label words."""
    for table in judged.values():
        for name in ("prompt", "completion", "other"):
            yield from (text for text in table[name].to_pylist() if text is not None)
        for name in ("explanations", "other_explanations"):
            yield from (text for row in table[name].to_pylist() for text in row)
    for text in (template.text, template.without_explanation or ""):
        yield re.sub(r"\{\w+\}|\[\w+\]", " ", text)
    yield " ".join(word for slot in template.slots for words in slot.classes for word in words)


def _reference(explainer: ExplainerConfig, output_dir: str) -> ExplainerReference | None:
    """How the reward folder names its explainer: a folder as seen from there, a name as it is."""
    if explainer.source not in ("model", "server"):
        return None
    assert explainer.model is not None and explainer.template is not None
    model = explainer.model
    if Path(model).is_dir():
        model = os.path.relpath(model, Path(output_dir).resolve())
    return ExplainerReference(model, explainer.template, explainer.principles, explainer.max_tokens,
                              explainer.temperature, explainer.num_samples, explainer.source)
