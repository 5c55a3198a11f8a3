"""One short run end to end."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rlaif.modeling.models import load_causal_lm, load_tokenizer
from tests.real.conftest import KEPT, ROOT, SHORT, Run, launch, run_short


def test_the_summary_keeps_the_contract(short_run: Run) -> None:
    summary = short_run.summary
    for name in ("reward_before", "reward_after", "gold_before", "gold_after", "kl", "samples_per_s", "peak_rss_gb",
                 "max_logprob_gap"):
        assert isinstance(summary[name], float) and math.isfinite(summary[name]), name
    assert (summary["steps"], summary["seed"]) == (3, 0)
    assert {"start", "rollout", "explain", "score", "learn", "sync", "total"} <= summary["wall_s"].keys()
    assert {"ray", "torch", "deepspeed", "transformers"} <= summary["versions"].keys()
    assert 0.2 < summary["gold_before"] < 0.8


def test_every_step_has_one_line_of_metrics(short_run: Run) -> None:
    assert [line["step"] for line in short_run.steps] == [1, 2, 3]
    for line in short_run.steps:
        assert line["num_rollouts"] == 16
        assert line["policy_version"] == line["step"]
        assert math.isfinite(line["loss"]) and math.isfinite(line["grad_norm"])
    assert len({line["checksum"] for line in short_run.steps}) == 3, "a step did not change the weights"


def test_engine_and_learner_agree_on_every_logprob(short_run: Run) -> None:
    assert short_run.summary["max_logprob_gap"] <= 1e-4


def test_the_console_names_every_stage_and_nothing_else_shouts(short_run: Run) -> None:
    for stage in ("rollout", "explain", "score", "learn", "sync"):
        assert sum(line.startswith(f"  {stage} ") for line in short_run.printed.splitlines()) == 3, stage
    for part in ("prompt", "completion", "explanation", "slots"):
        assert f"  | {part} " in short_run.printed
    slots = [line for line in short_run.printed.splitlines() if line.startswith("  | slots")]
    assert len(slots) == 2
    assert all(re.search(r"verdict:yes \d\.\d\d .* reward \d\.\d\d  gold [01]$", line) for line in slots)
    for noise in ("WARNING", "Warning", "Traceback", "DeepSpeed", "INFO"):
        assert noise not in short_run.printed, short_run.printed


def test_the_exported_policy_loads_in_transformers_and_differs_from_the_start(short_run: Run) -> None:
    folder = str(short_run.output_dir / "policy")
    trained, start = load_causal_lm(folder, "float32"), load_causal_lm("rlaif/scenes/start/policy", "float32")
    moved = max((a - b).abs().max().item() for a, b in zip(trained.parameters(), start.parameters(), strict=True))
    assert 0 < moved < 1
    tokenizer = load_tokenizer(folder)
    prompt = tokenizer("Say something that must be true: A woman in a red coat plays a guitar on a bench.",
                       return_tensors="pt")["input_ids"]
    with torch.no_grad():
        written = trained.generate(input_ids=prompt, max_new_tokens=24, do_sample=False, pad_token_id=0)
    text = tokenizer.decode(written[0, prompt.shape[1]:], skip_special_tokens=True)
    assert text.startswith(("A ", "An ")) and text.endswith(".")


def test_the_same_command_again_has_nothing_to_do(short_run: Run) -> None:
    done = launch("launch/train.py", "configs/quickstart.yaml", f"output_dir={short_run.output_dir}", *SHORT, *KEPT)
    assert done.returncode == 0
    assert done.stdout.strip().endswith("is complete; nothing to do")


def test_zero_3_learns_the_same_from_the_same_rollouts(short_run: Run, tmp_path: Path) -> None:
    """Reference, update, drift, publish and export with sharded weights, on two ranks (one where there is a GPU)."""
    sharded = run_short(tmp_path / "zero3", "steps=1", "learner.zero_stage=3")
    for name in ("reward", "loss", "kl_per_token", "grad_norm", "entropy"):
        assert sharded.steps[0][name] == pytest.approx(short_run.steps[0][name], abs=1e-4), name


def test_several_epochs_and_minibatches_update_more_often(short_run: Run, tmp_path: Path) -> None:
    run = run_short(tmp_path / "several", "steps=1", "algorithm.num_epochs=2", "algorithm.num_minibatches=2")
    assert run.steps[0]["reward"] == pytest.approx(short_run.steps[0]["reward"], abs=1e-4)
    assert run.steps[0]["clip_share"] >= 0 and run.steps[0]["max_logprob_gap"] <= 1e-4
    assert run.steps[0]["kl_per_token"] > short_run.steps[0]["kl_per_token"], "later minibatches see a moved policy"


def test_the_best_weights_are_exported_and_every_evaluation_is_kept(tmp_path: Path) -> None:
    run = run_short(tmp_path / "best", "evaluation.every=1", "evaluation.modes=[sampled,greedy]",
                    "evaluation.select_by=greedy_reward", "evaluation.export=best")
    lines = [json.loads(line) for line in (run.output_dir / "evaluations.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    rewards = [line["greedy_reward"] for line in lines]
    assert run.summary["best_step"] == rewards.index(max(rewards))
    assert run.summary["stopped"] is None and run.summary["greedy_reward_after"] == rewards[-1]
    assert not (run.output_dir / "best").exists()
    load_causal_lm(str(run.output_dir / "policy"), "float32")


def test_a_run_that_has_gone_too_far_ends_early_and_another_seed_gives_another_run(short_run: Run, tmp_path: Path
                                                                                   ) -> None:
    # An estimate from 24 answers may be below zero while the policy has hardly moved: hence a large step.
    run = run_short(tmp_path / "early", "steps=10", "evaluation.every=1", "evaluation.stop.kl_limit=1e-6",
                    "learner.learning_rate=0.01", "seed=1")
    assert run.summary["steps"] == len(run.steps) < 10
    assert "is above evaluation.stop.kl_limit 1e-06" in run.summary["stopped"]
    assert run.steps[0]["num_completion_tokens"] != short_run.steps[0]["num_completion_tokens"]


def test_dapo_goes_over_the_runs_own_file_and_replaces_groups_of_equal_rewards(tmp_path: Path) -> None:
    folder = tmp_path / "dapo"
    done = launch("launch/train.py", "configs/quickstart.yaml", "configs/algorithms/dapo.yaml", f"output_dir={folder}",
                  *SHORT, "rollout.group_size=2", "reward.model=gold:scenes", "explainer.source=none")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    steps = Run(folder, done.stdout).steps
    for step in steps:
        assert step["num_trained"] == 8
        assert step["num_rollouts"] == 8 + 2 * step["num_replaced_groups"]
    assert sum(step["num_replaced_groups"] for step in steps) > 0


def test_a_ray_job_does_the_same(short_run: Run, tmp_path: Path) -> None:
    """`ray start --head`, then `ray job submit`; only what was started here is stopped."""
    ray_command = str(Path(sys.executable).with_name("ray"))
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(tmp_path),
                   "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}
    ports = ("--port=26379", "--dashboard-port=28265", "--ray-client-server-port=20001",
             "--dashboard-agent-listen-port=52399", "--dashboard-host=127.0.0.1", "--node-ip-address=127.0.0.1")
    temporary = Path("/tmp") / f"rlaif-ray-{tmp_path.name[-8:]}"     # short: socket paths are limited
    head = subprocess.Popen([ray_command, "start", "--head", "--block", f"--temp-dir={temporary}", *ports],
                            env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        output_dir = tmp_path / "job"
        command = ("python", "launch/train.py", "configs/quickstart.yaml", f"output_dir={output_dir}", *SHORT)
        submit = [ray_command, "job", "submit", "--address", "http://127.0.0.1:28265", "--working-dir", ".", "--",
                  *command]
        for _ in range(30):     # the dashboard answers some seconds after the head
            done = subprocess.run(submit, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=500)
            if "Failed to connect" not in done.stdout + done.stderr:
                break
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert "joined the Ray cluster" in done.stdout
        job = Run(output_dir, done.stdout)
        listed = subprocess.run([ray_command, "list", "actors", "--address", "http://127.0.0.1:28265", "--detail"],
                                env=environment, text=True, capture_output=True, timeout=60)
        for name in ("rollout-0", "explainer-0", "slot-0", "learner-0"):
            assert name in listed.stdout, listed.stdout[-2000:] + listed.stderr[-2000:]
        assert job.summary["gold_after"] == pytest.approx(short_run.summary["gold_after"], abs=0.05)
    finally:
        head.terminate()
        head.wait(timeout=30)
        shutil.rmtree(temporary, ignore_errors=True)
