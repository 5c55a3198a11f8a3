"""Our trainer and TRL's in turn on this machine: python benchmarks/against_trl.py [quick | full]

The same work: GRPO with 16 prompts x 8 completions of 64 tokens a step, a Qwen2 of 10.5 M parameters drawn at random
(hardly a completion ends early), KL to a reference policy, a plain Python function as the reward, the same prompts in
every step. Ours is launch/train.py as a user runs it, on configs/benchmarks/against_trl.yaml; TRL's is GRPOTrainer with
Hugging Face generation and with colocated vLLM. A lap is a process of its own, which says itself how long its steps
took; all arms run a lap in every round, ratios are taken within a round, and their median is the speedup.

  float32     everything in float32 on both sides, the weights of vLLM among them
  best        what is fastest on each side: bfloat16 where it helps, ranks and threads, engine, size of micro-batches
  learner     the update alone, on the same rows of unequal length: TRL's compute_loss, backward and optimizer step on a
              prepared batch against Learner.update_policy, in one process each, without a cluster

In the full form the settings of each side are tried first, one choice after another, and the fastest taken; in the
quick form they are the first of each list in benchmarks/trl_peer/settings.py. Needs trl (extra dev), and the folder
named by RLAIF_DATA.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import json
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from transformers import BertConfig  # noqa: E402

from benchmarks.matrix_rate import MULTIPLIERS, MatrixRate  # noqa: E402
from benchmarks.measuring import environment, interleaved, num_cores, store, table_lines  # noqa: E402
from benchmarks.trl_peer import learners, world  # noqa: E402
from benchmarks.trl_peer.laps import Lap, run_lap  # noqa: E402
from benchmarks.trl_peer.settings import Settings, choices, fastest, key_of, untried  # noqa: E402

FOLDER = Path("outputs/against_trl")
ROUNDS = {"quick": 1, "full": 5}
STEPS = {"quick": (1, 1), "full": (1, 1), "try": (1, 1)}        # of a lap: before the clock counts, and counted
LEARNER_REPEATS = {"quick": 3, "full": 7}
# The figure, its slow arm and its fast one.
SPEEDUPS = {
    "speedup_float32": ("trl_float32", "ours_float32"), "speedup_float32_vllm": ("trl_float32_vllm", "ours_float32"),
    "speedup_best": ("trl_best", "ours_best")}


def main(arguments: Sequence[str]) -> int:
    form = arguments[0] if arguments else "quick"
    if form not in ROUNDS or len(arguments) > 1:
        print(f"usage: {Path(__file__).name} [{' | '.join(ROUNDS)}]", file=sys.stderr)
        return 2
    if importlib.util.find_spec("trl") is None:
        print("error: trl must be installed, got none; pip install trl==1.16.0", file=sys.stderr)
        return 2
    if "RLAIF_DATA" not in os.environ:
        print("error: RLAIF_DATA must name the folder of the data, got nothing; see the README", file=sys.stderr)
        return 2
    data = Path(os.environ["RLAIF_DATA"]).resolve()
    os.chdir(ROOT)
    FOLDER.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(num_cores())
    world.write_world(FOLDER, data)
    settings, tried = chosen_settings(form)
    rounds, rates = race(settings, form)
    alone = learners_alone(form)
    figures = {"benchmark": "against_trl", "form": form} | figures_of(settings, rounds, rates) | {
        f"learner_speedup{name}": found["speedup"] for name, found in alone.items()} | {
        f"learner{name}": found for name, found in alone.items()} | {"tried_step_s": tried} | about()
    columns = {"s a step": "step_s", "samples/s": "samples_per_s", "peak GB": "peak_gb",
               "share of matrix rate": "share_of_matrix_rate"}
    print("\n".join(table_lines(["arm", *columns], [
        {"arm": arm} | {column: found[name] for column, name in columns.items()}
        for arm, found in figures["arms"].items()])))
    store("against_trl" + ("_quick" if form == "quick" else ""), figures)
    return 0


def chosen_settings(form: str) -> tuple[dict[str, Settings], dict[str, float | None]]:
    """What each arm is set to, and the seconds a step of all that was tried, None for what did not run.

    What was tried before, as tried.json tells, is not tried again.
    """
    found = choices()
    if form == "quick":
        return {arm: untried(options) for arm, options in found.items()}, {}
    path = FOLDER / "tried.json"
    tried: dict[str, float | None] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def seconds(arm: str, settings: Settings) -> float | None:
        key = key_of(arm, settings)
        if key not in tried:
            try:
                tried[key] = run_lap(FOLDER, arm, settings, STEPS["try"]).step_s
            except RuntimeError as error:       # not every split of the work runs everywhere
                print(error, file=sys.stderr, flush=True)
                tried[key] = None
            path.write_text(json.dumps(tried, indent=1), encoding="utf-8")
            print(f"tried {key}: {tried[key]} s a step", flush=True)
        return tried[key]

    settings = {}
    for arm, options in found.items():
        best = fastest(options, functools.partial(seconds, arm))
        if best is None:
            raise RuntimeError(f"{arm} must run with some of its settings, got none; see {FOLDER}/laps/{arm}/log")
        settings[arm] = best
    return settings, tried


def race(settings: Mapping[str, Settings], form: str) -> tuple[list[dict[str, Lap]], list[dict[str, float]]]:
    """A lap of every arm in every round, and the rates of the machine's matrix products at its beginning."""
    rounds: list[dict[str, Lap]] = []
    rates: list[dict[str, float]] = []
    for number in range(ROUNDS[form]):
        rates.append(matrix_rates())
        rounds.append({})
        for arm, options in settings.items():
            lap = rounds[-1][arm] = run_lap(FOLDER, arm, options, STEPS[form])
            print(f"round {number + 1}/{ROUNDS[form]}: {arm} {lap.step_s:.2f} s a step, {lap.peak_gb:.2f} GB",
                  flush=True)
    return rounds, rates


def matrix_rates() -> dict[str, float]:
    """Operations a second of products of the model's shapes, by dtype: of two multipliers the faster, best of three."""
    shapes = BertConfig(hidden_size=world.HIDDEN, intermediate_size=world.INNER)
    found = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        rates = {maker: MatrixRate(shapes, dtype, multiply, num_tokens=2048, num_layers=world.LAYERS)
                 for maker, multiply in MULTIPLIERS.items()}
        seconds = interleaved({maker: rate.run for maker, rate in rates.items()}, 4)
        found[name] = max(rate.num_operations / min(seconds[maker][1:]) for maker, rate in rates.items())
    return found


def learners_alone(form: str) -> dict[str, dict[str, Any]]:
    """Without a reference policy, and in the full form with one; by the end of the figure's name."""
    if form == "quick":
        return {"": learners.compare(FOLDER, 0.0, LEARNER_REPEATS[form], learners.QUICK_BOUNDS)}
    return {name: learners.compare(FOLDER, kl, LEARNER_REPEATS[form], learners.BOUNDS)
            for name, kl in (("", 0.0), ("_with_reference", world.KL_COEFFICIENT))}


def figures_of(settings: Mapping[str, Settings], rounds: Sequence[Mapping[str, Lap]],
               rates: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    sizes = [len(row["prompt_ids"]) for row in world.prompts(FOLDER)]
    work = world.operations([round(statistics.mean(sizes))] * world.NUM_PROMPTS,
                            [world.MAX_TOKENS] * world.NUM_COMPLETIONS)
    arms = {}
    for arm, options in settings.items():
        laps, dtype = [laps[arm] for laps in rounds], "float32" if "float32" in arm else "bfloat16"
        step_s = statistics.median(lap.step_s for lap in laps)
        arms[arm] = {
            "step_s": step_s, "samples_per_s": world.NUM_COMPLETIONS / step_s,
            "peak_gb": max(lap.peak_gb for lap in laps),
            "share_of_matrix_rate": statistics.median(
                work / lap.step_s / rate[dtype] for lap, rate in zip(laps, rates, strict=True)),
            "tokens_a_completion": statistics.mean(lap.tokens for lap in laps),
            "where_s": {name: statistics.median(lap.parts_s[name] for lap in laps) for name in laps[0].parts_s},
            "rounds_step_s": [lap.step_s for lap in laps], "settings": options}
    speedups = {name: statistics.median(laps[slow].step_s / laps[fast].step_s for laps in rounds)
                for name, (slow, fast) in SPEEDUPS.items()}
    return speedups | {
        "arms": arms, "work_gflop_a_step": work / 1e9, "prompt_tokens_mean": statistics.mean(sizes),
        "matrix_gflop_per_s": {name: statistics.median(rate[name] for rate in rates) / 1e9 for name in rates[0]},
        "rounds": len(rounds), "samples_a_step": world.NUM_COMPLETIONS, "max_tokens": world.MAX_TOKENS,
        "kl_coefficient": world.KL_COEFFICIENT}


def about() -> dict[str, Any]:
    found = environment()
    found["versions"] |= {name: importlib.metadata.version(name) for name in ("trl", "accelerate", "datasets")}
    return found | {"threads": num_cores()}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
