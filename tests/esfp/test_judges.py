import dataclasses
import json
import shutil

import pytest
import torch

from actors.fitting import evaluating, explaining, fitting
from rlaif.config.checks import UserError
from rlaif.config.files import load
from rlaif.config.reward import EvaluateConfig, GenerativeConfig, JudgeConfig, SlotConfig, TemplateConfig
from rlaif.config.train import ExplainerConfig, RewardConfig
from rlaif.esfp.encoding import compile_template, encode
from rlaif.esfp.generative_spec import GenerativeSpec, JudgeQuestion
from rlaif.esfp.judges import explainer_of, find_judge, gold_scored, gold_version, load_encoder, read_judge, write_judge
from rlaif.esfp.reward_model import Texts
from rlaif.esfp.slots import Slot
from rlaif.esfp.templates import slot_template
from rlaif.modeling.models import load_tokenizer, scratch_judge, word_tokenizer
from tests.conftest import REASON, SCRATCH, WORDS

PROMPT = "Say something that must be true: A girl in an orange top holds an axe in a room."
TRUE, FALSE = "A girl in an orange top holds an axe.", "A child paints a lily."
SPEC = GenerativeSpec(JudgeQuestion("{prompt} Answer: {completion} The answer is "),
                      Slot("verdict", [["yes"], ["no"]], [1.0, 0.0]), "../causal", max_tokens=64)
GENERATIVE = GenerativeConfig(text="{prompt} Answer: {completion} The answer is ", max_tokens=64)


@pytest.fixture(scope="session")
def scalar(tmp_path_factory):
    """A scalar reward model as it is published: no reward.yaml."""
    folder = tmp_path_factory.mktemp("judges") / "scalar"
    tokenizer = word_tokenizer([WORDS], masked=True)
    scratch_judge(dataclasses.replace(SCRATCH, max_positions=512), tokenizer, 1, "scalar", 1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def asking(tmp_path, folders):
    """A folder with judge.yaml, beside the model it asks."""
    shutil.copytree(folders.causal, tmp_path / "causal")
    write_judge(tmp_path / "asking", SPEC)
    return tmp_path / "asking"


def config(model, **changes):
    return JudgeConfig(reward=RewardConfig(model=str(model)), **changes)


# --- what is found


def test_a_folder_with_reward_yaml_is_a_reward_model(folders):
    judge = find_judge(config(folders.reward))
    assert (judge.kind, judge.model, judge.template.head) == ("reward", str(folders.reward), "slot")
    assert judge.reward.explainer.template == REASON


def test_a_model_without_reward_yaml_is_read_by_a_scalar_head_as_its_tokenizer_reads_two_texts(scalar):
    judge = find_judge(config(scalar))
    assert (judge.kind, judge.template.head) == ("encoder", "scalar")
    tokenizer = load_tokenizer(str(scalar))
    ids = encode(compile_template(judge.template, tokenizer), [PROMPT], [TRUE], None).input_ids[0]
    assert ids == tokenizer(PROMPT, TRUE)["input_ids"]
    model = load_encoder(judge, "float32", "cpu")
    rewards = model.score(Texts([PROMPT] * 2, [TRUE, FALSE]), max_tokens_per_batch=1000).reward
    with torch.no_grad():
        expected = [model.model(input_ids=torch.tensor([tokenizer(PROMPT, text)["input_ids"]])).logits.item()
                    for text in (TRUE, FALSE)]
    assert rewards.tolist() == pytest.approx(expected, abs=1e-5) and expected[0] != expected[1]


def test_a_template_makes_a_judge_of_any_encoder(folders, tmp_path):
    shutil.copytree(folders.reward, tmp_path / "encoder")
    (tmp_path / "encoder" / "reward.yaml").unlink()
    template = TemplateConfig(text="{prompt} {completion} The answer is [verdict].", max_tokens=128,
                              slots=[SlotConfig(name="verdict", classes=[["yes"], ["no"]])])
    judge = find_judge(config(tmp_path / "encoder", template=template))
    assert (judge.kind, judge.template) == ("encoder", slot_template(template))
    scored = load_encoder(judge, "float32", "cpu").score(Texts([PROMPT], [TRUE]), max_tokens_per_batch=1000)
    assert scored.probabilities.shape == (1, 1, 2)


def test_a_folder_with_judge_yaml_is_a_generative_judge_whose_model_is_seen_from_there(asking):
    judge = find_judge(config(asking))
    assert (judge.kind, judge.model) == ("generative", str(asking.parent / "causal"))
    assert judge.generative == dataclasses.replace(SPEC, model=judge.model)
    assert judge.template.slots == [SPEC.slot] and not judge.template.reads_explanations


def test_a_question_in_the_configuration_makes_a_generative_judge_of_a_causal_model(folders, asking):
    judge = find_judge(config(folders.causal, generative=GENERATIVE))
    assert judge.generative == dataclasses.replace(SPEC, model=str(folders.causal))


def test_a_generative_judge_says_of_itself_what_it_reads(folders):
    pairwise = SlotConfig(name="better", kind="pairwise", classes=[["yes"], ["no"]])
    asked = GenerativeConfig(text="{explanation} A: {completion} {other} The answer is ", slot=pairwise, max_tokens=64)
    template = find_judge(config(folders.causal, generative=asked)).template
    assert template.is_pairwise and template.reads_explanations and template.slots[0].values == [1.0, 0.0]


@pytest.mark.parametrize("text", ["${{oc.env:HOME}} {completion} answer: ", "{completion} \u2028 'yes': [no] - "])
def test_judge_yaml_keeps_every_text(tmp_path, text):
    spec = dataclasses.replace(SPEC, question=JudgeQuestion(text), prior=[0.5, -0.25], model="some/name")
    write_judge(tmp_path / "new", spec)
    assert read_judge(tmp_path / "new") == spec


def test_the_gold_judge_says_yes_no_or_garbled_with_certainty():
    judge = find_judge(config("gold:scenes"))
    assert (judge.kind, judge.model) == ("gold", "scenes")
    scored = gold_scored("scenes", Texts([PROMPT] * 3, [TRUE, FALSE, "holds axe girl"]))
    assert scored.probabilities.tolist() == [[[1, 0, 0]], [[0, 1, 0]], [[0, 0, 1]]]
    assert scored.reward.tolist() == [1, 0, 0] and scored.entropy.tolist() == [[0], [0], [0]]
    assert [slot.classes for slot in judge.template.slots] == [[["yes"], ["no"], ["garbled"]]]
    assert len(gold_version("scenes")) == 16 and gold_scored("scenes", Texts([], [])).reward.shape == (0,)


# --- who explains


def test_a_reward_folder_brings_its_explainer_and_another_may_be_named(folders, tmp_path):
    judge = find_judge(config(folders.reward))
    own = explainer_of(judge, ExplainerConfig())
    assert (own.source, own.model, own.template) == ("model", str(folders.causal), REASON)
    assert explainer_of(judge, ExplainerConfig(template="{prompt} {completion}")).template == "{prompt} {completion}"
    assert explainer_of(judge, ExplainerConfig(source="none")).source == "none"
    assert explainer_of(judge, ExplainerConfig(source="column")).source == "column"


def test_a_judge_that_reads_no_explanations_is_given_none(scalar):
    judge = find_judge(config(scalar))
    assert explainer_of(judge, ExplainerConfig(model="some/name")).source == "none"
    with pytest.raises(UserError, match=r"^judge\.explainer\.source must be null or none for a judge that reads no "):
        explainer_of(judge, ExplainerConfig(source="column"), "judge.")


def test_an_explainer_that_cannot_explain_is_named_by_its_key(folders):
    asked = GenerativeConfig(text="{completion} {explanation} The answer is ", max_tokens=64)
    judge = find_judge(config(folders.causal, generative=asked))
    assert explainer_of(judge, ExplainerConfig()).source == "none"
    with pytest.raises(UserError, match=r"^judge\.explainer\.template must be given"):
        explainer_of(judge, ExplainerConfig(model=str(folders.causal)), "judge.")
    with pytest.raises(UserError, match=r"^judge\.explainer\.model must be a model folder, got './nothing'"):
        explainer_of(judge, ExplainerConfig(model="./nothing", template=REASON), "judge.")


# --- what is refused


def refused(judge_config):
    with pytest.raises(ValueError) as caught:
        find_judge(judge_config, "judge.")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_gold_judge_that_is_not_there_is_named():
    assert refused(config("gold:world")) == "judge.reward.model must name one of scenes after 'gold:', got 'world'"


def test_a_folder_that_is_no_judge_is_named(tmp_path, folders, asking):
    assert refused(config("./nothing")) == (
        "judge.reward.model must be a model folder, got './nothing', which is not there")
    assert refused(config(tmp_path)).startswith(
        "judge.reward.model must hold reward.yaml, judge.yaml or a model with config.json, got folder ")
    shutil.copytree(folders.reward, tmp_path / "both")
    shutil.copy(asking / "judge.yaml", tmp_path / "both")
    assert refused(config(tmp_path / "both")).startswith("judge.reward.model must hold reward.yaml or judge.yaml, got ")


def test_a_question_beside_a_folder_that_has_one_is_refused(folders, asking):
    for folder, name in ((folders.reward, "reward.yaml"), (asking, "judge.yaml")):
        assert refused(config(folder, generative=GENERATIVE)).startswith(
            f"judge.generative.text must be null with a folder that has {name}, got ")


def test_an_encoder_without_a_trained_head_is_refused(folders, scalar, tmp_path):
    """Transformers would draw a head and warn."""
    folder = tmp_path / "headless"
    shutil.copytree(folders.reward, folder)
    (folder / "reward.yaml").unlink()
    assert refused(config(folder)).startswith("num_labels of the model must be 1 with head scalar, got 3; ")
    content = json.loads((folder / "config.json").read_text())
    content |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    (folder / "config.json").write_text(json.dumps(content))
    assert refused(config(folder)).startswith("weights of the model must hold its head, got none named classifier.")
    assert "has no reward.yaml, so judge.template says what it reads" in refused(config(folder))


def test_a_template_longer_than_the_encoder_is_refused(scalar):
    template = TemplateConfig(text="{prompt}{sep}{completion}", head="scalar", max_tokens=513)
    assert "513" in refused(config(scalar, template=template))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("format: 2\n", "format in {path} must be 1, got another; see rlaif.esfp.judges"),
        ("- 1\n", "format in {path} must be 1, got another; see rlaif.esfp.judges"),
        ("a: [\n", "{path} must be YAML, got while parsing"),
        ("format: 1\nmodel: x\n", "generative judge must have the fields of GenerativeSpec, got a misfit: 'question'"),
    ],
)
def test_a_judge_yaml_that_cannot_be_read_is_named(tmp_path, content, message):
    path = tmp_path / "judge.yaml"
    path.write_text(content)
    assert refused(config(tmp_path)).startswith(message.replace("{path}", str(path)))


def test_a_causal_model_that_cannot_answer_is_refused(folders):
    def with_(**changes):
        return config(folders.causal, generative=dataclasses.replace(GENERATIVE, **changes))

    wrong = SlotConfig(name="verdict", classes=[["yes"], ["zebra"]])
    assert refused(with_(slot=wrong)).startswith("label word 'zebra' of slot verdict must be one token after ")
    assert refused(with_(max_tokens=256)).startswith(
        "max_tokens and max_reasoning_tokens must leave the verdict a place in the 256 tokens that ")
    assert refused(with_(text="{prompt}")) == (
        "text must have the field {completion}, got '{prompt}'; add it (under judge.generative)")
    assert refused(config("./nothing", generative=GENERATIVE)).startswith("judge.reward.model must be a model folder")


# --- the launcher


def evaluation(tmp_path, folders, text="", **overrides):
    path = tmp_path / "evaluate.yaml"
    path.write_text(f"output_dir: {tmp_path}/out\njudge: {{reward: {{model: {folders.reward}}}}}\n"
                    f"data: [{{path: 'scenes:judged-test', num_rows: 4}}]\n{text}")
    return load(EvaluateConfig, path, [f"{name.replace('__', '.')}={value}" for name, value in overrides.items()])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data": "[{path: 'scenes:judged-test', kind: pairs}]"}, "data[0].path must have the column 'chosen', got "),
        ({"data": "[{path: nothing.jsonl}]"}, "data[0].path must be a file or scenes:<table>, got 'nothing.jsonl'"),
        ({"judge__reward__model": "gold:scenes", "data": "[{path: PROSE}]"},
         "data must suit judge.reward.model = gold:scenes, got row 0: prompt must be an instruction and a sentence"),
        ({"judge__explainer__source": "column"}, "data[0] must have the column 'explanation' with explainer.source = "),
        ({"judge__reward__model": "./nothing"}, "judge.reward.model must be a model folder, got './nothing'"),
    ],
)
def test_a_mistake_is_told_before_anything_starts(tmp_path, folders, monkeypatch, overrides, message):
    monkeypatch.setattr(fitting, "connect", lambda: pytest.fail("Ray was asked"))
    (tmp_path / "prose.jsonl").write_text('{"prompt": "Say so.", "completion": "So.", "label": "yes"}\n')
    overrides = {name: value.replace("PROSE", f"'{tmp_path}/prose.jsonl'") for name, value in overrides.items()}
    with pytest.raises(ValueError) as caught:
        evaluating.run_evaluation(evaluation(tmp_path, folders, **overrides))
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("override", [{"batch_size": 0}, {"num_bootstraps": 0}, {"pair_temperature": 0},
                                      {"num_edited_rows": 0}, {"seed": -1}, {"data": "[]"}])
def test_a_setting_out_of_range_is_named(tmp_path, folders, override):
    with pytest.raises(UserError, match=f"^{next(iter(override))} must be "):
        evaluation(tmp_path, folders, **override)


def test_rows_that_changed_since_they_were_explained_are_refused(tmp_path, folders):
    settings = evaluation(tmp_path, folders)
    template = find_judge(settings.judge).template
    rows = evaluating.judged_rows(settings.data[0], template, "data[0]")
    other = evaluating.judged_rows(dataclasses.replace(settings.data[0], seed=1), template, "data[0]")
    explaining.refuse_other_rows({"judged": rows}, {"judged": rows})
    with pytest.raises(UserError, match="data must be the rows that output_dir's explanations are of, got another "):
        explaining.refuse_other_rows({"judged": rows}, {"judged": other})
