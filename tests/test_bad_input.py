"""A mistake of the user's ends in exit code 2 and one line that names it, before Ray starts or a folder is made."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import ray
import yaml

from actors.fitting import dpo, evaluating, fitting, reward_training, sft
from actors.training import run
from rlaif import scenes
from rlaif.config.dpo import DpoConfig
from rlaif.config.reward import EvaluateConfig, RewardTrainConfig
from rlaif.config.train import SftConfig, TrainConfig
from rlaif.modeling.models import load_tokenizer
from rlaif.running.cli import main
from tests.conftest import REASON

ROOT = Path(__file__).parent.parent
LAUNCHERS = {"train": (TrainConfig, run.run_training), "sft": (SftConfig, sft.run_sft),
             "dpo": (DpoConfig, dpo.run_dpo),
             "train_reward": (RewardTrainConfig, reward_training.run_reward_training),
             "evaluate": (EvaluateConfig, evaluating.run_evaluation)}


class RayWasAsked(Exception):
    """The checks let a run through."""


def write_rows(path, table, num_rows=6, **changes):
    rows = [row | changes for row in scenes.rows(table, seed=0, num_rows=num_rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


class Command:
    """A launcher with a configuration that is right, but for what a test changes."""

    def __init__(self, folder, folders, capfd):
        self.folder, self._capfd = folder, capfd
        self.causal, self.reward = folder / "causal", folder / "reward"
        shutil.copytree(folders.causal, self.causal)
        shutil.copytree(folders.reward, self.reward)
        self.prompts = folder / "prompts.jsonl"
        write_rows(self.prompts, "prompts-train")
        self.judged = folder / "judged.jsonl"
        write_rows(self.judged, "judged-train")
        slot = {"name": "verdict", "classes": [["yes"], ["no"], ["garbled"]], "values": [1, 0, 0]}
        self.configs = {
            "train": {"policy": {"model": str(self.causal)}, "reward": {"model": str(self.reward)},
                      "prompts": {"train": str(self.prompts), "test": "scenes:prompts-test", "num_test": 4},
                      "evaluation": {"gold": "scenes"}},
            "sft": {"data": {"train": write_rows(folder / "rows.jsonl", "policy-train"), "dev": "scenes:policy-dev",
                             "num_dev": 4}},
            "dpo": {"policy": {"model": str(self.causal)}, "max_tokens": 200,
                    "data": {"train": write_rows(folder / "pairs.jsonl", "pairs-train"), "dev": "scenes:pairs-dev",
                             "num_dev": 4}},
            "train_reward": {"data": {"train": [{"path": str(self.judged)}],
                                      "dev": [{"path": "scenes:judged-dev", "num_rows": 4}]},
                             "explainer": {"model": str(self.causal), "template": REASON},
                             "template": {"slots": [slot]}},
            "evaluate": {"data": [{"path": str(self.judged)}], "judge": {"reward": {"model": str(self.reward)}}},
        }

    def written(self, launcher):
        path = self.folder / f"{launcher}.yaml"
        path.write_text(yaml.safe_dump(self.configs[launcher] | {"output_dir": str(self.folder / "out")}))
        return str(path)

    def __call__(self, launcher, *overrides, config=None):
        """Exit code and standard error of the launcher, run in this process."""
        kind, body = LAUNCHERS[launcher]
        arguments = [f"launch/{launcher}.py", config or self.written(launcher), *overrides]
        self._capfd.readouterr()
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            patch.setattr(sys, "argv", arguments)
            patch.setattr(os, "environ", dict(os.environ))
            code = main(kind, "", body)
        printed, complained = self._capfd.readouterr()
        assert printed == ""
        return code, complained

    def refused(self, launcher, *overrides, config=None):
        """The one line that a refusal comes to."""
        code, complained = self(launcher, *overrides, config=config)
        assert code == 2
        return self.checked(complained)

    def checked(self, complained):
        assert complained.endswith("\n") and complained.count("\n") == 1, complained
        assert complained.startswith("error: ")
        assert not (self.folder / "out").exists(), "a folder was made"
        assert not ray.is_initialized()
        return complained.removeprefix("error: ").rstrip("\n")


@pytest.fixture
def command(tmp_path, folders, capfd, monkeypatch):
    def connect(*_):
        raise RayWasAsked

    for module in (run, fitting):
        monkeypatch.setattr(module, "connect", connect)
    return Command(tmp_path, folders, capfd)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_configuration_that_the_other_tests_spoil_is_right(command, launcher):
    with pytest.raises(RayWasAsked):
        command(launcher)
    assert not (command.folder / "out").exists()


# --- the command line and the configuration


@pytest.mark.parametrize(
    ("launcher", "override", "message"),
    [
        ("train", "stepz=3", "stepz must be a known key, got an unknown one; did you mean steps?"),
        ("train", "rollout.engine.max_model_length=3", "rollout.engine.max_model_length must be a known key, got an "
                                                       "unknown one; did you mean rollout.engine.max_model_len?"),
        ("sft", "learner.learning_rat=1", "learner.learning_rat must be a known key, got an unknown one; did you mean "
                                          "learner.learning_rate?"),
        ("train", "rollout.group_size=eight", "rollout.group_size must be a whole number, got 'eight'"),
        ("train_reward", "data.dev=[{path: a, num_rows: some}]", "data.dev[0].num_rows must be a whole number or null, "
                                                                 "got 'some'"),
        ("train_reward", "data.train=[]", "data.train must be a list of data sets, one at least, got []"),
        ("train_reward", "data.train=a.jsonl", "data.train must be a list[JudgedDataConfig], got 'a.jsonl'"),
        ("train_reward", "template.slots=[{name: v, kind: likert}]", "template.slots[0].kind must be one of verdict, "),
        ("train_reward", "template.slots=[]", "template.slots must name at least one slot, got none"),
        ("train_reward", "template.head=scalar", "slots must be 0 with head scalar, got 1; change one of the two "),
        ("train_reward", "template.max_tokens=257", "template.max_tokens must be at most slot_model.scratch."),
        ("train_reward", "template.max_tokens=6", "max_tokens must be >= 7, the template without its fields, got 6"),
        ("train_reward", "loss.pairs=ordinal", "template must have one ordinal slot with loss.pairs = ordinal, got 0"),
        ("train_reward", "loss.flood_radius=1", "template must have an ordinal slot with loss.flood_radius = 1, got "),
        ("train_reward", "explainer.template=null", "explainer.template must be given with explainer.source = model"),
        ("train_reward", "explainer.template='{prompt}?'", "explainer.template must have the field {completion}, got "),
        ("train_reward", "explainer.source=server", "explainer.server.url must be given with source: server, got None"),
        ("train", "explainer.source=column", "explainer.source must be model, server or none in reinforcement "),
        ("evaluate", "judge.reward.model=gold:none", "judge.reward.model must name one of scenes after 'gold:', got "),
        ("train", "learner.learning_rate=-1", "learner.learning_rate must be > 0, got -1.0"),
        ("sft", "placement.num_actors=0", "placement.num_actors must be > 0, got 0"),
        ("train", "algorithm.advantage=grpoo", "algorithm.advantage must be one of grpo, dr_grpo, rloo, reinforce_"),
        ("train", "algorithm.kl_estimator=k4", "algorithm.kl_estimator must be one of k1, k2, k3, got 'k4'"),
        ("train", "sync.backend=nccl", "sync.backend must be shared_memory or gloo where rollouts or learners have"),
        ("train", "policy.model=null", "policy.model must be a Hugging Face name or folder, got null"),
        ("train", "rollout.engine.max_model_len=300", "rollout.engine.max_model_len must be at most the 256 tokens "),
        ("sft", "max_tokens=300", "max_tokens must be at most policy.scratch.max_positions 256, got 300"),
        ("sft", "chat.wrap_prompts=true", "policy.model must name a chat model with messages_column or chat.wrap_"),
        ("dpo", "max_tokens=300", "max_tokens must be at most the 256 tokens that "),
        ("dpo", "max_tokens=20", "data.train must fit into max_tokens = 20, got 6 longer rows, first row 0 with "),
        ("dpo", "policy.model=null", "policy.model must be a Hugging Face name or folder, got null: preferences are "),
        ("dpo", "rejected_column=worse", "data.train must have the column 'worse', got ['chosen', 'prompt', "),
        ("dpo", "chat.wrap_prompts=true", "tokenizer must have a chat template for the messages of data.train, got "),
        ("sft", "learner.critic.model=policy", "learner.critic must be left out in supervised training, "),
        ("dpo", "learner.critic.model=policy", "learner.critic must be left out in preference training, "),
        ("train_reward", "learner.critic.learning_rate=0.1", "learner.critic must be left out in reward training, "),
        ("train_reward", "learner.lora.rank=2", "learner.lora.rank must be null for a reward model, got 2"),
        ("sft", "learner.lora.rank=2", "learner.lora.rank must be null without policy.model, got 2: what "),
        ("dpo", "learner.lora={rank: 2, dropout: 0.1}", "learner.lora.dropout must be 0 in preference training, got "),
        ("dpo", "learner.lora={rank: 2, target_modules: [query]}", "learner.lora.target_modules must be ends of "),
        ("train", "learner.adam_learning_rate=0.1", "learner.adam_learning_rate must be null unless optimizer is muon"),
        ("train", "learner.warmup_steps=100", "learner.warmup_steps must be below the 100 optimizer steps of the run"),
        ("sft", "learner.warmup_steps=1000", "learner.warmup_steps must be below the 1000 optimizer steps of the run"),
        ("dpo", "learner.warmup_steps=501", "learner.warmup_steps must be below the 500 optimizer steps of the run, "),
        ("train_reward", "learner.warmup_steps=1001", "learner.warmup_steps must be below the 1000 optimizer steps "),
        ("train", "rewards=[{kind: function, function: 'no_such:f'}]", "reward part function: function must be "),
        ("train", "rewards=[{kind: bleu}]", "prompts.reference_column must be given with reward part bleu of kind "),
        ("train", "rewards=[{kind: bleu, weigth: 1}]", "rewards[0].weigth must be a known key, got an unknown one; "),
        ("train", "evaluation.export=best", "evaluation.select_by must be given with export = best, got null; "),
        ("train", "evaluation.stop.patience=0", "evaluation.stop.patience must be > 0 or null, got 0"),
        ("sft", "input_template='{prompt} {note}'", "data.train must have the column 'note', got ['completion', "),
        ("train", "seed", "override must be key=value, got 'seed'"),
        ("sft", "input_template={prompt}: {note}", "override must be key=value with a value in YAML, got "),
    ],
)
def test_a_setting_that_cannot_be_is_named_with_its_value(command, launcher, override, message):
    assert command.refused(launcher, override).startswith(message)


def test_adapters_of_a_supervised_training_are_looked_up_in_its_model(command):
    model = f"policy.model={command.causal}"
    assert command.refused("sft", model, "learner.lora={rank: 2, target_modules: [query]}").startswith(
        "learner.lora.target_modules must be ends of names of linear layers, such as ")
    with pytest.raises(RayWasAsked):        # where nothing is compared with a reference, dropout may be
        command("sft", model, "learner.lora={rank: 2, dropout: 0.1, target_modules: [q_proj]}")


def test_a_configuration_that_is_not_there_is_named(command):
    assert command.refused("train", config="configs/nothing.yaml") == (
        "config must be a YAML file, got 'configs/nothing.yaml'; see configs/ for ready ones")


def test_a_value_that_must_be_given_is_asked_for(command):
    del command.configs["train"]["reward"]
    assert command.refused("train") == (
        "reward.model must be given where rewards is empty, got nothing; name a judge")


# --- the rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "prompts.train must be a file or scenes:<table>, got '{path}', which is not there"),
        ("", "prompts.train must hold rows, got none in '{path}'"),
        ('{"prompt": "Say so."}\n{"question": "why"}\n',
         "prompts.train must have the column 'prompt', got ['question'] in row 1 of '{path}'; map it in the config"),
        ('{"prompt": "Say so."}\n{"prompt": "why\n',
         "prompts.train must hold one JSON object a line, got line 2 of '{path}': "),
        ('{"prompt": "Say so."}\n', "prompts.train must suit evaluation.gold = scenes, got row 0: prompt must be an "
                                    "instruction and a sentence of the scenes, got 'Say so.'"),
    ],
)
def test_prompts_that_cannot_be_used_are_named_with_file_and_row(command, text, message):
    command.prompts.unlink()
    if text is not None:
        command.prompts.write_text(text)
    assert command.refused("train").startswith(message.replace("{path}", str(command.prompts)))


def test_prompts_longer_than_the_context_are_counted_and_the_first_is_named(command):
    rows = command.prompts.read_text()
    command.prompts.write_text(rows + json.dumps({"prompt": "a " * 300}) + "\n" + json.dumps({"prompt": "a " * 240}))
    assert command.refused("train").startswith(
        "prompts.train must fit into 224 tokens (max_model_len less rollout.max_tokens), got 2 longer ones, first row "
        "6 with 300; ")


def test_rows_longer_than_they_may_be_are_counted_and_the_first_is_named(command):
    message = command.refused("sft", "max_tokens=20")
    assert message.startswith("data.train must fit into max_tokens = 20, got 6 longer rows, first row 0 with ")


@pytest.mark.parametrize(
    ("changes", "row", "message"),
    [
        ({}, {"label": "perhaps"}, "{key} row 1 of {path} must be labelled by one of yes, no, garbled, got 'perhaps'; "
                                   "map it under labels"),
        ({}, {"label": None}, "{key} row 1 of {path} must be labelled by one of yes, no, garbled, got None; "),
        ({"kind": "ratings"}, {"rating": 7}, "{key} row 0 of {path} must be rated by a value of slot verdict [1.0, "
                                             "0.0, 0.0], got 5; change the slot's values or the data"),
        ({"kind": "pairs"}, {"chosen": "so", "rejected": "so"}, "{key} row 1 of {path} must have two different sides, "
                                                                "got 'so' twice; take the row out"),
        ({"kind": "verdicts"}, {"verdict": "c"}, "{key} row 1 of {path} must have a verdict of a, b, tie, got 'c'; "),
        ({"kind": "nli"}, {"label": "?"}, "{key} row 0 of {path} must be labelled by one of entailment, neutral, "),
        ({"slot": "level"}, {}, "{key} row 0 of {path} must label one of the slots verdict, got slot 'level'; rename "),
        ({"columns": {"label": "relation"}}, {}, "{key} must have the column 'relation', got ['chosen', "),
        ({"columns": {"prompt": "text"}}, {}, "{key}.path must have the column 'text', got ['chosen', 'completion', "),
        ({"columns": {"promt": "text"}}, {}, "{key}.columns must map prompt, completion, label, source, explanation, "),
        ({}, {"completion": None}, "{key}.path column 'completion' must hold text, got None in row 1 of {path}"),
        ({"where": {"split": "dev"}}, {}, "{key} must keep rows, got none of 2 in {path} after where = {'split': "),
    ],
)
@pytest.mark.parametrize(("launcher", "key"), [("train_reward", "data.train[0]"), ("evaluate", "data[0]")])
def test_a_judged_row_that_cannot_be_used_is_named_with_file_and_number(command, launcher, key, changes, row, message):
    good = {"prompt": "p", "completion": "c", "label": "yes", "rating": 5, "chosen": "c", "rejected": "d",
            "response_a": "c", "response_b": "d", "verdict": "a", "premise": "p", "hypothesis": "c"}
    if changes.get("kind") == "nli":
        good["label"] = "what"
    command.judged.write_text("".join(json.dumps(made) + "\n" for made in (good, good | row)))
    source = {"path": str(command.judged), **changes}
    data = command.configs[launcher]["data"]
    (data["train"] if launcher == "train_reward" else data)[0] = source
    message = message.replace("{key}", key).replace("{path}", repr(str(command.judged)))
    assert command.refused(launcher).startswith(message)


def test_a_template_that_reads_no_explanation_needs_no_explainer(command):
    command.configs["train_reward"]["template"]["text"] = "{prompt} {completion} [verdict]"
    with pytest.raises(RayWasAsked):
        command("train_reward")
    assert command.refused("train_reward", "explainer.source=model").startswith(
        "template.text must have {explanation} with explainer.source = model, got '{prompt} {completion} [verdict]'; ")


def test_weights_cannot_be_chosen_by_what_the_dev_rows_do_not_say(command):
    assert command.refused("train_reward", "select_by=pair_accuracy") == (
        "data.dev must hold pairs, judged one side at a time, with select_by = pair_accuracy, got none in 4 rows; use "
        "select_by=loss")
    pairs = command.folder / "pairs.jsonl"
    pairs.write_text(json.dumps({"prompt": "p", "chosen": "c", "rejected": "d"}) + "\n")
    command.configs["train_reward"]["data"]["dev"] = [{"path": str(pairs), "kind": "pairs"}]
    assert command.refused("train_reward", "select_by=slot_accuracy") == (
        "data.dev must hold labels of slots with select_by = slot_accuracy, got none in 1 rows; use select_by=loss")
    with pytest.raises(RayWasAsked):
        command("train_reward", "select_by=pair_accuracy")


def test_rows_without_the_explanations_that_are_asked_of_them_are_named(command):
    assert command.refused("train_reward", "explainer.source=column").startswith(
        "data.train[0] must have the column 'explanation' with explainer.source = column, got ['completion', 'label', "
        "'prompt']; map it under columns")


# --- the folders


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (["model.safetensors"], "policy.model must hold weights as *.safetensors, got folder '{folder}' without any"),
        (["tokenizer.json", "tokenizer_config.json"], "policy.model must hold a tokenizer, got folder '{folder}' "),
        (["tokenizer.json"], "tokenizer must be loadable from '{folder}', got: Couldn't instantiate"),
        (["config.json"], "policy.model must hold config.json, got folder '{folder}' without one"),
        (None, "policy.model must be a model folder, got '{folder}', which is not there"),
    ],
)
def test_a_model_folder_with_a_part_missing_is_named(command, missing, message):
    folder = command.folder / "policy"
    shutil.copytree(command.causal, folder)
    for name in missing or ():
        (folder / name).unlink()
    if missing is None:
        shutil.rmtree(folder)
    assert command.refused("train", f"policy.model={folder}").startswith(message.replace("{folder}", str(folder)))


@pytest.mark.parametrize("name", ["explainer.model", "slot_model.model"])
def test_reward_training_names_a_folder_that_is_not_there(command, name):
    folder = command.folder / "nothing"
    assert command.refused("train_reward", f"{name}={folder}") == (
        f"{name} must be a model folder, got '{folder}', which is not there")


def test_a_reward_folder_without_reward_yaml_is_named(command):
    (command.reward / "reward.yaml").unlink()
    assert f"; '{command.reward}' has no reward.yaml, so template says what it reads" in command.refused("train")


def test_a_reward_folder_whose_explainer_is_gone_is_named(command):
    shutil.move(command.causal, command.folder / "elsewhere")
    message = command.refused("train", f"policy.model={command.folder}/elsewhere")
    assert message == (f"explainer (in {command.reward}/reward.yaml) must be a model folder, got '../causal', which is "
                       "not there")


def spoil(command, change):
    path = command.reward / "reward.yaml"
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content))


def test_a_reward_folder_whose_template_has_no_slot_is_named(command):
    spoil(command, lambda content: content["template"].update(text="{prompt} {completion}"))
    assert command.refused("train") == (
        "text must have a slot, got '{prompt} {completion}'; add one as [name] "
        f"(in {command.reward}/reward.yaml)")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([["yes"], ["nope"], ["garbled"]], "label word 'nope' of slot verdict must be one the tokenizer knows, got "
                                           "['<unk>']; choose another word"),
        ([["yes"], ["no"], ["so nope"]], "label word 'so nope' of slot verdict must be one the tokenizer knows, got "),
        ([["yes"], ["no"], ["yes"]], "label words of slot verdict must be distinct tokens, got 'yes' and 'yes' as the "
                                     "same; drop one"),
        ([["yes"], ["a man"], ["man a"]], "label words of slot verdict must be distinct tokens, got 'man a' and 'a "
                                          "man' as the same; drop one"),
    ],
)
@pytest.mark.parametrize("launcher", ["train", "train_reward", "evaluate"])
def test_label_words_that_cannot_tell_the_classes_apart_are_named(command, launcher, words, message):
    if launcher == "train_reward":
        command.configs[launcher]["slot_model"] = {"model": str(command.reward)}
        command.configs[launcher]["template"]["slots"][0]["classes"] = words
        command.configs[launcher]["template"]["max_tokens"] = 192
    else:
        spoil(command, lambda content: content["template"]["slots"][0].update(classes=words))
    found = command.refused(launcher)
    assert found.startswith(message) and found.endswith(f" (in {command.reward})")


def test_label_words_of_several_tokens_are_no_mistake(command):
    command.configs["train_reward"]["template"]["slots"][0]["classes"] = [["yes"], ["not at all"], ["garbled"]]
    for source in [*command.configs["train_reward"]["data"]["train"], *command.configs["train_reward"]["data"]["dev"]]:
        source["labels"] = {"no": "not at all"}
    with pytest.raises(RayWasAsked):
        command("train_reward")


def test_two_classes_of_one_word_are_refused_before_a_slot_model_is_built(command):
    command.configs["train_reward"]["template"]["slots"][0]["classes"] = [["yes"], ["no", "yes"], ["garbled"]]
    assert command.refused("train_reward").startswith(
        "label words of slot verdict must be distinct tokens, got 'yes' and 'yes' as the same")


@pytest.mark.parametrize("launcher", ["train", "train_reward", "evaluate"])
def test_a_template_longer_than_the_model_is_refused(command, launcher):
    if launcher == "train_reward":
        command.configs[launcher]["slot_model"] = {"model": str(command.reward)}
        command.configs[launcher]["template"]["max_tokens"] = 257
    else:
        spoil(command, lambda content: content["template"].update(max_tokens=257))
    assert command.refused(launcher) == (
        f"max_tokens must be <= 256, the positions of the model, got 257; lower it (in {command.reward})")


@pytest.mark.parametrize("launcher", ["train", "train_reward", "evaluate"])
def test_a_tokenizer_with_more_words_than_the_model_has_rows_is_refused(command, launcher):
    tokenizer = load_tokenizer(str(command.reward))
    size = len(tokenizer)
    tokenizer.add_tokens([f"word{number}" for number in range(5)])
    tokenizer.save_pretrained(command.reward)
    if launcher == "train_reward":
        command.configs[launcher]["slot_model"] = {"model": str(command.reward)}
    assert command.refused(launcher) == (
        f"tokenizer must have at most the model's {size} tokens, got {size + 5}; use the tokenizer the model was "
        f"trained with (in {command.reward})")


@pytest.mark.parametrize("launcher", ["train", "evaluate"])
def test_a_tokenizer_without_a_mask_token_is_refused(command, launcher):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(command.causal / name, command.reward)
    assert command.refused(launcher) == ("tokenizer must have a mask token, got none; use the tokenizer of a masked "
                                         f"language model (in {command.reward})")


def test_reward_training_refuses_a_template_without_a_slot(command):
    assert command.refused("train_reward", "template.text='{prompt} {completion}'") == (
        "text must have a slot, got '{prompt} {completion}'; add one as [name] (under template)")


def test_an_output_folder_of_another_run_is_left_alone_and_named(command):
    other = command.folder / "other"
    other.mkdir()
    (other / "config.yaml").write_text("seed: 1\n")
    message = command.refused("train", f"output_dir={other}")
    assert message.startswith(f"output_dir must be new or of the same run, got '{other}', which holds another run (")
    assert [path.name for path in other.iterdir()] == ["config.yaml"]


# --- the real commands


@pytest.mark.parametrize(
    ("launcher", "override", "message"),
    [
        ("train", "reward.model={folder}/none",
         "reward.model must be a model folder, got '{folder}/none', which is not there"),
        ("sft", "placement.num_gpu=1", "placement.num_gpu must be a known key, got an unknown one; did you mean "
                                       "placement.num_gpus?"),
        ("train_reward", "data.train=[{path: '{folder}/judged.jsonl', columns: {label: relation}}]",
         "data.train[0] must have the column 'relation', got ['completion', 'label', 'prompt'] in row 0 of "
         "'{folder}/judged.jsonl'; map it under columns"),
        ("evaluate", "data=[{path: '{folder}/judged.jsonl', kind: pairs}]",
         "data[0].path must have the column 'chosen', got ['completion', 'label', 'prompt'] in row 0 of "
         "'{folder}/judged.jsonl'; "),
    ],
)
def test_the_real_command_says_one_line_and_starts_nothing(command, launcher, override, message):
    folder = str(command.folder)
    (command.folder / "ray").mkdir()
    done = subprocess.run(
        [sys.executable, f"launch/{launcher}.py", command.written(launcher), override.replace("{folder}", folder)],
        cwd=ROOT, env=os.environ | {"RAY_TMPDIR": f"{folder}/ray"}, text=True, capture_output=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert command.checked(done.stderr).startswith(message.replace("{folder}", folder))
    assert list((command.folder / "ray").iterdir()) == [], "Ray was started"
