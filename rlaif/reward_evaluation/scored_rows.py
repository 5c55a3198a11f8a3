"""What a judge said of judged rows, one row each: the columns of scored.parquet."""

from __future__ import annotations

import hashlib
import json

import pyarrow as pa
import torch
from torch import Tensor

from rlaif.batch import JUDGED, check
from rlaif.esfp.pairing import both_orders, from_other_side, tie_scores
from rlaif.esfp.reward_model import Scored, Texts
from rlaif.esfp.slot_scoring import combine, entropies
from rlaif.esfp.slots import SlotTemplate

__all__ = ["SCORED_ROWS", "of_both_orders", "one_side_at_a_time", "scored_rows", "texts_of"]


def _field(name: str, kind: pa.DataType, role: str, unit: str = "", nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"role": role} | ({"unit": unit} if unit else {}))


_NUMBERS = pa.list_(pa.field("item", pa.float32(), nullable=False))
SCORED_ROWS = pa.schema([
    _field("row", pa.int64(), "identity"),                  # place among all rows of the evaluation
    _field("id", pa.string(), "identity"),                  # follows prompt, completion and other side
    _field("source", pa.string(), "identity"),
    _field("labels", JUDGED.field("labels").type, "signal"),
    _field("preference", pa.float32(), "signal"),
    # Of the completion; of the pair, where the judge reads both sides at once.
    _field("reward", pa.float32(), "signal"),
    _field("probabilities", _NUMBERS, "signal", "probability"),     # of the classes, slot after slot
    # Of the other side of a pair, where the judge reads one side at a time.
    _field("other_reward", pa.float32(), "signal", nullable=True),
    _field("other_probabilities", _NUMBERS, "signal", "probability", nullable=True),
    # Of a pair that the judge reads at once: the completion shown first, and shown second; classes always as seen from
    # the completion.
    _field("probabilities_first", _NUMBERS, "signal", "probability", nullable=True),
    _field("probabilities_second", _NUMBERS, "signal", "probability", nullable=True),
])


def texts_of(rows: pa.Table) -> Texts:
    """The pairs of JUDGED `rows`, for a judge that reads both sides at once."""
    return Texts(rows["prompt"].to_pylist(), rows["completion"].to_pylist(), rows["explanations"].to_pylist(),
                 rows["other"].to_pylist(), rows["other_explanations"].to_pylist())


def one_side_at_a_time(rows: pa.Table) -> Texts:
    """The completions of JUDGED `rows`, and behind them the other sides of those that have one."""
    columns = {name: rows[name].to_pylist() for name in rows.schema.names}
    paired = [row for row, other in enumerate(columns["other"]) if other is not None]
    return Texts(columns["prompt"] + [columns["prompt"][row] for row in paired],
                 columns["completion"] + [columns["other"][row] for row in paired],
                 columns["explanations"] + [columns["other_explanations"][row] for row in paired])


def of_both_orders(first: Scored, second: Scored, template: SlotTemplate) -> tuple[Scored, Tensor, Tensor]:
    """Of pairs read as (completion, other) and as (other, completion): the means of both, and the probabilities
    `[N, S, K]` of each order as seen from the completion.
    """
    seen = from_other_side(second.probabilities, template.slots)
    scores = both_orders(first.slot_scores, second.slot_scores, tie_scores(template.slots))
    probabilities = (first.probabilities + seen) / 2
    reward = combine(scores, torch.tensor([float(slot.weight) for slot in template.slots]))
    mean = Scored(probabilities, scores, entropies(probabilities), reward,
                  max(first.num_truncated, second.num_truncated),
                  max(first.num_without_explanation, second.num_without_explanation))
    return mean, first.probabilities, seen


def scored_rows(rows: pa.Table, scored: Scored, template: SlotTemplate, start: int, *, first: Tensor | None = None,
                second: Tensor | None = None) -> pa.Table:
    """SCORED_ROWS of JUDGED `rows`, the first of which is row `start` of the evaluation.

    scored: of `one_side_at_a_time(rows)`, or of the pairs with a pairwise template. first, second: `[N, S, K]`, of
    each order of such pairs.
    """
    num_rows = rows.num_rows
    sizes = [len(slot.classes) for slot in template.slots]
    rewards, probabilities = scored.reward.tolist(), _flat(scored.probabilities, sizes)
    others = rows["other"].to_pylist()
    paired = [] if template.is_pairwise else [row for row, other in enumerate(others) if other is not None]
    assert len(rewards) == num_rows + len(paired), (len(rewards), num_rows, len(paired))
    other_rewards: list[float | None] = [None] * num_rows
    other_probabilities: list[list[float] | None] = [None] * num_rows
    for place, row in enumerate(paired, start=num_rows):
        other_rewards[row], other_probabilities[row] = rewards[place], probabilities[place]
    ids = [_content_id(*texts) for texts in zip(rows["prompt"].to_pylist(), rows["completion"].to_pylist(), others,
                                                strict=True)]
    none = [None] * num_rows
    return check(pa.table({
        "row": range(start, start + num_rows), "id": ids, "source": rows["source"], "labels": rows["labels"],
        "preference": rows["preference"], "reward": rewards[:num_rows], "probabilities": probabilities[:num_rows],
        "other_reward": other_rewards, "other_probabilities": other_probabilities,
        "probabilities_first": none if first is None else _flat(first, sizes),
        "probabilities_second": none if second is None else _flat(second, sizes)}, schema=SCORED_ROWS), SCORED_ROWS)


def _flat(probabilities: Tensor, sizes: list[int]) -> list[list[float]]:
    """`[N, S, K]` as N lists, slot after slot, without the classes that a slot does not have."""
    return [[p for slot, size in zip(row, sizes, strict=False) for p in slot[:size]] for row in probabilities.tolist()]


def _content_id(prompt: str, completion: str, other: str | None) -> str:
    """16 hex digits."""
    return hashlib.sha256(json.dumps([prompt, completion, other]).encode()).hexdigest()[:16]
