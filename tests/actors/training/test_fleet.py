import pytest

from actors.training.fleet import judge_role, learner_spec, roles
from rlaif.config.algorithm import AlgorithmConfig
from rlaif.config.prompts import PromptsConfig
from rlaif.config.reward_parts import RewardPartConfig
from rlaif.config.train import (
    ExplainerConfig,
    ModelConfig,
    PlacementConfig,
    RewardConfig,
    RoleConfig,
    RolloutConfig,
    TrainConfig,
)
from rlaif.rewards.plan import plan_rewards

OWN = {"model": "gold:scenes", "placement": {"num_actors": 2, "num_cpus": 0.5}}


@pytest.fixture
def config():
    return TrainConfig(
        output_dir="out", steps=5, seed=3, policy=ModelConfig("policy"), prompts=PromptsConfig("a", "b"),
        reward=RewardConfig("judge"), rollout=RolloutConfig(temperature=0.5, max_tokens=9),
        placement=PlacementConfig(slot=RoleConfig(num_cpus=0.75)),
        algorithm=AlgorithmConfig(num_epochs=2, num_minibatches=3))


def test_one_judge_needs_no_reward_functions(config):
    plan = plan_rewards(config.reward, [])
    assert list(roles(config, ExplainerConfig(source="model"), plan)) == ["rollout", "explainer", "slot", "learner"]
    assert list(roles(config, ExplainerConfig(source="none"), plan)) == ["rollout", "slot", "learner"]


def test_a_judge_of_its_own_has_a_place_of_its_own(config):
    plan = plan_rewards(config.reward, [RewardPartConfig(name="exact", options=OWN),
                                        RewardPartConfig(kind="length_penalty", options={"longest": 9})])
    found = roles(config, ExplainerConfig(source="none"), plan)
    assert list(found) == ["rollout", "slot", "judge_exact", "functions", "learner"]
    assert [judge_role(judge) for judge in plan.judges] == ["slot", "judge_exact"]
    assert found["judge_exact"] == RoleConfig(num_actors=2, num_cpus=0.5) and found["slot"].num_cpus == 0.75
    assert found["functions"].num_cpus == 0.25


def test_rules_alone_take_no_place_of_a_judge(config):
    plan = plan_rewards(RewardConfig(), [RewardPartConfig(kind="length_penalty", options={"longest": 9})])
    assert list(roles(config, ExplainerConfig(source="none"), plan)) == ["rollout", "functions", "learner"]


def test_learners_are_told_of_the_algorithm_and_the_rollouts(config):
    plan = plan_rewards(config.reward, [RewardPartConfig(kind="length_penalty", name="short", weight=0.5,
                                                         options={"longest": 9})])
    spec = learner_spec(config, plan)
    assert (spec.total_steps, spec.seed, spec.tokenizer) == (30, 3, "policy")
    assert spec.objective.algorithm == config.algorithm
    assert (spec.objective.temperature, spec.objective.max_tokens) == (0.5, 9)
    assert spec.objective.term_weights == {"esfp": 1.0, "short": 0.5}
