import dataclasses
import shutil

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
from rlaif.preflight import check_context, check_reward_folder, check_train, complete_explainer
from rlaif.reward_model import read_spec


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
    assert checked.reward == read_spec(folders.reward)
    assert checked.explainer.template == checked.reward.explanation_template


def test_what_the_config_says_of_the_explainer_goes_before_what_the_reward_folder_says(folders):
    spec = read_spec(folders.reward)
    given = ExplainerConfig(model=str(folders.causal), template="{prompt}? {completion}!", max_tokens=7)
    assert complete_explainer(given, spec, str(folders.reward)) == given
    left = dataclasses.replace(given, model=None, template=None)
    found = complete_explainer(left, spec, str(folders.reward))
    assert found == dataclasses.replace(given, model=str(folders.causal.resolve()), template=spec.explanation_template)


def test_an_explainer_that_nobody_names_is_asked_for(folders):
    spec = dataclasses.replace(read_spec(folders.reward), explainer=None)
    with pytest.raises(UserError, match=r"explainer.model must be given, got nothing in the config or in "):
        complete_explainer(ExplainerConfig(), spec, str(folders.reward))


def test_a_template_longer_than_the_slot_model_reads_is_refused_before_it_is_loaded(folders, tmp_path):
    folder = tmp_path / "reward"
    shutil.copytree(folders.reward, folder)
    text = (folder / "reward.yaml").read_text()
    (folder / "reward.yaml").write_text(text.replace("max_tokens: 192", "max_tokens: 257"))
    with pytest.raises(UserError, match=r"max_tokens must be <= 256, the positions of the model, got 257"):
        check_reward_folder(str(folder))


def test_a_context_up_to_the_models_own_is_accepted(folders):
    check_context(str(folders.causal), 256, "engine.max_model_len")
    with pytest.raises(UserError, match=r"engine.max_model_len must be at most the 256 tokens that .*, got 257"):
        check_context(str(folders.causal), 257, "engine.max_model_len")


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
