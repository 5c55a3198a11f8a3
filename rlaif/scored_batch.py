"""From explained rollouts to scored ones: which texts a reward model reads, and what is written beside them."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from rlaif.batch import EXPLAINED, SCORED, SUMMARY_COLUMNS, with_columns
from rlaif.explanations import usable_or_refuse
from rlaif.metrics import Metric, Sum
from rlaif.reward_model import Scored, Texts
from rlaif.slots import SlotTemplate

__all__ = ["scored_batch", "texts_to_judge", "without_explanations"]


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


def scored_batch(explained: pa.Table, scored: Scored, template: SlotTemplate | None, verdicts: dict[str, list[float]],
                 part: str, version: str) -> tuple[pa.Table, pa.Table, dict[str, Metric]]:
    """The SCORED batch, its small columns for the driver, and what was cut or judged without explanation.

    part: name of the reward in reward_parts. verdicts: of judges that only watch, by name.
    """
    rewards = scored.reward.tolist()
    sizes = [len(slot.classes) for slot in template.slots] if template is not None else []
    table = with_columns(explained, SCORED, {
        "slot_probabilities": [[p for slot, size in zip(row, sizes, strict=False) for p in slot[:size]]
                               for row in scored.probabilities.tolist()],
        "slot_scores": scored.slot_scores.tolist(), "slot_entropy": scored.entropy.tolist(),
        "reward_parts": [[(part, reward)] for reward in rewards], "reward": rewards,
        "judge_verdicts": [[(name, values[row]) for name, values in verdicts.items()]
                           for row in range(explained.num_rows)],
        "reward_version": [version] * explained.num_rows})
    summary = table.select(list(SUMMARY_COLUMNS)).append_column(
        "num_completion_tokens", pc.list_value_length(table["completion_ids"]))
    return table, summary, {"slot_inputs_cut": Sum(scored.num_truncated),
                            "judged_without_explanation": Sum(scored.num_without_explanation)}
