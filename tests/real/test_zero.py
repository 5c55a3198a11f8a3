"""One rank under DeepSpeed against plain torch: every stage, with a critic, adapters, layers computed again."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from rlaif.config.algorithm import AlgorithmConfig
from rlaif.config.checks import UserError
from rlaif.config.learner import CriticConfig, LearnerConfig, LoraConfig
from rlaif.learning.completion_model import CompletionModel, examine
from rlaif.learning.critic import Critic
from rlaif.learning.learner import Learner
from rlaif.learning.lora import add_lora, whole_weights
from rlaif.learning.objectives import PolicyObjective, PolicyOptions
from rlaif.metrics import values
from rlaif.modeling.models import load_causal_lm
from tests.helpers.ranks import TorchEngine
from tests.learning.test_learner import keys, scored, spoilt
from tests.real.conftest import START

POLICY = str(START / "policy")
PPO = AlgorithmConfig(advantage="gae", num_epochs=2, kl_coefficient=0.05)
GRPO = AlgorithmConfig(num_minibatches=2, kl_coefficient=0.05, entropy_coefficient=0.01)
RATE = 1e-3
CASES = {"grpo": (GRPO, LearnerConfig(learning_rate=RATE, micro_batch_tokens=40)),
         "recomputed": (GRPO, LearnerConfig(learning_rate=RATE, activation_checkpointing=True)),
         "adapters": (GRPO, LearnerConfig(learning_rate=RATE, micro_batch_tokens=40, lora=LoraConfig(rank=4))),
         "critic": (PPO, LearnerConfig(learning_rate=RATE, micro_batch_tokens=40,
                                       critic=CriticConfig("policy", learning_rate=RATE)))}


def learner(algorithm: AlgorithmConfig, config: LearnerConfig, engine_of) -> Learner:
    model = load_causal_lm(POLICY, "float32")
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
                   reference=reference)


def trained(some: Learner) -> list[dict[str, float]]:
    batches = scored()
    return [values(some.update_policy(keys(batches), 0.05, batches)) for _ in range(2)] + [values(some.drift(batches))]


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("case", CASES)
def test_an_update_is_that_of_plain_torch(case: str, zero_stage: int, distributed, tmp_path) -> None:
    from actors.learners.zero import ZeroEngine

    algorithm, config = CASES[case]
    plain = learner(algorithm, config, lambda module, *_: TorchEngine(module, RATE))
    want = trained(plain)
    config = dataclasses.replace(config, zero_stage=zero_stage)
    some = learner(algorithm, config, lambda module, model, config: ZeroEngine(
        module, model, config, torch.device("cpu")))
    got = trained(some)
    for mine, theirs in zip(got, want, strict=True):
        assert mine.keys() == theirs.keys()
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    weights = {weight.name: weight.merge(*weight.parts) for weight in whole_weights(plain._module.model)}
    whole = {name: tensor.clone() for name, tensor in some._engine.each_whole_weight()}
    assert some._engine.shapes() == [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in whole.items()]
    assert whole.keys() == weights.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(tensor, weights[name], atol=2e-4, rtol=0, msg=name)

    # A step that is no number is not taken, whatever holds the weights, and the next one is as if it had not been.
    bad = spoilt(scored(), 2, 1)
    with pytest.raises(UserError, match="must be finite, got nan at update"):
        some.update_policy(keys(bad), 0.05, bad)
    for name, tensor in some._engine.each_whole_weight():
        torch.testing.assert_close(tensor, whole[name], atol=1e-3 if algorithm.num_minibatches > 1 else 0.0, rtol=0)

    some._engine.save_state(str(tmp_path), {"num_steps": some.num_steps})
    assert some._engine.load_state(str(tmp_path)) == {"num_steps": some.num_steps}
