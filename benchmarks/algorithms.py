"""How well each algorithm learns: python benchmarks/algorithms.py [quick | full] [only=<algorithm>] [at_once=<runs>]

The scenes world with its exact judge as the reward, so that nothing but the policy update is under measure. Every
algorithm starts from the same policy and gets the same number of samples (the completions that were rolled out, those
that dynamic sampling threw away among them), with seeds 0, 1 and 2; each run is launch/train.py on
configs/quickstart.yaml and configs/algorithms/<algorithm>.yaml. Figures are of held-out prompts, one answer each.

What is complete in outputs/algorithms is not repeated, so a benchmark that was broken off goes on. `quick` takes a few
steps of two algorithms: it shows that everything runs, its figures say nothing. Seconds are not compared, so several
runs may go side by side, each with a Ray of its own; where a GPU is there, they share it.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.measuring import RESULTS, environment, store, table_lines  # noqa: E402
from rlaif.config.checks import UserError  # noqa: E402
from rlaif.config.files import load  # noqa: E402
from rlaif.config.train import TrainConfig  # noqa: E402
from rlaif.running.run_folder import EVALUATIONS_FILE, METRICS_FILE, refuse_other_run  # noqa: E402

TARGET = 0.9        # gold, the share of right answers
STEPS = {"quick": 4, "full": 100}
SEEDS = {"quick": (0,), "full": (0, 1, 2)}
QUICK = ("grpo", "ppo")
SAMPLES_A_STEP = 128

COMMON = {
    "reward.model": "gold:scenes", "explainer.source": "none", "report.samples_every": 0,
    "rollout.groups_per_step": 16, "rollout.group_size": 8, "learner.schedule": "linear", "learner.warmup_steps": 5,
    # Two optimizer steps on a step's rollouts: with one, every ratio is 1 and no clip does anything.
    "algorithm.num_minibatches": 2,
    "learner.learning_rate": 7.0e-4,
}

# What an algorithm needs here beyond its own file, which holds the values of its paper: those are for models of
# billions of parameters, here are 0.7 million, whose probabilities move far in one step.
SETTINGS: dict[str, dict[str, Any]] = {
    "grpo": {},
    # A KL of 0.05 in the reward is worth more than the last tenth of gold: RLOO and PPO stop at 0.88 with it. And the
    # product of a row's ratios leaves the clip's bounds soon, so that many rows teach in the first minibatch only.
    "rloo": {"algorithm.kl_coefficient": 0.01, "learner.learning_rate": 1.0e-3},
    "reinforce_pp": {},
    # Without a coefficient there would be no reference model, and no KL to report; as a pull this one is nothing.
    "dapo": {"algorithm.kl_coefficient": 1.0e-6},
    # The ratio of a whole answer moves by several percent in a step here: bounds of 3e-4 would mask nearly every row of
    # the second minibatch.
    "gspo": {"algorithm.kl_coefficient": 1.0e-6, "algorithm.clip_low": 0.03, "algorithm.clip_high": 0.04},
    "cispo": {"algorithm.kl_coefficient": 1.0e-6},
    # Four optimizer steps a batch, with the values' gradient in the same weights. The reward comes with the last of a
    # dozen tokens: nothing is gained by discounting it towards a critic that has only begun to learn.
    "ppo": {"algorithm.kl_coefficient": 0.02, "algorithm.lam": 1.0},
}


def main(arguments: Sequence[str]) -> int:
    try:
        form, only, at_once = parsed(arguments)
        os.chdir(ROOT)
        result = "algorithms" + ("_quick" if form == "quick" else "")
        rows = known_rows(result) if form == "full" else []
        work = itertools.product(SEEDS[form], only or (QUICK if form == "quick" else tuple(SETTINGS)))
        with ThreadPoolExecutor(at_once) as pool:
            for done in as_completed([pool.submit(run, form, name, seed, at_once) for seed, name in work]):
                about = environment() | {"gpu": gpu_name()}         # each is kept as soon as it is there
                row = done.result() | {name: about[name] for name in ("commit", "cpu", "gpu")}
                rows = [old for old in rows if (old["algorithm"], old["seed"]) != (row["algorithm"], row["seed"])]
                rows = sorted([*rows, row], key=lambda row: (list(SETTINGS).index(row["algorithm"]), row["seed"]))
                store(result, figures_of(form, rows) | about)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    columns = ["algorithm", "seed", "gold_before", "gold", "samples", "samples_to_target", "kl_nats", "fluent",
               "identical_share", "tokens"]
    print("\n".join(table_lines(columns, rows)) + "\n")
    print("\n".join(table_lines(["algorithm", "seeds", "gold_mean", "gold_lowest", "samples_to_target", "reached"],
                                summary(rows))))
    store(result, figures_of(form, rows) | environment() | {"gpu": gpu_name()})
    return 0


def parsed(arguments: Sequence[str]) -> tuple[str, list[str], int]:
    """The form, the algorithms that are asked for, and how many runs may go side by side."""
    forms = [argument for argument in arguments if argument in STEPS] or ["quick"]
    named = [argument.split("=", 1) for argument in arguments if argument not in STEPS]
    only = [value[0] for name, *value in named if name == "only" and value]
    at_once = [value[0] for name, *value in named if name == "at_once" and value] or ["1"]
    if len(forms) > 1 or len(at_once) > 1 or len(named) != len(only) + sum(name == "at_once" for name, *_ in named):
        raise UserError(f"usage: {Path(__file__).name} [{' | '.join(STEPS)}] [only=<algorithm>] [at_once=<runs>]")
    for name in only:
        if name not in SETTINGS:
            raise UserError(f"only must be one of {', '.join(SETTINGS)}, got {name!r}")
    if not at_once[0].isdigit() or int(at_once[0]) < 1:
        raise UserError(f"at_once must be an integer >= 1, got {at_once[0]!r}")
    return forms[0], only, int(at_once[0])


def known_rows(result: str) -> list[dict[str, Any]]:
    """What the last run of this benchmark stored, without algorithms that it has no more."""
    there = RESULTS / f"{result}.json"
    rows = json.loads(there.read_text(encoding="utf-8"))["rows"] if there.is_file() else []
    return [row for row in rows if row["algorithm"] in SETTINGS]


# --- one run ------------------------------------------------------------------------------------------------------


def run(form: str, name: str, seed: int, at_once: int) -> dict[str, Any]:
    """Trains `name` unless that is done already; its row. UserError where the folder holds a run of other settings."""
    target = Path("outputs") / ("algorithms" + ("_quick" if form == "quick" else "")) / f"{name}_{seed}"
    files = ["configs/quickstart.yaml", f"configs/algorithms/{name}.yaml"]
    settings = COMMON | {"steps": STEPS[form], "evaluation.every": 2 if form == "quick" else 10} | SETTINGS[name]
    if form == "quick":
        settings["evaluation.num_prompts"] = 64
    overrides = [f"{key}={value}" for key, value in (
        settings | placement(at_once) | {"seed": seed, "output_dir": str(target)}).items()]
    if not refuse_other_run(str(target), load(TrainConfig, files, overrides)):
        command = [sys.executable, "launch/train.py", *files, *overrides]
        print("==", " ".join(command[1:]), flush=True)
        for is_last in (False, True):       # it goes on where it stopped
            if subprocess.run(command, check=is_last).returncode == 0:
                break
    settings = {key: value for key, value in settings.items() if COMMON.get(key) != value}
    return {"algorithm": name, "seed": seed} | read(target, STEPS[form] * SAMPLES_A_STEP) | {"settings": settings}


def placement(at_once: int) -> dict[str, Any]:
    """Where a GPU is there, a run's engine and learner share it, with those of the other runs."""
    if gpu_name() is None:
        return {}
    return {"placement.rollout.num_gpus": 0.5, "placement.learner.num_gpus": 0.5, "placement.learner.num_actors": 1,
            "rollout.engine.gpu_memory_utilization": round(0.4 / at_once, 3)}


def gpu_name() -> str | None:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def read(target: Path, budget: int) -> dict[str, Any]:
    """The figures of a complete run: as they were when it had seen `budget` samples, which dynamic sampling may have
    used up before the last step."""
    steps, evaluations = (read_lines(target / name) for name in (METRICS_FILE, EVALUATIONS_FILE))
    samples = dict(zip((0, *(step["step"] for step in steps)),
                       itertools.accumulate((step["num_rollouts"] for step in steps), initial=0), strict=True))
    curve = [{"step": found["step"], "samples": samples[found["step"]], "gold": found["gold"], "kl_nats": found["kl"],
              "fluent": found["fluent"], "identical_share": found["identical_share"],
              "tokens": found["completion_tokens"]} for found in evaluations]
    within = [point for point in curve if point["samples"] <= budget]
    reached = [point["samples"] for point in within if point["gold"] >= TARGET]
    summary = json.loads((target / "summary.json").read_text(encoding="utf-8"))
    return {"gold_before": curve[0]["gold"]} | within[-1] | {
        "samples_to_target": reached[0] if reached else None, "highest_gold": max(point["gold"] for point in within),
        "num_test_prompts": summary["num_test_prompts"], "train_s": summary["wall_s"]["loop"], "curve": curve}


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- the figures --------------------------------------------------------------------------------------------------


def figures_of(form: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    gold: dict[str, dict[str, float]] = {}
    for row in rows:
        gold.setdefault(row["algorithm"], {})[str(row["seed"])] = row["gold"]
    return {"benchmark": "algorithms", "form": form, "target_gold": TARGET, "gold": gold,
            "budget_samples": STEPS[form] * SAMPLES_A_STEP, "algorithms": summary(rows), "common": COMMON,
            "rows": list(rows)}


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row an algorithm over its seeds; samples_to_target of the slowest seed, where all have reached it."""
    found = []
    for name in dict.fromkeys(row["algorithm"] for row in rows):
        mine = [row for row in rows if row["algorithm"] == name]
        needed = [row["samples_to_target"] for row in mine]
        found.append({
            "algorithm": name, "seeds": len(mine), "gold_mean": statistics.mean(row["gold"] for row in mine),
            "gold_lowest": min(row["gold"] for row in mine),
            "samples_to_target": None if None in needed else max(needed), "reached": None not in needed})
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
