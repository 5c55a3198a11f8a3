"""Models and rows drawn at random: the speed is that of trained ones, and no model hub is asked."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from actors.cluster.placement import Placement, Roles
from rlaif.batch import SCORED, from_rows
from rlaif.policy.training_batch import ORDER

START = Path(__file__).resolve().parents[2] / "rlaif" / "scenes" / "start"

# Qwen2-0.5B's shapes.
HALF_BILLION = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
                "num_key_value_heads": 2, "max_position_embeddings": 2048, "tie_word_embeddings": True}
VOCABULARY = 151936


class NamedPlacement(Placement):
    """Places of actors that are not taken for those of another case: `name` stands before their names."""

    def __init__(self, name: str, roles: Roles) -> None:
        super().__init__(roles, "PACK", 300.0)
        self._name = name

    def options(self, role: str, index: int) -> dict[str, Any]:
        options = super().options(role, index)
        return options | {"name": f"{self._name}-{options['name']}"}


def policy_vocabulary() -> int:
    """Words of the start policy of the scenes world."""
    return json.loads((START / "policy" / "config.json").read_text())["vocab_size"]


def qwen2(vocabulary: int = VOCABULARY) -> Qwen2ForCausalLM:
    """Half a billion parameters on the GPU, in bfloat16, drawn from a seed."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        return Qwen2ForCausalLM(Qwen2Config(vocab_size=vocabulary, **HALF_BILLION)).to(torch.bfloat16)


def write_policy(folder: Path, *, scenes: bool) -> int:
    """Writes such a model into `folder`, with the tokenizer of the scenes world; returns its number of parameters.

    scenes: with that tokenizer's vocabulary (0.36 billion parameters), so that every token is a word.
    """
    model = qwen2(policy_vocabulary() if scenes else VOCABULARY)
    tokenizer = AutoTokenizer.from_pretrained(START / "policy")
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, name, getattr(tokenizer, name))
        setattr(model.config, name, getattr(tokenizer, name))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.num_parameters()


def scored(num_groups: int, group_size: int, prompt_tokens: tuple[int, int], completion_tokens: tuple[int, int],
           vocabulary: int, logprob: Callable[[Random], float]) -> tuple[pa.Table, pa.Table]:
    """(chosen, SCORED rows) of completions and rewards drawn at random, lengths evenly from the given bounds."""
    rng = Random(0)
    rows = []
    for group in range(num_groups):
        prompt_ids = [rng.randrange(3, vocabulary) for _ in range(rng.randint(*prompt_tokens))]
        for sample in range(group_size):
            ids = [rng.randrange(3, vocabulary) for _ in range(rng.randint(*completion_tokens))]
            rows.append(_ROW | {"group_id": group, "sample": sample, "prompt_ids": prompt_ids, "completion_ids": ids,
                                "rollout_logprobs": [logprob(rng) for _ in ids], "policy_versions": [0] * len(ids)}
                        | _rewarded(rng.random()))
    table = from_rows(rows, SCORED)
    return table.select(["group_id", "sample"]).sort_by(ORDER), table


_ROW: dict[str, Any] = {
    "prompt_id": 0, "epoch": 0, "prompt": "", "reference": None, "source": "", "sample_weight": 1.0, "completion": "",
    "finish_reason": "stop", "policy_version": 0, "explanations": [], "num_explanation_tokens": 0,
    "explanation_finish_reasons": [], "slot_probabilities": [], "slot_scores": [], "slot_entropy": [],
    "judge_verdicts": [], "reward_version": ""}


def _rewarded(reward: float) -> dict[str, Any]:
    return {"reward": reward, "reward_parts": [("drawn", reward)], "reward_terms": [("drawn", reward)]}


if __name__ == "__main__":
    write_policy(Path(sys.argv[1]), scenes=True)
