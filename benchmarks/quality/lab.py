"""Where the experiments live, how they are launched, and the rows that they hand in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.start_models import write_causal_start, write_masked_start

ROOT = Path(__file__).resolve().parent.parent.parent
CONFIGS = Path("configs/reward_quality")
SEED = 0


class Lab:
    """Where experiments live, and how long they may take: `full`, or `quick` with a few steps and rows."""

    def __init__(self, form: str) -> None:
        self.is_quick = form == "quick"
        self.folder = Path("outputs/reward_quality" + ("_quick" if self.is_quick else ""))
        self.data = Path(os.environ["RLAIF_DATA"])

    def launch(self, launcher: str, config: str, output: str, *overrides: str) -> Path:
        """Runs one launcher to its end; raises CalledProcessError where it fails. Complete folders are skipped."""
        target = self.folder / output
        if not (target / "done").is_file():
            command = [sys.executable, f"launch/{launcher}.py", str(CONFIGS / f"{config}.yaml"), f"output_dir={target}",
                       *overrides]
            print("==", " ".join(command[1:]), flush=True)
            subprocess.run(command, check=True)
        return target

    def short(self, steps: int) -> list[str]:
        return [f"steps={steps}", "learner.warmup_steps=0"] if self.is_quick else []

    def write_start_models(self) -> None:
        """What the experiments on real data begin with; what is there already stays."""
        start = self.folder / "start"
        if not (start / "masked" / "config.json").is_file():
            write_masked_start(start / "masked")
        if not self.is_quick and not (start / "causal" / "config.json").is_file():
            write_masked_start(start / "masked_from_nothing", from_nothing=True, seed=SEED)
            write_causal_start(start / "causal", max_positions=512)


def entry(table: str, model: str, test: str, credits: Sequence[float], prompts: Sequence[str], folder: Path
          ) -> dict[str, Any]:
    """A row of the table: what the model in `folder` got right, and what its training took."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return {"table": table, "model": model, "test": test} | measured(credits, prompts) | {
        "train_rows": summary["num_train"], "steps": summary["steps"], "train_minutes": summary["train_s"] / 60,
        "seed": summary["seed"]}


def measured(credits: Sequence[float], prompts: Sequence[str]) -> dict[str, Any]:
    """The mean of `credits` and its interval, which resamples prompts, as rows of one prompt are alike."""
    from rlaif.statistics import bootstrap

    interval = bootstrap(lambda rows: sum(credits[row] for row in rows) / len(rows), len(credits), clusters=prompts,
                         num_resamples=500, seed=SEED)
    return {"accuracy": sum(credits) / len(credits), "interval": [interval.low, interval.high], "n": len(credits)}


def edit_entries(data: str, model: str, evaluation: Path) -> list[dict[str, Any]]:
    """Rows of the table of edits that should change nothing: how far the reward goes with each, and how often the
    verdict is another one."""
    edits = json.loads((evaluation / "evaluation.json").read_text(encoding="utf-8"))["edits"]
    names = "mean_shift", "relative_shift", "flip_share"
    return [{"table": "edits", "model": f"{model} ({data})", "test": edit, "n": found["num_rows"]}
            | {name: found[name] for name in names} for edit, found in edits.items()]


def prompts_of(evaluation: Path) -> list[str]:
    """The prompts of the rows of an evaluation, read anew from its own configuration."""
    from rlaif.config.files import load
    from rlaif.config.reward import EvaluateConfig
    from rlaif.data.judged_rows import judged_rows
    from rlaif.esfp.judges import find_judge

    settings = load(EvaluateConfig, evaluation / "config.yaml")
    template = find_judge(settings.judge, "judge.").template
    return [prompt for number, source in enumerate(settings.data)
            for prompt in judged_rows(source, template, f"data[{number}]")["prompt"].to_pylist()]
