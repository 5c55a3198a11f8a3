"""Supervised and reward training from nothing, through the launchers."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import torch

from rlaif.esfp.reward_model import RewardModel, Texts
from rlaif.modeling.models import load_causal_lm, load_tokenizer
from tests.real.conftest import GPUS, START, launch

ON_GPU = ("placement.num_actors=1", "placement.num_gpus=1") if GPUS else ()
REWARD_ON_GPU = ("placement.learner.num_actors=1", "placement.learner.num_gpus=1",
                 "placement.explainer.num_gpus=1") if GPUS else ()
SMALL = ("data.train=[{path: 'scenes:judged-train', num_rows: 256}]",
         "data.dev=[{path: 'scenes:judged-dev', num_rows: 64}]")


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_sft_learns_and_leaves_a_hugging_face_folder(tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    done = launch("launch/sft.py", "configs/scenes_policy.yaml", f"output_dir={folder}", "steps=12", "log_every=4",
                  "learner.warmup_steps=8", "data.num_train=1000", "data.num_dev=32", *ON_GPU)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    first, *_, last = losses(folder)
    assert last < first - 0.5
    model, tokenizer = load_causal_lm(str(folder), "float32"), load_tokenizer(str(folder))
    assert model.config.vocab_size == len(tokenizer)
    assert all(torch.isfinite(tensor).all() for tensor in model.parameters())


def test_dpo_learns_to_prefer_the_right_answer_and_its_first_margin_is_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "dpo"
    done = launch("launch/dpo.py", "configs/scenes_dpo.yaml", f"output_dir={folder}", "steps=12", "log_every=1",
                  "checkpoint_every=0", "dev_every=0", "data.num_train=1000", "data.num_dev=64",
                  "learner.learning_rate=0.001", *ON_GPU)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["loss"] == pytest.approx(0.6931, abs=1e-3), "log 2 where policy and reference are the same"
    assert lines[-1]["implicit_reward_margin"] > 0.02 and lines[-1]["loss"] < 0.69
    load_causal_lm(str(folder), "float32")


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_a_reward_folder_is_trained_on_what_the_explainer_wrote(tmp_path: Path, zero_stage: int) -> None:
    folder = tmp_path / "reward"
    done = launch("launch/train_reward.py", "configs/scenes_reward.yaml", f"output_dir={folder}", "steps=12",
                  "log_every=4", f"explainer.model={START / 'explainer'}", *SMALL,
                  f"learner.zero_stage={zero_stage}", "learner.warmup_steps=8", *REWARD_ON_GPU)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    first, *_, last = losses(folder)
    assert last < first
    reward = RewardModel.load(folder)
    assert (folder / reward.spec.explainer.model).resolve() == (START / "explainer").resolve()
    assert reward.spec.facts["data"]["train"]["num_rows"] == 256
    texts = Texts(["Say something that must be true: A man reads a book."], ["A man reads a book."], [["a"]])
    scored = reward.score(texts, max_tokens_per_batch=1000)
    assert scored.probabilities.sum(dim=-1).tolist() == [pytest.approx([1.0])]


def test_an_explainer_whose_server_does_not_answer_ends_the_run_in_one_line(tmp_path: Path) -> None:
    with socket.socket() as probe:      # bound and not listening: every connection is refused
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/v1"
        done = launch("launch/train_reward.py", "configs/scenes_reward.yaml", f"output_dir={tmp_path / 'reward'}",
                      "explainer.source=server", f"explainer.server.url={url}", "explainer.model=judge", *SMALL,
                      timeout_s=120.0)
    assert done.returncode == 2, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stderr.startswith(f"error: explainer.server.url must be of a server that answers, got '{url}': ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "reward" / "reward.yaml").exists()
