"""One learner's update of given rows, in a process of its own: learner_step.py <ours | trl> <world> <rows.json> <kl>

It says "ready" when it can begin. Then it answers every line it reads, a number that bounds a forward pass (ours:
tokens, TRL: rows), with a line of JSON: the seconds of one whole update in float32 and the norm of its gradient. Both
learners use every core; where the KL's coefficient <kl> is above 0, the reference policy's logprobs are a part of it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[0] = str(ROOT)     # in place of this folder

import torch  # noqa: E402

from benchmarks.measuring import num_cores  # noqa: E402
from benchmarks.trl_peer import world  # noqa: E402
from benchmarks.trl_peer.rows import Row, read_rows  # noqa: E402

Step = Callable[[int], float]       # takes the bound, returns the norm of the gradient


def ours(model: str, rows: Sequence[Row], kl: float) -> Step:
    """rlaif.learning.learner.Learner under DeepSpeed, as a learner of one rank has it."""
    from actors.learners.zero import ZeroEngine, init_distributed
    from rlaif.config.algorithm import AlgorithmConfig
    from rlaif.config.learner import LearnerConfig
    from rlaif.learning.completion_model import CompletionModel, examine
    from rlaif.learning.learner import Learner
    from rlaif.learning.objectives import PolicyObjective, PolicyOptions
    from rlaif.metrics import values
    from rlaif.modeling.models import load_causal_lm, without_dropout
    from rlaif.modeling.products import use_fast_products
    from rlaif.policy.training_batch import ORDER

    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port)}
    init_distributed("gloo")
    use_fast_products()

    def load() -> CompletionModel:
        policy = load_causal_lm(model, "float32")
        without_dropout(policy)
        return CompletionModel(policy, None, examine(policy))

    module, reference = load(), load().eval().requires_grad_(False) if kl else None
    config = LearnerConfig(learning_rate=world.LEARNING_RATE)
    engine = ZeroEngine(module, module.model, config, torch.device("cpu"))
    objective = PolicyObjective(PolicyOptions(
        AlgorithmConfig(mean="sequence", importance="none", kl_coefficient=kl), max_tokens=world.MAX_TOKENS))
    learners: dict[int, Learner] = {}
    scored = scored_table(rows)
    chosen = scored.select(["group_id", "sample"]).sort_by(ORDER)

    def step(max_tokens: int) -> float:
        if max_tokens not in learners:
            learners[max_tokens] = Learner(dataclasses.replace(config, micro_batch_tokens=max_tokens), objective,
                                           module, engine, seed=0, total_steps=1000, reference=reference)
        return values(learners[max_tokens].update_policy(chosen, kl, [scored]))["grad_norm"]

    return step


def scored_table(rows: Sequence[Row]) -> Any:
    """The SCORED batch of `rows`."""
    from rlaif.batch import SCORED, from_rows

    same = {"prompt_id": 0, "epoch": 0, "prompt": "", "reference": None, "source": "", "sample_weight": 1.0,
            "completion": "",
            "finish_reason": "stop", "policy_version": 0, "explanations": [], "num_explanation_tokens": 0,
            "explanation_finish_reasons": [], "slot_probabilities": [], "slot_scores": [], "slot_entropy": [],
            "judge_verdicts": [], "reward_version": ""}
    return from_rows([same | dataclasses.asdict(row) | {
        "rollout_logprobs": [0.0] * len(row.completion_ids), "policy_versions": [0] * len(row.completion_ids),
        "reward_parts": [("drawn", row.reward)], "reward_terms": [("drawn", row.reward)]} for row in rows], SCORED)


def theirs(model: str, rows: Sequence[Row], kl: float) -> Step:
    """GRPOTrainer.compute_loss on the batch that it would have made, backward, clipping and its own optimizer."""
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer
    from trl.trainer.utils import split_tensor_dict

    trainer = GRPOTrainer(
        model=model, reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=GRPOConfig(
            output_dir="outputs/against_trl/learner", use_cpu=True, bf16=False, gradient_checkpointing=False,
            per_device_train_batch_size=len(rows), num_generations=world.GROUP_SIZE,
            max_completion_length=world.MAX_TOKENS, loss_type="grpo", beta=kl, use_bias_correction_kl=False,
            learning_rate=world.LEARNING_RATE, adam_beta2=0.95, weight_decay=0.0, report_to="none"),
        processing_class=AutoTokenizer.from_pretrained(model, padding_side="left"), train_dataset=no_prompts())
    optimizer, batch = trainer.create_optimizer(), trl_batch(rows)
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)

    def step(max_rows: int) -> float:
        whole = dict(batch)
        if kl:
            with torch.no_grad():
                whole["ref_per_token_logps"] = trainer._get_per_token_logps_and_entropies(
                    trainer.ref_model, ids, mask, batch["completion_ids"].shape[1], batch_size=max_rows)[0]
        num_parts = len(rows) // max_rows
        trainer.current_gradient_accumulation_steps = num_parts
        trainer.model.train()
        for part in split_tensor_dict(whole, num_parts):
            trainer.compute_loss(trainer.model, part).backward()
        norm = float(torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0))
        optimizer.step()
        optimizer.zero_grad()
        return norm

    return step


def no_prompts() -> Any:
    from datasets import Dataset

    return Dataset.from_dict({"prompt": [""]})


def trl_batch(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    """What GRPOTrainer hands to its loss: prompts padded on the left, completions on the right, both to the longest of
    the whole step; advantages as it computes them."""
    from trl.trainer.utils import pad

    found = {}
    for name, side in (("prompt", "left"), ("completion", "right")):
        ids = [torch.tensor(getattr(row, f"{name}_ids")) for row in rows]
        found[f"{name}_ids"] = pad(ids, padding_value=0, padding_side=side)
        found[f"{name}_mask"] = pad([torch.ones_like(part) for part in ids], padding_value=0, padding_side=side)
    rewards = torch.tensor([row.reward for row in rows]).view(-1, world.GROUP_SIZE)
    advantages = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
    return found | {"advantages": advantages.flatten(), "num_items_in_batch": found["completion_mask"].sum()}


def main(kind: str, folder: str, path: str, kl: str) -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)       # whatever the libraries say goes to the log
    torch.set_num_threads(num_cores())
    step = {"ours": ours, "trl": theirs}[kind](str(Path(folder) / world.MODEL), read_rows(Path(path)), float(kl))
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        started = time.perf_counter()
        norm = step(int(line))
        print(json.dumps({"seconds": time.perf_counter() - started, "grad_norm": norm}), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
