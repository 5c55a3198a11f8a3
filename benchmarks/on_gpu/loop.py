"""The whole loop on one GPU: launch/train.py on the quickstart's configuration, by backend and mode.

Rollout, explainer, slot model and learner share the GPU as launch/quickstart.sh shares it. Every case is a run of its
own: held-out prompts before and after, seconds of each stage, the largest gap between an engine's and the learner's
log-probability of one token, restarts. Names of cases may follow the file's name on the command line.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.on_gpu.part import Checks, run

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path("outputs") / "gpu"
TIMEOUT_S = 400.0

SHARED = ("placement.rollout.num_gpus=0.25", "placement.explainer.num_gpus=0.25", "placement.slot.num_gpus=0.2",
          "placement.learner.num_gpus=0.3", "placement.learner.num_actors=1",
          "rollout.engine.gpu_memory_utilization=0.2", "explainer.engine.gpu_memory_utilization=0.2")
SLEEPS = ("rollout.engine.sleeps=true", "placement.rollout.beside=learner", "placement.rollout.num_gpus=0.25",
          "placement.learner.num_gpus=0.25", "rollout.engine.gpu_memory_utilization=0.4")
SHORT = ("rollout.engine.dtype=bfloat16", "explainer.engine.dtype=bfloat16", "reward.dtype=bfloat16",
         "learner.dtype=bfloat16")
# A model of random weights learns nothing in five steps: it is driven, not taught.
LARGE = (*SHORT, "policy.model=outputs/gpu/half_billion", "learner.learning_rate=1.0e-6",
         "learner.activation_checkpointing=true", "learner.zero_stage=3")


@dataclass(frozen=True)
class Case:
    """A run: its overrides over SHARED, and what the gap of float32 or bfloat16 may be, in nats."""

    overrides: tuple[str, ...] = ()
    gap: float = 1e-3
    steps: dict[str, int] | None = None     # by form; None: FEW


FEW = {"quick": 3, "full": 5}
CASES = {
    "quickstart": Case(steps={"quick": 3, "full": 40}),
    "ipc": Case(("sync.backend=ipc",)),
    "gloo": Case(("sync.backend=gloo",)),
    "max_staleness 1": Case(("pipeline.max_staleness=1",), gap=1.0),
    "sleeps": Case(SLEEPS),
    "sleeps, ipc": Case((*SLEEPS, "sync.backend=ipc")),
    "bfloat16": Case(SHORT, gap=0.5),
    "LoRA": Case(("learner.lora.rank=8",)),
    "large": Case(LARGE, gap=0.5),
    "large, ipc": Case((*LARGE, "sync.backend=ipc"), gap=0.5),
    "large, graphs": Case((*LARGE, "rollout.engine.enforce_eager=false"), gap=0.5),
}


def measured(form: str, checks: Checks) -> dict[str, Any]:
    os.chdir(ROOT)
    names = sys.argv[3:] or list(CASES)
    large = FOLDER / "half_billion"
    if any(name.startswith("large") for name in names) and not large.exists():
        # In a process of its own, whose GPU memory is given back.
        subprocess.run([sys.executable, "-m", "benchmarks.on_gpu.models", str(large)], check=True)
    found = {}
    for name in names:
        found[name] = _run(name, CASES[name], (CASES[name].steps or FEW)[form])
        print(name, json.dumps(found[name]), flush=True)
        if "error" not in found[name]:
            checks.add(f"loop {name}: engine against learner, nats", found[name]["max_logprob_gap"], CASES[name].gap)
            checks.add(f"loop {name}: restarts", found[name]["restarts"], 0)
    return {"runs": found, "errors": {name: run["error"] for name, run in found.items() if "error" in run},
            "not_run": {"nccl": "one GPU: NCCL takes no two ranks on it"}}


def _run(name: str, case: Case, steps: int) -> dict[str, Any]:
    target = FOLDER / name.replace(", ", "_").replace(" ", "_")
    shutil.rmtree(target, ignore_errors=True)
    command = [sys.executable, "launch/train.py", "configs/quickstart.yaml", *SHARED, *case.overrides,
               f"output_dir={target}", f"steps={steps}", f"learner.warmup_steps={min(5, steps - 1)}",
               "report.samples_every=0"]
    log = FOLDER / f"{target.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file:
        try:
            code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, timeout=TIMEOUT_S).returncode
        except subprocess.TimeoutExpired:
            code = -1
    if code != 0 or not (target / "summary.json").is_file():
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return {"error": f"exit code {code}: " + "\n".join(lines[-30:]), "command": " ".join(command[1:])}
    return _figures(target)


def _figures(target: Path) -> dict[str, Any]:
    summary = json.loads((target / "summary.json").read_text(encoding="utf-8"))
    steps, timings = ([json.loads(line) for line in (target / name).read_text(encoding="utf-8").splitlines()]
                      for name in ("metrics.jsonl", "timings.jsonl"))
    kept = ("steps", "gold_before", "gold_after", "fluent_after", "identical_share_after", "kl", "samples_per_s",
            "max_logprob_gap", "peak_rss_gb", "wall_s")
    later = timings[min(2, len(timings) - 1):]      # the first two warm up
    stages = {name: statistics.median(line[name] for line in later if name in line)
              for name in ("rollout_s", "explain_s", "score_s", "learn_s", "sync_s", "driver_s", "step_s")
              if any(name in line for line in later)}
    return {name: summary[name] for name in kept if name in summary} | {
        "stage_s": stages, "restarts": sum(value for step in steps for key, value in step.items()
                                           if key.startswith("restarts_")),
        "tokens_per_step": statistics.mean(step["num_completion_tokens"] for step in steps)}


if __name__ == "__main__":
    run(measured)
