"""A lap of the race: a trainer in a process of its own for a few steps, and what it says of them."""

from __future__ import annotations

import json
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.trl_peer.processes import environment_of, run_measured
from benchmarks.trl_peer.settings import Settings

CONFIG = "configs/benchmarks/against_trl.yaml"
_OUR_PARTS = ("rollout_s", "score_s", "learn_s", "sync_s")
# TRL's parts as its clock tells them, each with the one that lies inside it.
_THEIR_PARTS = {"generate_s": ("generate_s", None), "prepare_s": ("generate_and_prepare_s", "generate_s"),
                "gradients_s": ("generate_prepare_and_gradients_s", "generate_and_prepare_s")}


@dataclass(frozen=True)
class Lap:
    """Medians over the steps that count."""

    step_s: float
    peak_gb: float              # of all its processes, 10^9 bytes
    tokens: float               # of a completion, mean
    parts_s: dict[str, float]   # where the seconds went; ours overlap


def run_lap(folder: Path, arm: str, settings: Settings, steps: tuple[int, int]) -> Lap:
    """Trains `steps` (not counted, counted) in the world of `folder`. Raises RuntimeError where the process fails."""
    own = folder / "laps" / arm
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir(parents=True)
    if arm.startswith("ours"):
        return _our_lap(own, settings, *steps)
    return _their_lap(own, settings | {"world": str(folder)}, *steps)


def _our_lap(own: Path, settings: Settings, num_before: int, num_counted: int) -> Lap:
    overrides = [f"{key}={value}" for key, value in settings.items()]
    peak = run_measured(
        [sys.executable, "launch/train.py", CONFIG, f"output_dir={own / 'run'}", f"steps={num_before + num_counted}",
         *overrides], own / "log", environment_of())
    numbers, timings = (
        [json.loads(line) for line in (own / "run" / name).read_text(encoding="utf-8").splitlines()]
        for name in ("metrics.jsonl", "timings.jsonl"))
    steps = [one | other for one, other in zip(numbers, timings, strict=True)][num_before:]
    tokens = sum(step["num_completion_tokens"] for step in steps) / sum(step["num_rollouts"] for step in steps)
    return Lap(_median(steps, "step_s"), peak, tokens, {name: _median(steps, name) for name in _OUR_PARTS})


def _their_lap(own: Path, settings: Settings, num_before: int, num_counted: int) -> Lap:
    known, output = own / "settings.json", own / "steps.json"
    known.write_text(json.dumps(settings | {"steps": num_before + num_counted, "output": str(output)}),
                     encoding="utf-8")
    command, threads = [sys.executable], {}
    if settings["num_processes"] > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(settings["num_processes"])]
        threads = {"OMP_NUM_THREADS": "1"}
    peak = run_measured([*command, "benchmarks/trl_peer/train.py", str(known)], own / "log", environment_of(**threads))
    found = json.loads(output.read_text(encoding="utf-8"))
    parts = found["parts"][num_before:]
    where = {name: _median(parts, outer) - (_median(parts, inner) if inner else 0.0)
             for name, (outer, inner) in _THEIR_PARTS.items()}
    tokens = sum(part["num_tokens"] for part in parts) / sum(part["num_completions"] for part in parts)
    return Lap(statistics.median(found["step_s"][num_before:]), peak, tokens, where)


def _median(rows: Sequence[Mapping[str, float]], name: str) -> float:
    return statistics.median(row[name] for row in rows)
