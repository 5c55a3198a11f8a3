import dataclasses
import functools
import re

import pytest

from rlaif.config.algorithm import AlgorithmConfig
from rlaif.config.checks import UserError
from rlaif.config.evaluation import EvaluationConfig, StopConfig
from rlaif.config.learner import CriticConfig, LoraConfig
from rlaif.config.prompts import PromptsConfig
from rlaif.config.reward_parts import RewardPartConfig
from rlaif.config.train import (
    EngineConfig,
    ExplainerConfig,
    ModelConfig,
    PlacementConfig,
    RewardConfig,
    RoleConfig,
    RolloutConfig,
    TrainConfig,
)
from rlaif.esfp.reward_model import RewardModel
from rlaif.esfp.reward_spec import RewardSpec, read_spec
from rlaif.esfp.slots import Slot, SlotTemplate
from rlaif.running.preflight import check_devices, check_train


@pytest.fixture
def config(folders):
    return TrainConfig(
        output_dir="out", policy=ModelConfig(str(folders.causal)), reward=RewardConfig(str(folders.reward)),
        prompts=PromptsConfig("scenes:prompts-train", "scenes:prompts-test", num_train=9, num_test=6),
        evaluation=EvaluationConfig(gold="scenes", num_prompts=4))


def test_what_was_checked_is_what_a_run_needs(config, folders):
    checked = check_train(config)
    assert [len(checked.train.rows), len(checked.test_rows)] == [9, 4]
    assert checked.train.rows[0].keys() == {"prompt", "prompt_ids", "source", "reference", "sample_weight"}
    assert checked.explainer.model == str(folders.causal.resolve())
    assert list(checked.judges) == ["esfp"] and checked.plan.is_plain
    assert checked.judges["esfp"].reward == read_spec(folders.reward)
    assert checked.explainer.template == checked.judges["esfp"].reward.explainer.template
    assert checked.explainer.source == "model"
    assert checked.class_names == ["verdict:yes", "verdict:no", "verdict:garbled"]
    assert checked.remarks == []


def test_parts_beside_the_judge_and_judges_of_their_own_are_found_by_name(config, folders):
    config.rewards = [RewardPartConfig(kind="length_penalty", name="short", options={"longest": 8}),
                      RewardPartConfig(name="exact", options={"model": "gold:scenes"})]
    checked = check_train(config)
    assert [part.name for part in checked.plan.parts] == ["esfp", "short", "exact"] and not checked.plan.is_plain
    assert {name: judge.kind for name, judge in checked.judges.items()} == {"esfp": "reward", "exact": "gold"}
    assert checked.explainer.source == "model", "of the judge that reads explanations"


def test_rules_alone_need_neither_judge_nor_explainer(config):
    config.reward, config.rewards = RewardConfig(), [RewardPartConfig(kind="regex", options={"pattern": "A .*"})]
    checked = check_train(config)
    assert (checked.judges, checked.class_names, checked.explainer.source) == ({}, [], "none")
    config.explainer = ExplainerConfig(source="model", model="m", template="{prompt}")
    with pytest.raises(UserError, match=r"^explainer.source must be null or none without a judge, got 'model'$"):
        check_train(config)


def test_a_rule_that_reads_references_asks_for_them(config):
    config.rewards = [RewardPartConfig(kind="exact_match")]
    with pytest.raises(UserError, match=r"^prompts.reference_column must be given with reward part exact_match of kind "
                                        r"exact_match, got null; "):
        check_train(config)
    config.prompts = dataclasses.replace(config.prompts, reference_column="reference")
    assert [part.name for part in check_train(config).plan.functions] == ["exact_match"]


def test_a_judge_of_a_part_that_is_not_there_is_named_with_its_part(config, tmp_path):
    config.rewards = [RewardPartConfig(name="second", options={"model": str(tmp_path / "none")})]
    with pytest.raises(UserError, match=r"^reward.model must be .* which is not there \(in reward part second\)$"):
        check_train(config)


def test_a_part_that_compares_with_the_whole_step_does_not_go_with_rounds_of_rollouts(config):
    config.algorithm = AlgorithmConfig(dynamic_sampling="resample")
    config.rewards = [RewardPartConfig(kind="length_penalty", name="short", options={"longest": 8}, transform="rank",
                                       over="batch")]
    with pytest.raises(UserError, match=r"^over must be group with algorithm.dynamic_sampling = resample, got batch in "
                                        r"reward part short: a step is rolled out in several rounds$"):
        check_train(config)


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        ({"select_by": "golden"}, "evaluation.select_by must go by a figure that is measured, got 'golden'; there are"),
        ({"select_by": "part_esfp"}, "evaluation.select_by must go by a figure that is measured, got 'part_esfp'; "),
        ({"every": 2, "stop": StopConfig(kl_limit=1.0)}, "evaluation.stop.kl_limit must go by a figure that is "
                                                         "measured, got 'kl'; set algorithm.kl_coefficient above 0"),
        ({"select_by": "greedy_kl", "modes": ["greedy"]}, "evaluation.select_by must go by a figure that is measured, "
                                                          "got 'greedy_kl'; there are "),
        ({"every": 2, "stop": StopConfig(divergence=1, proxy="part_length")},
         "evaluation.stop.proxy must go by a figure that is measured, got 'part_length'; there are "),
    ],
)
def test_what_evaluation_goes_by_must_be_measured(config, evaluation, message):
    config.evaluation = EvaluationConfig(gold="scenes", num_prompts=4, **evaluation)
    config.algorithm = AlgorithmConfig(kl_coefficient=0.0)
    with pytest.raises(UserError) as caught:
        check_train(config)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("figure", ["reward", "gold", "fluent", "kl", "part_esfp", "part_short", "identical_share"])
def test_evaluation_may_go_by_any_figure_of_the_run(config, figure):
    config.rewards = [RewardPartConfig(kind="length_penalty", name="short", options={"longest": 8})]
    config.evaluation = EvaluationConfig(gold="scenes", num_prompts=4, select_by=figure)
    assert check_train(config).plan.weights == {"esfp": 1.0, "short": 1.0}


def test_rows_that_were_dropped_are_told(config, tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a man and a woman"}\n{"prompt": ""}\n')
    config.prompts = PromptsConfig(str(tmp_path / "prompts.jsonl"), str(tmp_path / "prompts.jsonl"), max_bad_rows=1)
    config.evaluation = EvaluationConfig()
    assert check_train(config).remarks == ["prompts.train: 1 bad rows dropped", "prompts.test: 1 bad rows dropped"]


def test_explanations_of_a_file_cannot_explain_rollouts(config):
    config.explainer = ExplainerConfig(source="column")
    with pytest.raises(UserError, match=r"^explainer.source must be model, server or none in reinforcement learning, "
                                        r"got 'column': rollouts are new texts$"):
        check_train(config)


def test_references_are_asked_for_where_they_are_the_other_side(config, folders, tmp_path):
    slot = Slot("better", [["yes"], ["no"]], [1.0, 0.0], kind="pairwise")
    template = SlotTemplate("{prompt} {completion} {other} The answer is [better].", [slot], 192)
    old = RewardModel.load(folders.reward)
    RewardModel(old.model, old.tokenizer, RewardSpec(template)).save(tmp_path / "pairwise")
    config.reward = RewardConfig(str(tmp_path / "pairwise"), compare="reference")
    with pytest.raises(UserError, match=r"^prompts.reference_column must be given with reward.compare = reference"):
        check_train(config)
    config.reward = dataclasses.replace(config.reward, compare="group")
    assert check_train(config).explainer.source == "none"


def test_prompts_of_another_world_need_no_gold_judge(config, tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a man and a woman"}\n')
    config.prompts = PromptsConfig(str(tmp_path / "prompts.jsonl"), str(tmp_path / "prompts.jsonl"))
    with pytest.raises(UserError, match=r"prompts.train must suit evaluation.gold = scenes, got row 0: "):
        check_train(config)
    config.evaluation.gold = None
    assert [row["prompt"] for row in check_train(config).train.rows] == ["a man and a woman"]


def test_room_for_the_prompt_is_what_the_completion_leaves(config):
    config.rollout = dataclasses.replace(config.rollout, max_tokens=60, engine=EngineConfig(max_model_len=64))
    with pytest.raises(UserError, match=r"prompts.train must fit into 4 tokens .*, got 9 longer ones, first row 0"):
        check_train(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rollout.group_size": 1}, "rollout.group_size must be > 1 with algorithm.advantage = grpo, got 1: "),
        ({"algorithm": {"overlong": "penalty", "overlong_buffer": 60}},
         "algorithm.overlong_buffer must be at most rollout.max_tokens = "),
        ({"algorithm": {"parts": "separate"}}, "algorithm.parts must be together with a single part of the reward, "),
        ({"learner": {"critic": CriticConfig(model="policy")}},
         "learner.critic must be left out with algorithm.advantage = grpo, got "),
        ({"learner": {"critic": CriticConfig(model="no/such/critic")}, "algorithm": {"advantage": "gae"}},
         "learner.critic.model must be a model folder, got 'no/such/critic', which is not there"),
        ({"learner": {"lora": LoraConfig(rank=2, dropout=0.1)}},
         "learner.lora.dropout must be 0 in reinforcement learning, got 0.1: "),
        ({"learner": {"warmup_steps": 100}},
         "learner.warmup_steps must be below the 100 optimizer steps of the run, got 100: the rate would be reached "),
        ({"learner": {"warmup_steps": 401}, "algorithm": {"num_epochs": 2, "num_minibatches": 2}},
         "learner.warmup_steps must be below the 400 optimizer steps of the run, got 401: the rate would be reached "),
        ({"learner": {"lora": LoraConfig(rank=2, target_modules=["q_proj", "query"])}},
         "learner.lora.target_modules must be ends of names of linear layers, such as "),
    ],
)
def test_updates_that_do_not_fit_rollouts_rewards_or_models_are_refused(config, changes, message):
    if "rollout.group_size" in changes:
        config.rollout = dataclasses.replace(config.rollout, group_size=changes["rollout.group_size"])
    config.algorithm = AlgorithmConfig(**changes.get("algorithm", {}))
    config.learner = dataclasses.replace(config.learner, **changes.get("learner", {}))
    with pytest.raises(UserError) as caught:
        check_train(config)
    assert str(caught.value).startswith(message)


def test_rollouts_alone_are_not_asked_for_a_learner_that_fits(config):
    config.mode, config.learner = "rollout", dataclasses.replace(config.learner, warmup_steps=100)
    check_train(config)


def shared(**changed):
    """Rollouts and learners that share GPUs in turn; `changed` by the dotted key, dots as two underscores."""
    config = TrainConfig(
        rollout=RolloutConfig(engine=EngineConfig(sleeps=True)),
        placement=PlacementConfig(rollout=RoleConfig(num_actors=2, num_gpus=0.5, beside="learner"),
                                  learner=RoleConfig(num_actors=2, num_gpus=0.5)))
    for key, value in changed.items():
        *path, name = key.split("__")
        setattr(functools.reduce(getattr, path, config), name, value)
    return config


def test_engines_and_learners_may_share_gpus_in_turn():
    check_devices(shared())


@pytest.mark.parametrize(("changed", "message"), [
    ({"rollout__engine__sleeps": False, "placement__rollout__beside": None},
     "placement.learner.num_gpus must be 1 for each of 2 ranks, NCCL wants no two on a GPU, got 0.5"),
    ({"placement__rollout__num_gpus": 0.0, "placement__learner__num_gpus": 1.0},
     "rollout.engine.sleeps must be false without GPUs, got true with placement.rollout.num_gpus = 0"),
    ({"pipeline__max_staleness": 1, "pipeline__reproducible": False},
     "rollout.engine.sleeps must be false with pipeline.max_staleness = 1, got true"),
    ({"placement__rollout__beside": None, "placement__learner__num_gpus": 1.0},
     "rollout.engine.sleeps must be false unless rollouts and learners share GPUs, got true; set "
     "placement.rollout.beside=learner"),
    ({"explainer__engine__sleeps": True}, "explainer.engine.sleeps must be false, got true: only rollout engines"),
    ({"reward__engine__sleeps": True}, "reward.engine.sleeps must be false, got true: only rollout engines sleep"),
    ({"placement__rollout__num_gpus": 0.75}, "placement.rollout.num_gpus must share one GPU with learner"),
])
def test_sharing_that_would_fail_or_do_nothing_is_refused(changed, message):
    with pytest.raises(UserError, match=re.escape(message)):
        check_devices(shared(**changed))
