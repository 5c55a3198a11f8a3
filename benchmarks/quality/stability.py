"""Reinforcement learning in the scenes world with each kind of reward."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.quality.lab import Lab

RL_STEPS, RL_SEEDS = 120, (0, 1, 2)


def slot_explained(lab: Lab) -> list[dict[str, Any]]:
    return _stability(lab, "slot, generated explanation", "rlaif/scenes/start/reward")


def slot(lab: Lab) -> list[dict[str, Any]]:
    return _stability(lab, "slot, no explanation", str(lab.launch("train_reward", "scenes_slot", "scenes_slot")))


def head(lab: Lab) -> list[dict[str, Any]]:
    return _stability(lab, "classification head", str(lab.launch("train_reward", "scenes_head", "scenes_head")))


def causal_judge(lab: Lab) -> list[dict[str, Any]]:
    from rlaif.esfp.generative_spec import GenerativeSpec, JudgeQuestion
    from rlaif.esfp.judges import write_judge
    from rlaif.esfp.slots import Slot

    model = lab.launch("sft", "scenes_causal_judge", "scenes_causal_judge")
    slot = Slot("verdict", [["yes"], ["no"], ["garbled"]], [1.0, 0.0, 0.0])
    question = JudgeQuestion("{prompt} Answer: {completion} Verdict:")
    write_judge(model, GenerativeSpec(question, slot, ".", 120))
    return _stability(lab, "causal LM as judge", str(model))


def gold(lab: Lab) -> list[dict[str, Any]]:
    return _stability(lab, "gold judge (ceiling)", "gold:scenes", "explainer.source=none")


def _stability(lab: Lab, label: str, reward: str, *overrides: str) -> list[dict[str, Any]]:
    """Reinforcement learning as in the quickstart, but for the reward; its figures at the end, and on the way at the
    nats a token from the start that all runs of all kinds reach."""
    found = []
    for seed in RL_SEEDS:
        name = f"stability_{label.split(',')[0].replace(' ', '_')}{'_explained' if 'generated' in label else ''}_{seed}"
        target = lab.folder / name
        if not (target / "done").is_file():
            command = [sys.executable, "launch/train.py", "configs/quickstart.yaml", f"output_dir={target}",
                       f"seed={seed}", f"steps={RL_STEPS}", f"reward.model={reward}", "report.samples_every=0",
                       *overrides]
            print("==", " ".join(command[1:]), flush=True)
            subprocess.run(command, check=True)
        summary = json.loads((target / "summary.json").read_text(encoding="utf-8"))
        steps = [json.loads(line) for line in (target / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        found.append({"table": "stability", "model": label, "seed": seed, "steps": RL_STEPS,
                      "gold_before": summary["gold_before"], "gold_after": summary["gold_after"],
                      "reward_after": summary["reward_after"], "kl_nats": summary["kl"],
                      "over_optimisation": summary["reward_after"] - summary["gold_after"],
                      "group_std": sum(step["group_reward_std"] for step in steps) / len(steps),
                      "gold_at_equal_kl": _at_kl(steps, "gold"), "reward_at_equal_kl": _at_kl(steps, "reward")})
    return found


EQUAL_KL, WINDOW = 0.15, 10     # nats a token; steps


def _at_kl(steps: Sequence[dict[str, Any]], name: str) -> float | None:
    """Mean of `name` over the first WINDOW steps in a row whose mean KL a token is EQUAL_KL or more; None where there
    are none. One step alone says little: its KL is of 128 samples."""
    for start in range(len(steps) - WINDOW + 1):
        near = steps[start : start + WINDOW]
        if sum(step["kl_per_token"] for step in near) / WINDOW >= EQUAL_KL:
            return sum(step[name] for step in near) / WINDOW
    return None
