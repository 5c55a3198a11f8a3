"""Judged rows for reward training and evaluation: five layouts of files, read into one schema, JUDGED.

    kind      columns (rename them with `columns`)          becomes
    labels    prompt, completion, label                     a label of a slot
    nli       premise, hypothesis, label                    the same: premise is the prompt
    pairs     prompt, chosen, rejected                      a preference (RewardBench's layout)
    verdicts  prompt, response_a, response_b, verdict       a preference: a, b or tie
    ratings   prompt, completion, rating                    a label of an ordinal slot: the class of that value

Optional columns: source (else the path is the source); explanation, and other_explanation for the other side of a pair.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from rlaif.batch import JUDGED, from_rows
from rlaif.config.checks import UserError
from rlaif.config.reward import JudgedDataConfig
from rlaif.data.tables import read_rows
from rlaif.esfp.slots import Slot, SlotTemplate

__all__ = ["COLUMNS", "content_hash", "draw", "judged_rows", "mixture"]

COLUMNS = {
    "labels": ("prompt", "completion", "label"),
    "nli": ("premise", "hypothesis", "label"),
    "pairs": ("prompt", "chosen", "rejected"),
    "verdicts": ("prompt", "response_a", "response_b", "verdict"),
    "ratings": ("prompt", "completion", "rating"),
}
# Where each kind keeps the prompt and the one or two completions.
_TEXTS = {"labels": ("prompt", "completion"), "nli": ("premise", "hypothesis"), "ratings": ("prompt", "completion"),
          "pairs": ("prompt", "chosen", "rejected"), "verdicts": ("prompt", "response_a", "response_b")}
_OPTIONAL = ("source", "explanation", "other_explanation")
_VERDICTS = {"a": 1.0, "b": 0.0, "tie": 0.5}
_NLI = ("entailment", "neutral", "contradiction")


def judged_rows(config: JudgedDataConfig, template: SlotTemplate, key: str, *, with_explanations: bool = False
                ) -> pa.Table:
    """JUDGED rows of one data set; with the file's own explanations where asked, else with none.

    Raises UserError naming `key`, the column and the row: file or column missing, a null, an unknown label, a rating no
    class has, a pair of equal sides, labels for a template without their slot.
    """
    names = {name: config.columns.get(name, name) for name in COLUMNS[config.kind]}
    optional = _OPTIONAL if with_explanations else _OPTIONAL[:1]
    for name in config.columns:
        if name not in (*names, *_OPTIONAL):
            raise UserError(f"{key}.columns must map {', '.join((*names, *_OPTIONAL))} only, got {name!r}; the name in "
                            "the file comes behind it")
    limit = None if config.where or config.num_rows is None else config.num_rows + config.skip_rows
    rows = read_rows(config.path, columns=[names[name] for name in _TEXTS[config.kind]], num_rows=limit,
                     seed=config.seed, key=f"{key}.path")
    numbered = [(number, row) for number, row in enumerate(rows)
                if all(_written(row.get(column)) == value for column, value in config.where.items())]
    numbered = numbered[config.skip_rows :][: config.num_rows]
    if not numbered:
        raise UserError(f"{key} must keep rows, got none of {len(rows)} in {config.path!r} after where = "
                        f"{config.where} and skip_rows = {config.skip_rows}; loosen them")
    if with_explanations and config.columns.get("explanation", "explanation") not in rows[0]:
        raise UserError(f"{key} must have the column {config.columns.get('explanation', 'explanation')!r} with "
                        f"explainer.source = column, got {sorted(rows[0])}; map it under columns")
    for name in optional:
        if name in config.columns and config.columns[name] not in rows[0]:
            raise UserError(f"{key}.columns must name columns of the file, got {config.columns[name]!r} for {name}; "
                            f"there are {sorted(rows[0])}")
    found = []
    for place, (number, row) in enumerate(numbered):
        for column in names.values():
            if column not in row:
                raise UserError(f"{key} must have the column {column!r}, got {sorted(row)} in row {number} of "
                                f"{config.path!r}; map it under columns")
        mine = {name: row.get(column) for name, column in names.items()}
        mine |= {name: row.get(config.columns.get(name, name)) for name in optional}
        found.append(_judged_row(config, template, mine, f"{key} row {number} of {config.path!r}",
                                 is_turned=config.kind == "pairs" and place % 2 == 1))
    return from_rows(found, JUDGED)


def _judged_row(config: JudgedDataConfig, template: SlotTemplate, row: dict[str, Any], where: str, *,
                is_turned: bool) -> dict[str, Any]:
    texts = [row[name] for name in _TEXTS[config.kind]]
    completion, other = texts[1], texts[2] if len(texts) == 3 else None
    labels = [-1] * max(1, len(template.slots))
    preference = -1.0
    if other is None:
        index, slot = _slot(config, template, where)
        labels[index] = _class(config, slot, row, where)
    else:
        if completion == other:
            raise UserError(f"{where} must have two different sides, got {completion!r} twice; take the row out")
        preference = 1.0 if config.kind == "pairs" else _preference(config, row, where)
    explanations = [_explanation(row.get(name), where) for name in ("explanation", "other_explanation")]
    if is_turned:       # half of the pairs, so that no side is always the better one
        completion, other, preference = other, completion, 1 - preference
        explanations.reverse()
    if template.is_pairwise:
        labels = [_pair_class(slot, preference) for slot in template.slots]
    return {"prompt": texts[0], "completion": completion, "explanations": explanations[0], "other": other,
            "other_explanations": explanations[1], "labels": labels, "preference": preference,
            "source": str(row.get("source") or config.path)}


def _written(value: Any) -> str:
    """A value of the file as the configuration writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _explanation(text: Any, where: str) -> list[str]:
    if not isinstance(text, str | None):
        raise UserError(f"{where} must have a text as explanation, got {text!r}; take the row out")
    return [text] if text and text.strip() else []


def _slot(config: JudgedDataConfig, template: SlotTemplate, where: str) -> tuple[int, Slot]:
    names = [slot.name for slot in template.slots]
    if template.is_pairwise or not names:
        raise UserError(f"{where} must hold pairs for this template, got kind {config.kind}; use pairs or verdicts")
    if config.slot is not None and config.slot not in names:
        raise UserError(f"{where} must label one of the slots {', '.join(names)}, got slot {config.slot!r}; rename it")
    index = 0 if config.slot is None else names.index(config.slot)
    return index, template.slots[index]


def _class(config: JudgedDataConfig, slot: Slot, row: dict[str, Any], where: str) -> int:
    """Which class of `slot` the row's label or rating stands for."""
    if config.kind == "ratings":
        rating = row["rating"]
        for index, value in enumerate(slot.values):
            if isinstance(rating, int | float) and not isinstance(rating, bool) and value == rating:
                return index
        raise UserError(f"{where} must be rated by a value of slot {slot.name} {list(slot.values)}, got {rating!r}; "
                        "change the slot's values or the data")
    label = row["label"]
    words = dict(config.labels)
    if config.kind == "nli" and not words and len(slot.classes) == len(_NLI):
        words = {name: group[0] for name, group in zip(_NLI, slot.classes, strict=True)}
    word = words.get(_written(label), _written(label))
    for index, group in enumerate(slot.classes):
        if label is not None and word in group:
            return index
    known = ", ".join([*words, *(word for group in slot.classes for word in group)])
    raise UserError(f"{where} must be labelled by one of {known}, got {label!r}; map it under labels")


def _preference(config: JudgedDataConfig, row: dict[str, Any], where: str) -> float:
    verdict = config.labels.get(_written(row["verdict"]), _written(row["verdict"]))
    if verdict not in _VERDICTS:
        raise UserError(f"{where} must have a verdict of {', '.join(_VERDICTS)}, got {row['verdict']!r}; map it under "
                        "labels")
    return _VERDICTS[verdict]


def _pair_class(slot: Slot, preference: float) -> int:
    """First class for the completion, last for the other; a tie without a class of its own has no label."""
    last = len(slot.classes) - 1
    return {1.0: 0, 0.0: last}.get(preference, 1 if last == 2 else -1)


def content_hash(rows: pa.Table) -> str:
    """16 hex digits that follow the content of JUDGED rows."""
    digest = hashlib.sha256()
    for row in rows.to_pylist():
        digest.update(json.dumps(row, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()[:16]


def mixture(sizes: Sequence[int], weights: Sequence[float], batch_size: int, num_batches: int, seed: int
            ) -> Iterator[list[int]]:
    """`num_batches` lists of row numbers, counted through all data sets one after the other.

    In an epoch every row of a data set of weight w is drawn w times, the fraction of a weight by a share of the rows
    (which over the epochs is exact, rounded down), in an order that (seed, epoch) draws. Batches are full: one that an
    epoch's end falls into goes on with the next.
    """
    starts = np.cumsum([0, *sizes[:-1]])
    waiting: list[int] = []
    epoch = 0
    for _ in range(num_batches):
        while len(waiting) < batch_size:
            rng = np.random.default_rng([seed, epoch])
            drawn = []
            for start, size, weight in zip(starts, sizes, weights, strict=True):
                drawn += [start + np.arange(size)] * int(weight)
                share = (weight % 1) * size
                drawn.append(start + rng.permutation(size)[: int((epoch + 1) * share) - int(epoch * share)])
            waiting += rng.permutation(np.concatenate(drawn)).tolist()
            epoch += 1
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


def draw(rows: pa.Table, chosen: Sequence[int], *, step: int, seed: int, explanation_dropout: float) -> pa.Table:
    """The rows `chosen` for training step `step`: with one explanation each, drawn, or with none.

    explanation_dropout: share of the rows that are shown without, in expectation; both sides of a pair alike.
    """
    rng = np.random.default_rng([seed, step, 1])
    part = rows.take(pa.array(chosen))
    is_dropped = rng.random(part.num_rows) < explanation_dropout
    which = rng.random(part.num_rows)
    for name in ("explanations", "other_explanations"):
        kept = [[texts[int(place * len(texts))]] if texts and not dropped else []
                for texts, dropped, place in zip(part[name].to_pylist(), is_dropped, which, strict=True)]
        index = part.schema.get_field_index(name)
        part = part.set_column(index, JUDGED.field(name), pa.array(kept, type=JUDGED.field(name).type))
    return part
