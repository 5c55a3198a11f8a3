"""Learners under DeepSpeed on the policy that the project ships, for one rank and for ranks that are spawned."""

from __future__ import annotations

import dataclasses

import torch

from rlaif.config.algorithm import AlgorithmConfig
from rlaif.config.learner import CriticConfig, LearnerConfig, LoraConfig
from rlaif.learning.completion_model import CompletionModel, examine
from rlaif.learning.critic import Critic
from rlaif.learning.learner import Learner
from rlaif.learning.lora import add_lora
from rlaif.learning.objectives import PolicyObjective, PolicyOptions
from rlaif.metrics import merge, values
from rlaif.modeling.models import load_causal_lm
from tests.learning.test_learner import keys, scored
from tests.real.conftest import START

POLICY = str(START / "policy")
PPO = AlgorithmConfig(advantage="gae", num_epochs=2, kl_coefficient=0.05)
GRPO = AlgorithmConfig(num_minibatches=2, kl_coefficient=0.05, entropy_coefficient=0.01)
RATE = 1e-3
CASES = {"grpo": (GRPO, LearnerConfig(learning_rate=RATE, micro_batch_tokens=40)),
         "recomputed": (GRPO, LearnerConfig(learning_rate=RATE, activation_checkpointing=True)),
         "adapters": (GRPO, LearnerConfig(learning_rate=RATE, micro_batch_tokens=40, lora=LoraConfig(rank=4))),
         "critic": (PPO, LearnerConfig(learning_rate=RATE, micro_batch_tokens=40,
                                       critic=CriticConfig("policy", learning_rate=RATE))),
         "offload": (GRPO, LearnerConfig(learning_rate=RATE, micro_batch_tokens=40, zero_stage=1, offload=True))}


def learner(algorithm: AlgorithmConfig, config: LearnerConfig, engine_of, **ranks: int) -> Learner:
    model = load_causal_lm(POLICY, config.dtype)
    objective = PolicyObjective(PolicyOptions(algorithm, max_tokens=8))
    critic = Critic(load_causal_lm(POLICY, "float32").base_model) if objective.has_critic else None
    if config.lora.rank is not None:
        add_lora(model, config.lora, seed=1)
    module = CompletionModel(model, critic, examine(model, critic))
    assert module.reading.why == ""
    if config.activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    copy = load_causal_lm(POLICY, "float32")
    reference = None if config.lora.rank is not None else CompletionModel(copy, reading=examine(copy)).eval()
    return Learner(config, objective, module, engine_of(module, model, config), seed=3, total_steps=100,
                   reference=reference, **ranks)


def train_on_two(rank: int, world_size: int, case: str, zero_stage: int, packing: bool, folder: str) -> None:
    from actors.learners.zero import ZeroEngine

    algorithm, config = CASES[case]
    some = learner(algorithm, dataclasses.replace(config, zero_stage=zero_stage, packing=packing),
                   lambda module, model, config: ZeroEngine(module, model, config, torch.device("cpu")),
                   rank=rank, world_size=world_size)
    batches = scored()
    metrics = [some.update_policy(keys(batches), 0.05, batches) for _ in range(2)]
    found: list = [None] * world_size
    torch.distributed.all_gather_object(found, metrics)
    weights = {name: tensor.clone() for name, tensor in some._engine.each_whole_weight()}
    if rank == 0:
        torch.save(([values(merge(parts)) for parts in zip(*found, strict=True)], weights), f"{folder}/found.pt")
