import dataclasses

import pytest

from rlaif.config import (
    EngineConfig,
    EvaluationConfig,
    ExplainerConfig,
    ModelConfig,
    PromptsConfig,
    RewardConfig,
    TrainConfig,
    UserError,
)
from rlaif.preflight import check_train
from rlaif.reward_model import RewardModel
from rlaif.reward_spec import RewardSpec, read_spec
from rlaif.slots import Slot, SlotTemplate


@pytest.fixture
def config(folders):
    return TrainConfig(
        output_dir="out", policy=ModelConfig(str(folders.causal)), reward=RewardConfig(str(folders.reward)),
        prompts=PromptsConfig("scenes:prompts-train", "scenes:prompts-test", num_train=9, num_test=6),
        evaluation=EvaluationConfig(gold="scenes", num_prompts=4))


def test_what_was_checked_is_what_a_run_needs(config, folders):
    checked = check_train(config)
    assert [len(checked.train_rows), len(checked.test_rows)] == [9, 4]
    assert checked.train_rows[0].keys() == {"prompt", "prompt_ids", "source", "reference"}
    assert checked.explainer.model == str(folders.causal.resolve())
    assert checked.judge.reward == read_spec(folders.reward)
    assert checked.explainer.template == checked.judge.reward.explainer.template
    assert checked.explainer.source == "model"


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
    assert [row["prompt"] for row in check_train(config).train_rows] == ["a man and a woman"]


def test_room_for_the_prompt_is_what_the_completion_leaves(config):
    config.rollout = dataclasses.replace(config.rollout, max_tokens=60, engine=EngineConfig(max_model_len=64))
    with pytest.raises(UserError, match=r"prompts.train must fit into 4 tokens .*, got 9 longer ones, first row 0"):
        check_train(config)
