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

from actors import run, supervised
from rlaif import scenes
from rlaif.cli import main
from rlaif.config import RewardTrainConfig, SftConfig, TrainConfig

ROOT = Path(__file__).parent.parent
LAUNCHERS = {"train": (TrainConfig, run.run_training), "sft": (SftConfig, supervised.run_sft),
             "train_reward": (RewardTrainConfig, supervised.run_reward_training)}


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
        judged = write_rows(folder / "judged.jsonl", "judged-train")
        slot = {"name": "verdict", "classes": [["yes"], ["no"], ["garbled"]], "values": [1, 0, 0]}
        self.configs = {
            "train": {"policy": {"model": str(self.causal)}, "reward": {"model": str(self.reward)},
                      "prompts": {"train": str(self.prompts), "test": "scenes:prompts-test", "num_test": 4},
                      "evaluation": {"gold": "scenes"}},
            "sft": {"data": {"train": write_rows(folder / "rows.jsonl", "policy-train"), "dev": "scenes:policy-dev",
                             "num_dev": 4}},
            "train_reward": {"data": {"train": judged, "dev": "scenes:judged-dev", "num_dev": 4},
                             "explainer": {"model": str(self.causal)}, "template": {"slots": [slot]}},
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

    for module in (run, supervised):
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
        ("train_reward", "data.num_dev=some", "data.num_dev must be a whole number or null, got 'some'"),
        ("train", "learner.learning_rate=-1", "learner.learning_rate must be > 0, got -1.0"),
        ("sft", "placement.num_actors=0", "placement.num_actors must be > 0, got 0"),
        ("train", "algorithm.advantage=grpoo", "algorithm.advantage must be one of grpo, dr_grpo, rloo, got 'grpoo'"),
        ("train", "algorithm.kl_estimator=k4", "algorithm.kl_estimator must be one of k1, k2, k3, got 'k4'"),
        ("train", "sync.backend=nccl", "sync.backend must be shared_memory where rollouts or learners have no GPU"),
        ("train", "policy.model=null", "policy.model must be a Hugging Face name or folder, got null"),
        ("train", "rollout.engine.max_model_len=300", "rollout.engine.max_model_len must be at most the 256 tokens "),
        ("sft", "max_tokens=300", "max_tokens must be at most policy.scratch.max_positions 256, got 300"),
        ("sft", "input_template='{prompt} {note}'", "data.train must have the column 'note', got ['completion', "),
        ("train", "seed", "override must be key=value, got 'seed'"),
        ("sft", "input_template={prompt}: {note}", "override must be key=value with a value in YAML, got "),
    ],
)
def test_a_setting_that_cannot_be_is_named_with_its_value(command, launcher, override, message):
    assert command.refused(launcher, override).startswith(message)


def test_a_configuration_that_is_not_there_is_named(command):
    assert command.refused("train", config="configs/nothing.yaml") == (
        "config must be a YAML file, got 'configs/nothing.yaml'; see configs/ for ready ones")


def test_a_value_that_must_be_given_is_asked_for(command):
    del command.configs["train"]["reward"]
    assert command.refused("train").startswith("reward.model must be given, got nothing; set it in ")


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


def test_a_label_that_is_no_label_word_is_named_with_its_row(command):
    path = command.folder / "judged.jsonl"
    write_rows(path, "judged-train")
    with path.open("a") as file:
        file.write(json.dumps({"prompt": "p", "completion": "c", "label": "perhaps"}) + "\n")
    assert command.refused("train_reward") == (
        "data.train must hold one of the label words yes, no, garbled, got 'perhaps' in row 6")


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
    assert command.refused("train").startswith(f"reward model must have reward.yaml, got none in {command.reward}; ")


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


def test_label_words_that_the_vocabulary_lacks_are_named(command):
    spoil(command, lambda content: content["template"]["slots"][0].update(classes=[["yes"], ["nope"], ["garbled"]]))
    assert command.refused("train") == (
        "label word 'nope' of slot verdict must be one token the tokenizer knows, got ['<unk>']; choose another word "
        f"(in {command.reward})")


def test_reward_training_refuses_a_template_without_a_slot(command):
    assert command.refused("train_reward", "template.text='{prompt} {completion}'") == (
        "text must have a slot, got '{prompt} {completion}'; add one as [name] (under template)")


def test_reward_training_refuses_label_words_of_several_tokens_before_anything_is_explained(command):
    command.configs["train_reward"]["template"]["slots"][0]["classes"] = [["yes"], ["not at all"], ["garbled"]]
    assert command.refused("train_reward").startswith(
        "label word 'not at all' of slot verdict must be one token the tokenizer knows, got ['not', 'at', 'all']")


def test_reward_training_refuses_label_words_that_a_given_slot_model_lacks(command):
    command.configs["train_reward"]["slot_model"] = {"model": str(command.reward)}
    command.configs["train_reward"]["template"]["slots"][0]["classes"] = [["yes"], ["nope"], ["garbled"]]
    assert command.refused("train_reward").startswith(
        "label word 'nope' of slot verdict must be one token the tokenizer knows, got ['<unk>']")


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
        ("train", "reward.model={folder}/causal", "reward model must have reward.yaml, got none in {folder}/causal"),
        ("sft", "placement.num_gpu=1", "placement.num_gpu must be a known key, got an unknown one; did you mean "
                                       "placement.num_gpus?"),
        ("train_reward", "label_column=relation", "data.train must have the column 'relation', got ['completion', "
                                                  "'label', 'prompt'] in row 0 of '{folder}/judged.jsonl'; "),
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
