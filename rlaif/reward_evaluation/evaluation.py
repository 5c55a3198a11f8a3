"""From what a judge said of judged rows to how far that is right: the figures of an evaluation.

    JUDGED rows, SCORED_ROWS of them  ->  labels · ratings · pairs · best_of_n        edited rows of both  ->  edits
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rlaif.batch import JUDGED, check
from rlaif.esfp.calibration import Bin, fit_score_temperature, log_sigmoid, reliability, top_label
from rlaif.esfp.slots import Slot, SlotTemplate
from rlaif.reward_evaluation.bias import best_of_n, edit_shift, length_bias, position_bias
from rlaif.reward_evaluation.edits import apply_edit, harmless_edits
from rlaif.reward_evaluation.metrics import label_metrics, pair_metrics, rating_metrics
from rlaif.reward_evaluation.scored_rows import SCORED_ROWS
from rlaif.statistics import Interval, bootstrap, by_group, length_buckets, mean

__all__ = ["Edited", "Evaluation", "EvaluationOptions", "edited_rows", "evaluate", "evaluate_edits", "headline",
           "preference_margins"]

SMALLEST_PROBABILITY = 1e-7     # float32 cannot tell a preference that is nearer to 0 or 1; keeps its log odds finite
_SHOWN = ("num_rows", "accuracy", "log_loss", "ece")


@dataclass(frozen=True)
class EvaluationOptions:
    """How figures are computed; the fields are those of EvaluateConfig."""

    seed: int = 0
    num_bootstraps: int = 1000
    pair_temperature: float = 1.0


@dataclass(frozen=True)
class Evaluation:
    """Figures by section, and what the plots show."""

    figures: dict[str, Any]
    bins: list[Bin] = field(default_factory=list)                       # of the first labelled slot, else of the pairs
    scores: dict[str, list[float]] = field(default_factory=dict)        # rewards by label, or of both sides of pairs


def evaluate(rows: pa.Table, scored: pa.Table, template: SlotTemplate, options: EvaluationOptions) -> Evaluation:
    """The figures of JUDGED `rows` and their SCORED_ROWS, in the same order.

        labels      by slot: see `rlaif.reward_evaluation.metrics.label_metrics`, with tables by source and length
        ratings     by ordinal slot: the slot's expected value against the rating, see `rating_metrics`
        pairs       see `pair_metrics`, with length bias, position bias and the same tables
        best_of_n   by slot, where prompts repeat: the label's value of the response with the highest reward

    A section without rows is left out. accuracy_interval is a 95 % bootstrap interval over prompts: rows of one prompt
    come along together. Lengths are characters.
    """
    assert check(rows, JUDGED).num_rows == check(scored, SCORED_ROWS).num_rows > 0
    found: dict[str, Any] = {}
    bins: list[Bin] = []
    scores: dict[str, list[float]] = {}
    labels = np.asarray(scored["labels"].to_pylist())
    if not template.is_pairwise:
        for s, slot in enumerate(template.slots):
            chosen = np.flatnonzero(labels[:, s] >= 0)
            if len(chosen):
                part = _Part(rows, scored, chosen, options)
                probabilities = _slot_columns(scored["probabilities"], template, s)[chosen]
                found.setdefault("labels", {})[slot.name] = _label_figures(part, probabilities, labels[chosen, s], slot)
                _add_ratings(found, part, probabilities, labels[chosen, s], slot)
                bins = bins or reliability(probabilities, labels[chosen, s])
                scores |= {} if scores else _by_label(part.rewards, labels[chosen, s], slot)
    chosen = np.flatnonzero(np.asarray(scored["preference"]) >= 0)
    if len(chosen):
        part = _Part(rows, scored, chosen, options)
        margins, targets = preference_margins(scored, template)[chosen], np.asarray(scored["preference"])[chosen]
        found["pairs"] = _pair_figures(part, margins, targets, template)
        decided = targets != 0.5
        if decided.any():
            first = np.exp(log_sigmoid(margins / options.pair_temperature))
            bins = bins or reliability(first[decided], targets[decided].astype(np.int64))
        scores = scores or _by_side(part, targets, template)
    return Evaluation(found, bins, scores)


def preference_margins(scored: pa.Table, template: SlotTemplate) -> NDArray:
    """`[N]`, how much the completion is preferred to the other side; NaN for rows without one.

    The difference of the two rewards; with a pairwise template the log odds of the completion being better, a tie
    counting half: log p - log (1 - p), p the weighted mean over slots, within SMALLEST_PROBABILITY of 0 and 1.
    """
    if not template.is_pairwise:
        others = np.asarray(scored["other_reward"].to_pylist(), dtype=np.float64)       # None becomes NaN
        return np.asarray(scored["reward"], dtype=np.float64) - others
    p = np.clip(_first_is_better(scored["probabilities"], template), SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    return np.log(p) - np.log1p(-p)


def _slot_columns(probabilities: pa.ChunkedArray, template: SlotTemplate, s: int) -> NDArray:
    """`[N, K]`, the class probabilities of slot `s` out of a column that holds those of all slots."""
    sizes = [len(slot.classes) for slot in template.slots]
    flat = np.asarray(probabilities.to_pylist(), dtype=np.float64).reshape(len(probabilities), sum(sizes))
    return flat[:, sum(sizes[:s]) : sum(sizes[: s + 1])]


def headline(figures: dict[str, Any]) -> list[str]:
    """The table that closes a run: one line a slot, one for the pairs."""
    lines = {f"labels of {name}": part for name, part in figures.get("labels", {}).items()}
    lines |= {"pairs": figures["pairs"]} if "pairs" in figures else {}
    width = max(map(len, lines), default=0)
    table = [f"  {'':<{width}}{'rows':>9}{'accuracy':>10}{'95 % interval':>18}{'log-loss':>10}{'ECE':>8}"]
    for name, part in lines.items():
        interval = part["accuracy_interval"]
        span = "" if interval.low is None else f"{interval.low:.3f} to {interval.high:.3f}"
        cells = ["-" if part[key] is None else f"{part[key]:.3f}" for key in ("accuracy", "log_loss", "ece")]
        table.append(f"  {name:<{width}}{part['num_rows']:>9}{cells[0]:>10}{span:>18}{cells[1]:>10}{cells[2]:>8}")
    return table


@dataclass(frozen=True)
class Edited:
    """Rows whose completion was edited: JUDGED rows, the row each comes from, and the edit's name."""

    rows: pa.Table
    origins: list[int]
    names: list[str]


def edited_rows(rows: pa.Table, template: SlotTemplate, num_rows: int, seed: int) -> Edited:
    """`num_rows` of JUDGED `rows`, drawn, each with every harmless edit that changes its completion.

    The other side of a pair stays where the template reads both sides at once; else it is left out.
    """
    drawn = np.sort(np.random.default_rng(seed).permutation(rows.num_rows)[:num_rows])
    part = rows.take(pa.array(drawn))
    completions, contents = part["completion"].to_pylist(), part.to_pylist()
    found, origins, names = [], [], []
    for name, edit in harmless_edits(_label_words(template)).items():
        for place, text in zip(*apply_edit(edit, completions), strict=True):
            row = contents[place] | {"completion": text}
            found.append(row if template.is_pairwise else row | {"other": None, "other_explanations": []})
            origins.append(int(drawn[place]))
            names.append(name)
    return Edited(pa.Table.from_pylist(found, schema=JUDGED), origins, names)


def evaluate_edits(edited: Edited, scored_edited: pa.Table, scored: pa.Table, template: SlotTemplate
                   ) -> dict[str, dict[str, Any]]:
    """By edit, see `rlaif.reward_evaluation.bias.edit_shift`. The verdict on a row of a pair is which side is
    preferred, on any other the most probable class of the first slot."""
    origins = scored.take(pa.array(edited.origins))
    before, after = (np.asarray(table["reward"], dtype=np.float64) for table in (origins, scored_edited))
    others = origins["other_reward"]
    sides = [_verdicts(table.set_column(table.schema.get_field_index("other_reward"), "other_reward", others), template)
             for table in (origins, scored_edited)]
    return by_group(edited.names, lambda rows: edit_shift(before[rows], after[rows], sides[0][rows], sides[1][rows]))


def _verdicts(scored: pa.Table, template: SlotTemplate) -> NDArray:
    """`[N]` integers: the preferred side (1, 0 or -1) where there are two, else the most probable class."""
    margins = preference_margins(scored, template)
    classes = np.zeros(len(margins))
    if template.slots:
        classes = _slot_columns(scored["probabilities"], template, 0).argmax(axis=1)
    return np.where(np.isnan(margins), classes, np.sign(margins)).astype(np.int64)


class _Part:
    """The rows that a section is about, and what all sections need of them."""

    def __init__(self, rows: pa.Table, scored: pa.Table, chosen: NDArray, options: EvaluationOptions) -> None:
        rows, self.scored, self.options = rows.take(pa.array(chosen)), scored.take(pa.array(chosen)), options
        self.rewards = np.asarray(self.scored["reward"], dtype=np.float64)
        self.prompts, self.sources = rows["prompt"].to_pylist(), rows["source"].to_pylist()
        self.lengths = np.array([len(text) for text in rows["completion"].to_pylist()])
        self.other_lengths = np.array([len(text or "") for text in rows["other"].to_pylist()])

    def interval(self, is_right: NDArray) -> Interval:
        """Of the mean of `is_right` `[N]`; NaN entries are left out."""
        # One prompt a row needs no clusters, and is much faster without.
        clusters = self.prompts if len(set(self.prompts)) < len(self.prompts) else None
        return bootstrap(lambda rows: mean(is_right[rows][~np.isnan(is_right[rows])]), len(is_right),
                         clusters=clusters, num_resamples=self.options.num_bootstraps, seed=self.options.seed)

    def tables(self, measure: Any, lengths: NDArray) -> dict[str, Any]:
        """`measure` of the rows of every source and of every span of length, cut down to a line each."""
        def line(rows: NDArray) -> dict[str, Any]:
            return {name: value for name, value in measure(rows).items() if name in _SHOWN}

        return {"by_source": by_group(self.sources, line), "by_length": by_group(length_buckets(lengths), line)}


def _label_figures(part: _Part, probabilities: NDArray, labels: NDArray, slot: Slot) -> dict[str, Any]:
    names = [words[0] for words in slot.classes]

    def measure(rows: NDArray) -> dict[str, Any]:
        return label_metrics(probabilities[rows], labels[rows], names)

    figures = measure(np.arange(len(labels)))
    classes = figures.pop("classes")
    interval = part.interval(top_label(probabilities, labels)[1])
    return figures | {"accuracy_interval": interval, "classes": classes} | part.tables(measure, part.lengths)


def _add_ratings(found: dict[str, Any], part: _Part, probabilities: NDArray, labels: NDArray, slot: Slot) -> None:
    """Ratings of an ordinal slot, and best-of-N of any slot where a prompt has several responses."""
    values = np.asarray(slot.values, dtype=np.float64)
    if slot.kind == "ordinal":
        figures = rating_metrics(probabilities @ values, values[labels], part.prompts)
        found.setdefault("ratings", {})[slot.name] = figures
    counts = np.unique(part.prompts, return_counts=True)[1]
    sizes = [2**power for power in range(1, 11) if 2**power <= counts.max()]
    if sizes:
        table = best_of_n(part.rewards, values[labels], part.prompts, sizes)
        found.setdefault("best_of_n", {})[slot.name] = {str(size): line for size, line in table.items()}


def _pair_figures(part: _Part, margins: NDArray, targets: NDArray, template: SlotTemplate) -> dict[str, Any]:
    def measure(rows: NDArray) -> dict[str, Any]:
        return pair_metrics(margins[rows], targets[rows], part.options.pair_temperature)

    is_right = np.where(targets == 0.5, np.nan, (np.sign(targets - 0.5) * np.sign(margins) + 1) / 2)
    figures = measure(np.arange(len(targets)))
    figures |= {"accuracy_interval": part.interval(is_right), "temperature": part.options.pair_temperature,
                "fitted_temperature": fit_score_temperature(margins, targets)}
    figures["length_bias"] = length_bias(margins, part.lengths - part.other_lengths, targets)
    if template.is_pairwise:
        orders = [part.scored[name] for name in ("probabilities_first", "probabilities_second")]
        figures["position_bias"] = position_bias(*(_first_is_better(order, template) for order in orders))
    return figures | part.tables(measure, (part.lengths + part.other_lengths) // 2)


def _first_is_better(probabilities: pa.ChunkedArray, template: SlotTemplate) -> NDArray:
    """`[N]`, the probability that the completion is better than the other side, a tie counting half.

        p = 1/2 + sum_s weight_s (p_s - 1/2) / sum_s |weight_s|
    """
    weights = np.array([slot.weight for slot in template.slots], dtype=np.float64)
    means = np.stack([_slot_columns(probabilities, template, s) @ np.linspace(1, 0, len(slot.classes))
                      for s, slot in enumerate(template.slots)], axis=1)
    return np.clip(0.5 + (means - 0.5) @ weights / max(np.abs(weights).sum(), np.finfo(np.float64).tiny), 0, 1)


def _by_label(rewards: NDArray, labels: NDArray, slot: Slot) -> dict[str, list[float]]:
    return {words[0]: rewards[labels == k].tolist() for k, words in enumerate(slot.classes)}


def _by_side(part: _Part, targets: NDArray, template: SlotTemplate) -> dict[str, list[float]]:
    """Rewards of the preferred and of the other sides; nothing where there is one reward a pair."""
    if template.is_pairwise:
        return {}
    others = np.asarray(part.scored["other_reward"].to_pylist(), dtype=np.float64)
    won, lost = targets == 1, targets == 0
    return {"preferred": [*part.rewards[won].tolist(), *others[lost].tolist()],
            "other": [*others[won].tolist(), *part.rewards[lost].tolist()]}


def _label_words(template: SlotTemplate) -> Sequence[str]:
    """Label words of the first slot, the best class first."""
    if not template.slots:
        return ("yes", "no")
    slot = template.slots[0]
    order = sorted(range(len(slot.values)), key=lambda k: -slot.values[k])
    return [slot.classes[k][0] for k in order]
