"""The shipped reward model of the scenes world against the gold judge."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from benchmarks.quality.lab import ROOT, SEED, Lab
from rlaif.data.tables import write_parquet


def shipped(lab: Lab) -> list[dict[str, Any]]:
    """The shipped reward model against the gold judge: held-out rows, and what the start policy itself writes, broken
    sentences included."""
    samples = lab.folder / "data" / "scenes_policy_samples.parquet"
    if not samples.is_file():
        samples.parent.mkdir(parents=True, exist_ok=True)
        write_parquet(_policy_samples(400 if lab.is_quick else 2000), samples)
    found = []
    for name, source in (("held-out rows", "scenes:judged-test"), ("start policy's samples", str(samples))):
        data = f"data=[{{path: '{source}', num_rows: {400 if lab.is_quick else 2000}}}]"
        place = lab.launch("evaluate", "../scenes_evaluate", f"scenes_{'rows' if 'rows' in name else 'samples'}", data)
        told = json.loads((place / "evaluation.json").read_text(encoding="utf-8"))["labels"]["verdict"]
        interval = told["accuracy_interval"]
        found.append({"table": "scenes", "model": "slot, generated explanation (shipped)", "test": name,
                      "accuracy": told["accuracy"], "interval": [interval["low"], interval["high"]],
                      "n": told["num_rows"], "calibration_error": told["ece"]})
    return found


def _policy_samples(num_rows: int) -> pa.Table:
    """Answers of the shipped start policy to held-out prompts at temperature 1, labelled by the gold judge."""
    import torch

    from rlaif import scenes
    from rlaif.modeling.models import load_causal_lm, load_tokenizer

    folder = str(ROOT / "rlaif/scenes/start/policy")
    model, tokenizer = load_causal_lm(folder, "float32").eval(), load_tokenizer(folder)
    tokenizer.padding_side = "left"
    prompts = [row["prompt"] for row in scenes.rows("prompts-test", seed=SEED, num_rows=num_rows)]
    torch.manual_seed(SEED)
    rows = []
    for start in range(0, num_rows, 100):
        part = prompts[start : start + 100]
        inputs = tokenizer(part, return_tensors="pt", padding=True, return_token_type_ids=False)
        written = model.generate(**inputs, do_sample=True, temperature=1.0, top_k=0, max_new_tokens=24)
        answers = tokenizer.batch_decode(written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for prompt, answer in zip(part, answers, strict=True):
            rows.append({"prompt": prompt, "completion": answer, "label": scenes.judge(prompt, answer).label})
    return pa.Table.from_pylist(rows)
