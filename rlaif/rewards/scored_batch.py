"""From explained rollouts to scored ones: which texts a reward model reads, and what is written beside them.

    one judge       scored_batch: its value is the reward
    several parts   scored_batch of each judge, parts_table of each function actor -> combine_scored, once
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rlaif.batch import EXPLAINED, PARTS, ROLLOUT, SCORED, SUMMARY_COLUMNS, check, with_columns
from rlaif.config.checks import UserError
from rlaif.esfp.explanations import usable_or_refuse
from rlaif.esfp.reward_model import Scored, Texts
from rlaif.esfp.slots import SlotTemplate
from rlaif.metrics import Metric, Sum
from rlaif.rewards.combine import Combined, combine, row_name
from rlaif.rewards.plan import RewardPlan

__all__ = ["combine_scored", "parts_table", "scored_batch", "size_of", "small_columns", "texts_to_judge",
           "without_explanations"]


def without_explanations(rollouts: pa.Table) -> pa.Table:
    """The EXPLAINED batch of ROLLOUT rows for a reward that reads no explanations."""
    none: list[list[str]] = [[]] * rollouts.num_rows
    return with_columns(rollouts, EXPLAINED, {"explanations": none, "explanation_finish_reasons": none,
                                              "num_explanation_tokens": [0] * rollouts.num_rows})


def texts_to_judge(explained: pa.Table, on_unusable: str, *, with_references: bool = False) -> Texts:
    """The texts of EXPLAINED rows, with the explanations that are usable; against the references where asked.

    Raises UserError for a row without a usable explanation where `on_unusable` is "error".
    """
    explanations = usable_or_refuse(explained["explanations"].to_pylist(),
                                    explained["explanation_finish_reasons"].to_pylist(), on_unusable)
    others = explained["reference"].to_pylist() if with_references else None
    return Texts(explained["prompt"].to_pylist(), explained["completion"].to_pylist(), explanations, others)


def scored_batch(explained: pa.Table, scored: Scored, template: SlotTemplate | None,
                 verdicts: Mapping[str, Sequence[float]], part: str, version: str
                 ) -> tuple[pa.Table, pa.Table, dict[str, Metric]]:
    """The SCORED batch of one judge, its small columns for the driver, and what was cut or judged without explanation.

    part: name of the judge's part of the reward. verdicts: of judges that only watch, by name. Raises UserError for a
    reward that is not finite.
    """
    rewards = scored.reward.tolist()
    for row, reward in enumerate(rewards):
        if not math.isfinite(reward):
            where = row_name(row, explained["group_id"].to_pylist(), explained["sample"].to_pylist())
            raise UserError(f"values of reward part {part} must be finite, got {reward} in {where}; the judge's model "
                            "is at fault")
    sizes = [len(slot.classes) for slot in template.slots] if template is not None else []
    table = _scored(explained, {
        "slot_probabilities": [[p for slot, size in zip(row, sizes, strict=False) for p in slot[:size]]
                               for row in scored.probabilities.tolist()],
        "slot_scores": scored.slot_scores.tolist(), "slot_entropy": scored.entropy.tolist(),
    }, [[(part, reward)] for reward in rewards], [[(part, reward)] for reward in rewards], rewards, verdicts, version)
    return table, small_columns(table), size_of(table) | {
        "slot_inputs_cut": Sum(scored.num_truncated), "judged_without_explanation": Sum(scored.num_without_explanation)}


def parts_table(rollouts: pa.Table, values: Mapping[str, Sequence[float | None]], version: str) -> pa.Table:
    """The PARTS rows of what each part in `values` said of `rollouts`, part after part."""
    num_rows, num_parts = rollouts.num_rows, len(values)
    keys = {name: rollouts[name].to_pylist() * num_parts for name in ("group_id", "sample")}
    return check(pa.table(keys | {
        "part": [name for name in values for _ in range(num_rows)],
        "value": [value for column in values.values() for value in column],
        "reward_version": [version] * num_rows * num_parts}, schema=PARTS), PARTS)


def combine_scored(batches: Sequence[pa.Table], parts: Sequence[pa.Table], plan: RewardPlan,
                   verdicts: Mapping[str, Sequence[float]] | None = None
                   ) -> tuple[pa.Table, pa.Table, dict[str, Metric]]:
    """One SCORED batch with the reward that `plan` makes of all parts, its small columns, and what was counted.

    batches: the rows, in whole groups: of SCORED as the first judge made them (its slots are kept), or of EXPLAINED or
    ROLLOUT where there is no judge. parts: what the other parts said, in any order and split: PARTS tables, or the
    SCORED tables of further judges. verdicts: of judges that only watch, where there is no judge that asks them.
    Raises ValueError where a part of the plan is missing for a row, or there twice: nothing is dropped by a join.
    """
    rows = pa.concat_tables(batches).combine_chunks()
    is_judged = "reward" in rows.schema.names
    if is_judged:
        check(rows, SCORED)
    elif "explanations" not in rows.schema.names:
        rows = without_explanations(check(rows, ROLLOUT))
    group_ids, samples = rows["group_id"].to_pylist(), rows["sample"].to_pylist()
    said = [_as_parts(table) for table in ([rows] if is_judged else []) + list(parts)]
    values = _by_part(pa.concat_tables([PARTS.empty_table(), *said]), list(zip(group_ids, samples, strict=True)),
                      [str(part.name) for part in plan.parts])
    combined = combine(values, group_ids, samples, plan)
    versions = sorted({version for table in said for version in table["reward_version"].unique().to_pylist()})
    version = hashlib.sha256("\n".join([plan.fingerprint(), *versions]).encode()).hexdigest()[:16]
    table = _combined(rows, values, combined, verdicts or {}, version)
    return table, small_columns(table), size_of(table) | combined.metrics


def _as_parts(table: pa.Table) -> pa.Table:
    """A PARTS table as it is, a judge's SCORED table as one."""
    if "part" in table.schema.names:
        return check(table, PARTS)
    said = [row for row in check(table, SCORED)["reward_parts"].to_pylist()]
    assert all(len(row) == 1 for row in said), "a judge has one part; what was combined is not combined again"
    return pa.table({
        "group_id": table["group_id"], "sample": table["sample"], "part": [row[0][0] for row in said],
        "value": [row[0][1] for row in said], "reward_version": table["reward_version"]}, schema=PARTS)


def _by_part(said: pa.Table, keys: Sequence[tuple[int, int]], names: Sequence[str]) -> dict[str, list[float | None]]:
    """The values of each part in the order of `keys`, the (group_id, sample) of every row."""
    place = {key: row for row, key in enumerate(keys)}
    if len(place) != len(keys):
        raise ValueError(f"rows to combine must be there once, got {len(keys)} of {len(place)} rollouts")
    found: dict[str, dict[int, float | None]] = {name: {} for name in names}
    for row in said.to_pylist():
        name, key = row["part"], (row["group_id"], row["sample"])
        if name not in found or key not in place:
            raise ValueError(f"values must be of a part of the plan ({', '.join(names)}) and a row of the batch, got "
                             f"part {name} for group_id {key[0]}, sample {key[1]}")
        if place[key] in found[name]:
            raise ValueError(f"part {name} must judge a row once, got two values for group_id {key[0]}, sample "
                             f"{key[1]}")
        found[name][place[key]] = row["value"]
    for name, column in found.items():
        if len(column) != len(keys):
            key = next(key for key, row in place.items() if row not in column)
            raise ValueError(f"part {name} must be there for every row, got none for {len(keys) - len(column)} of "
                             f"{len(keys)}, first group_id {key[0]}, sample {key[1]}")
    return {name: [column[row] for row in range(len(keys))] for name, column in found.items()}


def _combined(rows: pa.Table, values: Mapping[str, Sequence[float | None]], combined: Combined,
              verdicts: Mapping[str, Sequence[float]], version: str) -> pa.Table:
    num_rows = rows.num_rows
    slots: dict[str, Sequence] = {name: [[]] * num_rows for name in _SLOTS}
    if "reward" in rows.schema.names:
        slots = {name: rows[name].to_pylist() for name in _SLOTS}
        watched = [dict(row) for row in rows["judge_verdicts"].to_pylist()]
        verdicts = {name: [row[name] for row in watched] for name in (watched[0] if watched else {})} | dict(verdicts)
    return _scored(rows.select(EXPLAINED.names), slots, _maps(values, num_rows), _maps(combined.terms, num_rows),
                   combined.rewards, verdicts, version)


_SLOTS = ("slot_probabilities", "slot_scores", "slot_entropy")


def _maps(columns: Mapping[str, Sequence[float | None]], num_rows: int) -> list[list[tuple[str, float]]]:
    """For each row its values by name; None is left out."""
    return [[(name, value) for name, column in columns.items() if (value := column[row]) is not None]
            for row in range(num_rows)]


def _scored(explained: pa.Table, slots: Mapping[str, Sequence], parts: Sequence, terms: Sequence,
            rewards: Sequence[float], verdicts: Mapping[str, Sequence[float]], version: str) -> pa.Table:
    return with_columns(explained, SCORED, {
        **slots, "reward_parts": parts, "reward_terms": terms, "reward": rewards,
        "judge_verdicts": _maps(verdicts, explained.num_rows), "reward_version": [version] * explained.num_rows})


def small_columns(scored: pa.Table) -> pa.Table:
    """What the driver reads of SCORED rows: SUMMARY_COLUMNS, num_completion_tokens, and newest_policy_version, of the
    last token of each."""
    summary = scored.select(list(SUMMARY_COLUMNS)).append_column(
        "num_completion_tokens", pc.list_value_length(scored["completion_ids"]))
    versions = scored["policy_versions"].combine_chunks()
    ends = np.asarray(versions.offsets)[1:]
    newest = scored["policy_version"].to_numpy().copy()     # of a completion without a token
    there = np.asarray(versions.value_lengths()) > 0
    newest[there] = np.asarray(versions.values)[ends[there] - 1]
    return summary.append_column("newest_policy_version", pa.array(newest, pa.int64()))


def size_of(scored: pa.Table) -> dict[str, Metric]:
    """scored_bytes: what the batch takes of the object store."""
    return {"scored_bytes": Sum(scored.nbytes)}
