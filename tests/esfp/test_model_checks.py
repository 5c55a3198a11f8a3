import dataclasses
import shutil

import pytest

from rlaif.config.checks import UserError
from rlaif.config.train import ExplainerConfig, ServerConfig
from rlaif.esfp.model_checks import check_context, check_reward_folder, check_slot_model, complete_explainer
from rlaif.esfp.reward_model import RewardModel
from rlaif.esfp.reward_spec import RewardSpec, read_spec, write_spec
from rlaif.esfp.slots import Slot, SlotTemplate
from rlaif.modeling.models import load_tokenizer, scratch_judge
from tests.conftest import SCRATCH


def test_what_the_config_says_of_the_explainer_goes_before_what_the_reward_folder_says(folders):
    spec = read_spec(folders.reward)
    given = ExplainerConfig(source="model", model=str(folders.causal), template="{prompt}? {completion}!",
                            max_tokens=7, temperature=0.5, num_samples=3)
    assert complete_explainer(given, spec, str(folders.reward)) == given
    left = dataclasses.replace(given, source=None, model=None, template=None)
    found = complete_explainer(left, spec, str(folders.reward))
    assert found == dataclasses.replace(given, model=str(folders.causal.resolve()), template=spec.explainer.template)


@pytest.mark.parametrize(
    ("given", "want"),
    [
        ({}, (33, 0.75, 4)), ({"max_tokens": 9}, (9, 0.75, 4)), ({"num_samples": 2}, (33, 0.75, 2)),
        ({"temperature": 0.25}, (33, 0.25, 4)),
        ({"temperature": 0.0}, (33, 0.0, 1)),       # equal explanations are one
    ],
)
def test_explanations_are_sampled_as_in_reward_training_unless_the_config_says_otherwise(folders, given, want):
    spec = read_spec(folders.reward)
    known = dataclasses.replace(spec.explainer, max_tokens=33, temperature=0.75, num_samples=4)
    spec = dataclasses.replace(spec, explainer=known)
    found = complete_explainer(ExplainerConfig(**given), spec, str(folders.reward))
    assert (found.max_tokens, found.temperature, found.num_samples) == want


def test_without_anybodys_word_explanations_are_greedy_and_short(folders):
    spec = dataclasses.replace(read_spec(folders.reward), explainer=None)
    given = ExplainerConfig(model=str(folders.causal), template="{prompt} {completion}")
    found = complete_explainer(given, spec, str(folders.reward))
    assert (found.max_tokens, found.temperature, found.num_samples) == (64, 0.0, 1)
    with pytest.raises(UserError, match=r"num_samples must be 1 at temperature 0, got 4"):
        complete_explainer(dataclasses.replace(given, num_samples=4), spec, str(folders.reward))


def test_principles_come_from_the_reward_folder_where_the_config_has_none(folders):
    known = dataclasses.replace(read_spec(folders.reward).explainer, principles="Be kind.",
                                template="{principles} {prompt} {completion}")
    spec = dataclasses.replace(read_spec(folders.reward), explainer=known)
    assert complete_explainer(ExplainerConfig(), spec, str(folders.reward)).principles == "Be kind."
    given = ExplainerConfig(principles="Be brief.")
    assert complete_explainer(given, spec, str(folders.reward)).principles == "Be brief."
    given = ExplainerConfig(template="{prompt} {completion}")
    with pytest.raises(UserError, match=r"explainer.template must have the field \{principles\}"):
        complete_explainer(given, spec, str(folders.reward))


def test_a_server_is_asked_by_name_and_no_folder_is_looked_for(folders):
    spec = read_spec(folders.reward)
    server = ServerConfig(url="http://127.0.0.1:1/v1")
    given = ExplainerConfig(source="server", model="some/model", server=server)
    found = complete_explainer(given, spec, str(folders.reward))
    assert found == dataclasses.replace(given, template=spec.explainer.template, max_tokens=64, temperature=0.0,
                                        num_samples=1)


@pytest.mark.parametrize("why", ["the config", "the folder", "the template"])
def test_there_is_no_explainer_where_none_is_wanted(folders, why):
    spec = read_spec(folders.reward)
    config = ExplainerConfig(source="none" if why == "the config" else None)
    if why == "the folder":
        spec = dataclasses.replace(spec, explainer=None)
    if why == "the template":
        spec = dataclasses.replace(spec, template=dataclasses.replace(spec.template, text="{completion} [verdict]"))
    assert complete_explainer(config, spec, str(folders.reward)).source == "none"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ExplainerConfig(source="model", template="{prompt} {completion}"),
         "explainer.model must be given, got nothing in the config or in '{folder}'"),
        (ExplainerConfig(model="some/model"),
         "explainer.template must be given, got nothing in the config or in '{folder}'"),
    ],
)
def test_half_an_explainer_is_asked_for_the_rest(folders, config, message):
    spec = dataclasses.replace(read_spec(folders.reward), explainer=None)
    with pytest.raises(UserError) as caught:
        complete_explainer(config, spec, str(folders.reward))
    assert str(caught.value) == message.replace("{folder}", str(folders.reward))


def test_a_template_longer_than_the_slot_model_reads_is_refused_before_it_is_loaded(folders, tmp_path):
    folder = tmp_path / "reward"
    shutil.copytree(folders.reward, folder)
    text = (folder / "reward.yaml").read_text()
    (folder / "reward.yaml").write_text(text.replace("max_tokens: 192", "max_tokens: 257"))
    with pytest.raises(UserError, match=r"max_tokens must be <= 256, the positions of the model, got 257"):
        check_reward_folder(str(folder))


def test_a_classifier_of_another_size_than_the_template_is_refused_before_it_is_loaded(folders, tmp_path):
    slot = Slot("verdict", [["good"], ["poor"]], [1.0, 0.0])
    template = SlotTemplate("{prompt} {completion}", [slot], 64, head="classes")
    tokenizer = load_tokenizer(str(folders.reward))
    model = scratch_judge(SCRATCH, tokenizer, 0, "classes", 2)
    RewardModel(model, tokenizer, RewardSpec(template)).save(tmp_path / "reward")
    assert check_reward_folder(str(tmp_path / "reward")).template == template
    third = dataclasses.replace(slot, classes=[["good"], ["fair"], ["poor"]], values=[1.0, 0.5, 0.0])
    write_spec(tmp_path / "reward", RewardSpec(dataclasses.replace(template, slots=[third])))
    with pytest.raises(UserError, match=r"num_labels of the model must be 3 with head classes, got 2"):
        check_reward_folder(str(tmp_path / "reward"))
    # An encoder to train gets a head of the template's size.
    check_slot_model(str(tmp_path / "reward"), dataclasses.replace(template, slots=[third]))


def test_a_context_up_to_the_models_own_is_accepted(folders):
    check_context(str(folders.causal), 256, "engine.max_model_len")
    with pytest.raises(UserError, match=r"engine.max_model_len must be at most the 256 tokens that .*, got 257"):
        check_context(str(folders.causal), 257, "engine.max_model_len")


def test_a_cache_is_the_same_file_from_every_folder(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = complete_explainer(ExplainerConfig(cache="cache.sqlite"), read_spec(folders.reward), str(folders.reward))
    assert found.cache == str(tmp_path / "cache.sqlite")
