"""e-SNLI: slot with generated explanations, without, with human ones; a classification head; a causal LM; out of
distribution on Breaking-NLI, MED and HANS."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from benchmarks.quality.explanations import label_accuracy
from benchmarks.quality.lab import SEED, Lab, edit_entries, entry, measured, prompts_of
from rlaif.data.tables import write_parquet

ESNLI_TEST = {"esnli-test": "e-SNLI test", "breaking_nli": "Breaking-NLI", "med": "MED", "hans-regenerated": "HANS"}
LABEL_WORDS = {"entailment": "yes", "neutral": "maybe", "contradiction": "no"}


def slot(lab: Lab) -> list[dict[str, Any]]:
    return _esnli(lab, "esnli_slot", "slot, no explanation")


def head(lab: Lab) -> list[dict[str, Any]]:
    return _esnli(lab, "esnli_head", "classification head")


def slot_scratch(lab: Lab) -> list[dict[str, Any]]:
    return _esnli(lab, "esnli_slot_scratch", "slot, no explanation, encoder from nothing")


def slot_oracle(lab: Lab) -> list[dict[str, Any]]:
    """Test rows other than e-SNLI's own have no human explanation."""
    own = f"data=[{{path: {lab.data}/esnli/test.parquet, kind: nli, columns: {{source: origin}}}}]"
    return _esnli(lab, "esnli_slot_oracle", "slot, human explanation (oracle)", "judge.explainer.source=column", own)


def slot_explained(lab: Lab) -> list[dict[str, Any]]:
    """Each half of the training rows is explained by a model that learnt from the other half; one sampled explanation a
    row in training, the scores of four averaged in the test."""
    explainers = _explainers(lab)
    _explain_training_rows(lab, explainers)
    found = _esnli(lab, "esnli_slot_explained", "slot, generated explanation", "judge.explainer.source=model",
                   f"judge.explainer.model={explainers[0]}", f"judge.explainer.template='{EXPLAINER_TEMPLATE}'",
                   "judge.explainer.max_tokens=40", f"judge.explainer.temperature={TEMPERATURE}",
                   "judge.explainer.num_samples=4", "judge.explainer.engine.max_model_len=256",
                   "placement.explainer.num_actors=2")
    return found + _label_in_explanations(lab)


def _label_in_explanations(lab: Lab) -> list[dict[str, Any]]:
    """What the explanations alone give away of the labels of e-SNLI's test rows, read as the human ones are read."""
    columns = ["premise", "explanation", "label"]
    train, test = (pa.parquet.read_table(lab.data / f"esnli/{split}.parquet", columns=columns).to_pylist()[:size]
                   for split, size in (("train", 24000), ("test", 2000)))
    explained = pa.parquet.read_table(lab.folder / "esnli_slot_explained_evaluation/explained_judged.parquet")
    generated = explained.slice(0, len(test))["explanations"].to_pylist()
    labels = list(LABEL_WORDS)
    pairs = [[(row["explanation"], labels.index(row["label"])) for row in rows] for rows in (train, test)]
    sides = {"human explanation": pairs[1],
             "generated explanation": [(texts[0] if texts else "", label)
                                       for texts, (_, label) in zip(generated, pairs[1], strict=True)]}
    return [{"table": "explanations", "model": "bag of words", "test": side}
            | measured(label_accuracy(pairs[0], texts, len(labels)), [row["premise"] for row in test])
            for side, texts in sides.items()]


EXPLAINER_TEMPLATE = "{prompt} ? , {completion}"
TEMPERATURE = 0.7


def _explainers(lab: Lab) -> list[Path]:
    train = pa.parquet.read_table(lab.data / "esnli/train.parquet").slice(0, 24000)
    dev = pa.parquet.read_table(lab.data / "esnli/dev.parquet").slice(0, 512)
    data = lab.folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    is_first = _is_first_half(train)
    write_parquet(train.filter(is_first), data / "esnli_half_ab.parquet")
    write_parquet(train.filter(pc.invert(is_first)), data / "esnli_half_ba.parquet")
    write_parquet(dev, data / "esnli_explainer_dev.parquet")
    return [lab.launch("sft", f"esnli_explainer_{half}", f"esnli_explainer_{half}") for half in ("ab", "ba")]


def _is_first_half(rows: pa.Table) -> pa.Array:
    """By premise: rows of one premise stay together, so that no explainer has read of a premise it is to explain."""
    return pa.array([hashlib.sha256(premise.encode()).digest()[0] < 128 for premise in rows["premise"].to_pylist()])


def _explain_training_rows(lab: Lab, explainers: Sequence[Path]) -> None:
    train, dev = (lab.folder / "data" / f"esnli_{split}_explained.parquet" for split in ("train", "dev"))
    if train.is_file() and dev.is_file():
        return
    columns = ["premise", "hypothesis", "label"]
    rows = pa.parquet.read_table(lab.data / "esnli/train.parquet", columns=columns).slice(0, 24000)
    is_first = _is_first_half(rows)
    halves = [rows.filter(pc.invert(is_first)), rows.filter(is_first)]      # what each explainer has not seen
    explained = [_explained(half, explainer) for half, explainer in zip(halves, explainers, strict=True)]
    write_parquet(pa.concat_tables([explained[1], explained[0]]), train)
    held_out = pa.parquet.read_table(lab.data / "esnli/dev.parquet", columns=columns)
    write_parquet(_explained(held_out.slice(0, 2000), explainers[0]), dev)


def _explained(rows: pa.Table, explainer: Path) -> pa.Table:
    """`rows` with one sampled explanation each by `explainer`; a blank or cut one stays away."""
    import asyncio

    import ray

    from actors.cluster.connection import connect
    from actors.fitting.explaining import explain_splits
    from rlaif.config.reward import JudgedDataConfig
    from rlaif.config.train import EngineConfig, ExplainerConfig, RoleConfig
    from rlaif.data.judged_rows import judged_rows
    from rlaif.esfp.model_checks import with_sampling
    from rlaif.esfp.slots import Slot, SlotTemplate

    template = SlotTemplate("{prompt} {completion} {explanation} [verdict]",
                            [Slot("verdict", [["yes"], ["maybe"], ["no"]], [1, 0, -1])], 512)
    place = explainer / f"rows_{rows.num_rows}"
    place.mkdir(exist_ok=True)
    write_parquet(rows, place / "rows.parquet")
    judged = judged_rows(JudgedDataConfig(path=str(place / "rows.parquet"), kind="nli"), template, "data")
    config = with_sampling(ExplainerConfig(source="model", model=str(explainer.resolve()), max_tokens=40,
                                           temperature=TEMPERATURE, template=EXPLAINER_TEMPLATE,
                                           engine=EngineConfig(max_model_len=256)))
    connect()
    try:
        found = asyncio.run(explain_splits(config, RoleConfig(num_actors=2), {"rows": judged}, str(place), SEED,
                                           _Console(), ready_timeout_s=300.0))
    finally:
        ray.shutdown()
    texts = [row[0] if row else None for row in found["rows"]["explanations"].to_pylist()]
    return rows.append_column("explanation", pa.array(texts, pa.string()))


class _Console:
    """The part of a report that explaining needs."""

    @staticmethod
    def say(text: str) -> None:
        print(text, flush=True)


def causal_judge(lab: Lab) -> list[dict[str, Any]]:
    data = lab.folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    for split, name, size in (("train", "esnli_answers", 24000), ("dev", "esnli_answers_dev", 512)):
        rows = pa.parquet.read_table(lab.data / f"esnli/{split}.parquet").slice(0, size)
        words = [LABEL_WORDS[label] for label in rows["label"].to_pylist()]
        answers = rows.select(["premise", "hypothesis"]).append_column("answer", pa.array(words))
        write_parquet(answers, data / f"{name}.parquet")
    model = lab.launch("sft", "esnli_causal_judge", "esnli_causal_judge")
    slot = "{name: verdict, classes: [['yes'], [maybe], ['no']], values: [1, 0, -1]}"
    return _esnli_rows(lab, model, "causal LM as judge", f"judge.generative.slot={slot}",
                       "judge.generative.text='[CLS] {prompt} ? , {completion} [SEP]'",
                       "judge.generative.max_tokens=250")


def _esnli(lab: Lab, config: str, label: str, *overrides: str) -> list[dict[str, Any]]:
    if lab.is_quick:
        dev = f"data.dev=[{{path: {lab.data}/esnli/dev.parquet, kind: nli, num_rows: 200}}]"
        short = [*lab.short(40), "dev_every=0", dev, f"slot_model.model={lab.folder}/start/masked"]
    else:
        short = []
    return _esnli_rows(lab, lab.launch("train_reward", config, config, *short), label, *overrides)


def _esnli_rows(lab: Lab, model: Path, label: str, *overrides: str) -> list[dict[str, Any]]:
    if lab.is_quick:
        few = f"data=[{{path: {lab.data}/esnli/test.parquet, kind: nli, num_rows: 400, columns: {{source: origin}}}}]"
        overrides = (*overrides, few)
    place = lab.launch("evaluate", "esnli_evaluate", f"{model.name}_evaluation", f"judge.reward.model={model}",
                       *overrides)
    scored = pa.parquet.read_table(place / "scored.parquet").to_pylist()
    prompt_of = prompts_of(place)
    found = []
    for source, name in ESNLI_TEST.items():
        rows = [row for row in scored if row["source"] == source]
        if not rows:
            continue
        guesses = [max(range(3), key=row["probabilities"].__getitem__) for row in rows]
        labels = [row["labels"][0] for row in rows]
        is_two_way = source == "hans-regenerated"
        is_right = [(guess == 0) == (label == 0) if is_two_way else guess == label
                    for guess, label in zip(guesses, labels, strict=True)]
        prompts = [prompt_of[row["row"]] for row in rows]
        found.append(entry("e-SNLI", label, name, is_right, prompts, model))
    return found + edit_entries("e-SNLI", label, place)
