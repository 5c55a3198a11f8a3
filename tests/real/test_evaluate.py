"""Evaluation through the launcher: each kind of judge, and a run that is killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
import ray
import yaml

from actors.cluster.placement import Placement
from actors.judging.judges import all_ready, start_judges
from rlaif.batch import ROLLOUT, SCORED, check, from_rows
from rlaif.config.reward import JudgeConfig, JudgedDataConfig
from rlaif.config.train import EngineConfig, RewardConfig
from rlaif.data.judged_rows import judged_rows
from rlaif.esfp.generative_spec import GenerativeSpec, JudgeQuestion
from rlaif.esfp.judges import find_judge, write_judge
from rlaif.esfp.reward_model import RewardModel
from rlaif.esfp.reward_spec import RewardSpec
from rlaif.esfp.slots import Slot, SlotTemplate
from rlaif.modeling.models import scratch_judge, word_tokenizer
from rlaif.reward_evaluation.scored_rows import texts_of
from rlaif.scenes import rows as scene_rows
from tests.conftest import SCRATCH, WORDS
from tests.real.conftest import GPUS, ROOT, START, launch, role

REWARD = str(START / "reward")
ON_GPU = [f"placement.explainer.num_gpus={GPUS['explainer']}", f"placement.judge.num_gpus={GPUS['slot']}",
          "judge.explainer.engine.gpu_memory_utilization=0.2", "judge.reward.engine.gpu_memory_utilization=0.2"
          ] if GPUS else []
SMALL = ("data=[{path: 'scenes:judged-test', num_rows: 64}]", "batch_size=16", "num_bootstraps=20")


def configured(folder: Path, judge: dict[str, Any], data: list[dict[str, Any]], **settings: Any) -> str:
    path = folder / "evaluate.yaml"
    path.write_text(yaml.safe_dump({"output_dir": str(folder / "out"), "judge": judge, "data": data,
                                    "num_bootstraps": 20, **settings}))
    return str(path)


def evaluated(config: str, *overrides: str) -> tuple[dict[str, Any], str]:
    """evaluation.json and what was printed."""
    done = launch("launch/evaluate.py", config, *ON_GPU, *overrides)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads((output_dir(config, *overrides) / "evaluation.json").read_text()), done.stdout


def output_dir(config: str, *overrides: str) -> Path:
    given = [override.removeprefix("output_dir=") for override in overrides if override.startswith("output_dir=")]
    return Path(given[0] if given else yaml.safe_load(Path(config).read_text())["output_dir"])


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A right and a wrong answer to each of 24 prompts, in RewardBench's layout."""
    by_prompt: dict[str, dict[str, str]] = {}
    for row in scene_rows("judged-test", seed=0, num_rows=6000):
        by_prompt.setdefault(row["prompt"], {})[row["label"]] = row["completion"]
    rows = [{"prompt": prompt, "chosen": found["yes"], "rejected": found["no"]}
            for prompt, found in by_prompt.items() if {"yes", "no"} <= found.keys()][:24]
    assert len(rows) == 24
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_reward_folder_is_measured_with_its_own_explainer_and_under_edits(tmp_path: Path) -> None:
    config, out = str(ROOT / "configs/scenes_evaluate.yaml"), tmp_path / "out"
    overrides = (f"output_dir={out}", *SMALL, "with_edits=true", "num_edited_rows=4")
    found, printed = evaluated(config, *overrides)
    verdict = found["labels"]["verdict"]
    assert verdict["num_rows"] == 64 and verdict["accuracy"] >= 0.97 and verdict["ece"] < 0.05
    assert found["judge"]["explainer"] == str(START / "explainer")
    assert found["counts"]["texts_judged"] == found["counts"]["explanations"] == 64
    assert set(found["edits"]) > {"praise", "claimed_answer", "full_stop"}
    assert {path.name for path in out.iterdir()} >= {"evaluation.md", "reliability.png", "scores.png", "done"}
    assert not list(out.glob("*.part-*")) and not list(out.glob("*.partial"))
    rows = pa.parquet.read_table(out / "scored.parquet")
    assert rows["row"].to_pylist() == list(range(64)) and all(len(p) == 3 for p in rows["probabilities"].to_pylist())
    assert "scored 64/64 judged rows" in printed and "labels of verdict" in printed
    again = launch("launch/evaluate.py", config, *ON_GPU, *overrides)
    assert again.returncode == 0 and again.stdout.strip().endswith("is complete; nothing to do")


def test_a_killed_evaluation_goes_on_where_it_was_and_ends_the_same(tmp_path: Path) -> None:
    config, parts = str(ROOT / "configs/scenes_evaluate.yaml"), (*SMALL, "batch_size=1")
    whole, _ = evaluated(config, f"output_dir={tmp_path}/whole", *parts)
    killed = tmp_path / "killed"
    command = [sys.executable, "launch/evaluate.py", config, f"output_dir={killed}", *ON_GPU, *parts]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                          start_new_session=True) as process:
        deadline = time.monotonic() + 200
        while not list(killed.glob("scored_judged.part-*.parquet")) and time.monotonic() < deadline:
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
    there = {path.name: path.stat().st_mtime_ns for path in killed.glob("scored_judged.part-*.parquet")}
    assert 0 < len(there) < 64, "it must be killed half way"
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=400)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "explanations are there already" in done.stdout
    resumed = json.loads((killed / "evaluation.json").read_text())
    for evaluation in (whole, resumed):
        del evaluation["speed"], evaluation["run"]["config"]      # the configuration names the folder
    assert resumed == whole
    scored = [pa.parquet.read_table(folder / "scored.parquet") for folder in (tmp_path / "whole", killed)]
    assert scored[0].equals(scored[1])


def test_a_public_scalar_model_is_measured_on_pairs(tmp_path: Path, pairs: str) -> None:
    tokenizer = word_tokenizer([WORDS], masked=True)
    scratch_judge(SCRATCH, tokenizer, 1, "scalar", 1).save_pretrained(tmp_path / "scalar")
    tokenizer.save_pretrained(tmp_path / "scalar")
    config = configured(tmp_path, {"reward": {"model": str(tmp_path / "scalar")}, "template": {"max_tokens": 128}},
                        [{"path": pairs, "kind": "pairs"}])
    found, _ = evaluated(config)
    assert (found["judge"]["kind"], found["judge"]["explanations"]) == ("encoder", "none")
    assert found["pairs"]["num_rows"] == 24 and found["counts"]["texts_judged"] == 48
    scored = pa.parquet.read_table(tmp_path / "out" / "scored.parquet")
    margins = [mine - theirs for mine, theirs in zip(scored["reward"].to_pylist(), scored["other_reward"].to_pylist(),
                                                     strict=True)]
    right = [(margin > 0) == (preference == 1) for margin, preference in zip(margins, scored["preference"].to_pylist(),
                                                                             strict=True)]
    assert found["pairs"]["accuracy"] == pytest.approx(sum(right) / 24)


def test_a_pairwise_reward_folder_is_measured_in_both_orders(tmp_path: Path, pairs: str) -> None:
    tokenizer = word_tokenizer([WORDS], masked=True)
    template = SlotTemplate("{prompt} {completion} {other} The answer is [better].", [
        Slot("better", [["yes"], ["no"]], [1.0, 0.0], kind="pairwise")], 160)
    model = scratch_judge(SCRATCH, tokenizer, 1, "slot", 2)
    RewardModel(model, tokenizer, RewardSpec(template)).save(tmp_path / "reward")
    config = configured(tmp_path, {"reward": {"model": str(tmp_path / "reward")}}, [{"path": pairs, "kind": "pairs"}])
    found, _ = evaluated(config)
    assert 0 < found["pairs"]["position_bias"]["mean_gap"] <= 1
    rows = pa.parquet.read_table(tmp_path / "out" / "scored.parquet")
    texts = texts_of(judged_rows(JudgedDataConfig(path=pairs, kind="pairs"), template, "data"))
    expected = RewardModel(model.eval(), tokenizer, RewardSpec(template)).score(texts, max_tokens_per_batch=8192)
    assert rows["reward"].to_pylist() == pytest.approx(expected.reward.tolist(), abs=1e-5)
    assert rows["probabilities"].to_pylist() == [pytest.approx(row[0], abs=1e-5)
                                                 for row in expected.probabilities.tolist()]


def test_a_causal_model_is_asked_and_leaves_the_judge_that_it_was(tmp_path: Path) -> None:
    slot = {"name": "verdict", "classes": [["true"], ["a"]]}
    config = configured(
        tmp_path, {"reward": {"model": str(START / "policy")}, "generative": {
            "text": "{prompt} : {completion} Say that must be ", "slot": slot, "max_tokens": 100}},
        [{"path": "scenes:judged-test", "num_rows": 24, "labels": {"yes": "true", "no": "a", "garbled": "a"}}])
    found, _ = evaluated(config)
    assert found["judge"]["kind"] == "generative" and 0 < found["counts"]["judge_label_mass"] <= 1
    assert found["labels"]["verdict"]["num_rows"] == 24
    again, _ = evaluated(configured(tmp_path, {"reward": {"model": str(tmp_path / "out")}},
                                    yaml.safe_load(Path(config).read_text())["data"], output_dir=str(tmp_path / "two")))
    assert again["labels"] == found["labels"] and again["judge"]["version"] == found["judge"]["version"]


def test_a_causal_model_that_compares_is_measured_in_both_orders(tmp_path: Path, pairs: str) -> None:
    slot = {"name": "better", "kind": "pairwise", "classes": [["in"], ["on"]]}
    config = configured(tmp_path, {"reward": {"model": str(START / "policy")}, "generative": {
        "text": "{prompt} in: {completion} on: {other} Say that must be ", "slot": slot, "max_tokens": 100}},
        [{"path": pairs, "kind": "pairs"}])
    found, _ = evaluated(config)
    assert found["pairs"]["position_bias"]["num_rows"] == 24 and found["pairs"]["position_bias"]["mean_gap"] > 0
    assert found["counts"]["texts_judged"] == 48


def test_the_gold_judge_is_never_wrong(tmp_path: Path, pairs: str) -> None:
    config = configured(tmp_path, {"reward": {"model": "gold:scenes"}},
                        [{"path": "scenes:judged-test", "num_rows": 200}, {"path": pairs, "kind": "pairs"}])
    found, _ = evaluated(config, "placement.judge.num_actors=2", "batch_size=50")
    assert found["labels"]["verdict"]["accuracy"] == 1.0 and found["labels"]["verdict"]["ece"] == 0.0
    assert found["pairs"]["accuracy"] == 1.0 and found["pairs"]["mean_margin"] == 1.0


def rollouts(num_rows: int) -> pa.Table:
    rows = scene_rows("judged-test", seed=0, num_rows=num_rows)
    return from_rows([{"prompt_id": n, "epoch": 0, "group_id": n // 2, "prompt": row["prompt"], "prompt_ids": [1],
                       "reference": None, "source": "s", "sample_weight": 1.0, "sample": n % 2,
                       "completion": row["completion"],
                       "completion_ids": [1, 2], "rollout_logprobs": [0.0, 0.0], "finish_reason": "stop",
                       "policy_version": 0, "policy_versions": [0, 0]} for n, row in enumerate(rows)], ROLLOUT)


def test_every_kind_of_judge_scores_a_batch_of_rollouts(local_ray: None, tmp_path: Path) -> None:
    spec = GenerativeSpec(JudgeQuestion("{prompt} : {completion} Say that must be "),
                          Slot("verdict", [["true"], ["a"]], [1.0, 0.0]), str(START / "policy"), max_tokens=100)
    write_judge(tmp_path / "asking", spec)
    found = {}
    for model, seat in (("gold:scenes", "slot"), (REWARD, "slot"), (str(tmp_path / "asking"), "explainer")):
        config = RewardConfig(model=model)
        judge = find_judge(JudgeConfig(reward=config))
        placement = Placement({judge.kind: role(seat)}, "PACK", 60)
        try:
            actors = start_judges(judge, config, EngineConfig(gpu_memory_utilization=0.2), placement, judge.kind,
                                  role(seat), gold="scenes")
            found[judge.kind] = scored_by(actors, len(judge.template.slots[0].classes))
        finally:
            placement.remove()
    assert found["gold"]["reward"] == found["gold"]["gold"]
    assert found["generative"]["gold"] == found["gold"]["gold"] and len(set(found["generative"]["reward"])) > 1


def scored_by(actors: list[Any], num_classes: int) -> dict[str, list[float]]:
    version = asyncio.run(all_ready(actors, 200))
    table, summary, counts = ray.get(actors[0].score.remote(rollouts(8)))
    check(table, SCORED)
    assert set(table["reward_version"].to_pylist()) == {version} and "judged_without_explanation" in counts
    assert all(len(p) == num_classes for p in table["slot_probabilities"].to_pylist())
    assert summary["reward"].to_pylist() == table["reward"].to_pylist()
    return {"reward": table["reward"].to_pylist(),
            "gold": [dict(verdicts)["gold"] for verdicts in table["judge_verdicts"].to_pylist()]}
