"""Preference pairs: slot pairwise, slot Bradley-Terry, scalar head, generative judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from benchmarks.quality.lab import Lab, edit_entries, entry, prompts_of
from rlaif.data.tables import write_parquet


def slot_pairwise(lab: Lab) -> list[dict[str, Any]]:
    return _preference(lab, "preference_slot_pairwise", "slot, pairwise")


def slot_bradley_terry(lab: Lab) -> list[dict[str, Any]]:
    return _preference(lab, "preference_slot_bradley_terry", "slot, Bradley-Terry")


def scalar(lab: Lab) -> list[dict[str, Any]]:
    return _preference(lab, "preference_scalar", "scalar head, Bradley-Terry")


def causal_judge(lab: Lab) -> list[dict[str, Any]]:
    """The pairs of the other models, each in one order only, the better side first in every other row."""
    data = lab.folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    sets = {split: pa.parquet.read_table(lab.data / f"preference/{split}_train.parquet",
                                         columns=["prompt", "chosen", "rejected"]).to_pylist()
            for split in ("other", "hh_harmless")}
    splits = {"preference_answers": sets["other"][:8000] + sets["hh_harmless"][:1000],
              "preference_answers_dev": sets["other"][24000:24600]}
    for name, rows in splits.items():
        pairs = [{"prompt": row["prompt"][-400:], "first": row["chosen" if n % 2 else "rejected"][:600],
                  "second": row["rejected" if n % 2 else "chosen"][:600], "answer": "first" if n % 2 else "second"}
                 for n, row in enumerate(rows)]
        write_parquet(pa.Table.from_pylist(pairs), data / f"{name}.parquet")
    model = lab.launch("sft", "preference_causal_judge", "preference_causal_judge")
    slot = "{name: choice, kind: pairwise, classes: [[first], [second]]}"
    return _preference_rows(
        lab, model, "causal LM as judge", f"judge.generative.slot={slot}", "judge.generative.max_tokens=500",
        "judge.generative.text='[CLS] {prompt} first: {completion} second: {other} [SEP]'")


def _preference(lab: Lab, config: str, label: str) -> list[dict[str, Any]]:
    return _preference_rows(lab, lab.launch("train_reward", config, config), label)


def _preference_rows(lab: Lab, model: Path, label: str, *overrides: str) -> list[dict[str, Any]]:
    place = lab.launch("evaluate", "preference_evaluate", f"{model.name}_evaluation", f"judge.reward.model={model}",
                       *overrides)
    scored = pa.parquet.read_table(place / "scored.parquet").to_pylist()
    prompt_of = prompts_of(place)
    found = []
    for source in sorted({row["source"] for row in scored}):
        rows = [row for row in scored if row["source"] == source]
        prompts = [prompt_of[row["row"]] for row in rows]
        found.append(entry("preferences", label, source, [_pair_credit(row) for row in rows], prompts, model))
    return found + edit_entries("preferences", label, place)


def _pair_credit(row: dict[str, Any]) -> float:
    """1 where the better side has the higher score, half for a tie."""
    both_at_once = row["other_reward"] is None
    margin = row["probabilities"][0] - row["probabilities"][-1] if both_at_once else row["reward"] - row["other_reward"]
    margin *= 1 if row["preference"] == 1 else -1
    return 1.0 if margin > 0 else 0.5 if margin == 0 else 0.0
