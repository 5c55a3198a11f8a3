from pathlib import Path

import pytest
import yaml

from rlaif.config.checks import UserError
from rlaif.config.dpo import DpoConfig
from rlaif.config.files import config_hash, load, resolved_yaml
from rlaif.config.reward import EvaluateConfig, RewardTrainConfig
from rlaif.config.train import SftConfig, TrainConfig
from rlaif.planning.cluster import read_cluster

ROOT = Path(__file__).parents[2]
ALGORITHMS = sorted(ROOT.glob("configs/algorithms/*.yaml"))      # which go over a run's own file
OVER = {ROOT / "configs" / "one_node_shared.yaml"}                # this one too
CLUSTERS = sorted(ROOT.glob("configs/clusters/*.yaml"))          # of --plan
CONFIGS = sorted(set(ROOT.glob("configs/**/*.yaml")) - {*ALGORITHMS, *OVER, *CLUSTERS})
SMALL = "output_dir: out\nprompts: {train: a.jsonl, test: b.jsonl}\nreward: {model: folder}\n"
DATA = "output_dir: out\ndata: {train: [{%s}], dev: [{path: b.jsonl}]}\n"
SLOTS = DATA % "path: a.jsonl" + "template: {slots: [{%s}]}\n"


def kind_of(path):
    """What a configuration is of, by the one section that no other kind has, or else by its name."""
    given = yaml.safe_load(path.read_text())
    sections = {"judge": EvaluateConfig, "template": RewardTrainConfig, "prompts": TrainConfig}
    usual = DpoConfig if "dpo" in path.name else SftConfig
    return next((kind for section, kind in sections.items() if section in given), usual)


@pytest.fixture
def small(tmp_path):
    (tmp_path / "small.yaml").write_text(SMALL)
    return tmp_path / "small.yaml"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_every_configuration_that_is_shipped_loads(path, monkeypatch):
    monkeypatch.setenv("RLAIF_DATA", "data")
    assert load(kind_of(path), path).output_dir.startswith(("outputs/", "/shared/"))


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.stem)
def test_every_cluster_that_is_described_is_read(path):
    assert read_cluster(path).nodes


@pytest.mark.parametrize("path", ALGORITHMS, ids=lambda path: path.stem)
def test_every_algorithm_that_is_shipped_goes_over_the_quickstart(path):
    quickstart = ROOT / "configs" / "quickstart.yaml"
    config, plain = load(TrainConfig, [quickstart, path]), load(TrainConfig, quickstart)
    assert config.output_dir == plain.output_dir and config.learner == plain.learner


def test_there_are_configurations_of_every_kind_to_load():
    assert {kind_of(path) for path in CONFIGS} == {DpoConfig, EvaluateConfig, RewardTrainConfig, SftConfig,
                                                      TrainConfig}


def test_overrides_come_after_the_file_and_the_file_after_the_defaults(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(SMALL + "steps: 7\nrollout: {group_size: 4}\n")
    config = load(TrainConfig, path, ["rollout.group_size=2", "algorithm.dual_clip=3", "algorithm.value_clip=null",
                                      "algorithm.advantage=gae", "seed=5"])
    assert (config.steps, config.rollout.group_size, config.seed) == (7, 2, 5)
    assert (config.algorithm.dual_clip, config.algorithm.value_clip) == (3.0, None)
    assert config.rollout.temperature == TrainConfig().rollout.temperature


def test_several_files_are_merged_in_their_order_before_the_overrides(small, tmp_path):
    (tmp_path / "more.yaml").write_text("steps: 9\nrollout: {group_size: 4}\nlearner: {frozen: [a, b]}\n")
    (tmp_path / "last.yaml").write_text("rollout: {max_tokens: 5}\nlearner: {frozen: [c]}\nseed: 1\n")
    paths = [small, tmp_path / "more.yaml", tmp_path / "last.yaml"]
    config = load(TrainConfig, paths, ["seed=2"])
    assert (config.steps, config.seed, config.output_dir) == (9, 2, "out")
    assert (config.rollout.group_size, config.rollout.max_tokens) == (4, 5)
    assert config.learner.frozen == ["c"], "a list is replaced, not joined"
    assert load(TrainConfig, [paths[2], paths[1], paths[0]]).learner.frozen == ["a", "b"]


def test_a_bad_file_among_several_is_named(small, tmp_path):
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(UserError, match=f"config {tmp_path}/list.yaml must hold keys and values, got a list"):
        load(TrainConfig, [small, tmp_path / "list.yaml"])
    with pytest.raises(UserError, match=f"config must be a YAML file, got '{tmp_path}/none.yaml'"):
        load(TrainConfig, [small, tmp_path / "none.yaml"])


def test_the_whole_configuration_survives_being_written_and_read(small, tmp_path):
    config = load(TrainConfig, small, ["learner.learning_rate=3.5e-4", "placement.learner.num_actors=3"])
    (tmp_path / "whole.yaml").write_text(resolved_yaml(config))
    assert load(TrainConfig, tmp_path / "whole.yaml") == config


def test_slots_become_slots_with_their_defaults(tmp_path):
    (tmp_path / "slots.yaml").write_text(SLOTS % "name: v, classes: [['yes', sure], ['no']], values: [1, 0]")
    slot = load(RewardTrainConfig, tmp_path / "slots.yaml").template.slots[0]
    assert (slot.name, slot.classes, slot.values, slot.weight) == ("v", [["yes", "sure"], ["no"]], [1.0, 0.0], 1.0)


def test_data_sets_become_data_sets_with_their_defaults(tmp_path):
    path = tmp_path / "data.yaml"
    path.write_text(DATA % "path: a.csv, kind: nli, columns: {premise: text}, where: {split: dev}, weight: 0.5")
    config = load(RewardTrainConfig, path)
    first, dev = config.data.train[0], config.data.dev[0]
    assert (first.kind, first.columns, first.where, first.weight) == ("nli", {"premise": "text"}, {"split": "dev"}, 0.5)
    assert (dev.path, dev.kind, dev.labels, dev.num_rows) == ("b.jsonl", "labels", {}, None)
    (tmp_path / "whole.yaml").write_text(resolved_yaml(config))
    assert load(RewardTrainConfig, tmp_path / "whole.yaml") == config
    assert load(RewardTrainConfig, path, ["data.train=[{path: c.jsonl}]"]).data.train[0].path == "c.jsonl"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("kind: pairs", "data.train[0].path must be given, got nothing; set it in "),
        ("path: a, kind: triples", "data.train[0].kind must be one of labels, nli, pairs, verdicts, ratings, got "
                                   "'triples'"),
        ("path: a, colums: {a: b}", "data.train[0].colums must be a known key, got an unknown one; did you mean "
                                    "data.train[0].columns?"),
        ("path: a, columns: text", "data.train[0].columns must be a dict[str, str], got 'text'"),
        ("path: a, labels: {e: yes}", "data.train[0].labels must be a dict[str, str], got {'e': True}; put words such "
                                      "as yes and no in quotes"),
        ("path: a, num_rows: 0", "data.train[0].num_rows must be > 0 or null, got 0"),
    ],
)
def test_a_bad_data_set_is_refused_by_its_place_in_the_list(tmp_path, given, message):
    (tmp_path / "data.yaml").write_text(DATA % given)
    with pytest.raises(UserError) as caught:
        load(RewardTrainConfig, tmp_path / "data.yaml")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.train=a.jsonl", "data.train must be a list[JudgedDataConfig], got 'a.jsonl'"),
        ("data.train=[]", "data.train must be a list of data sets, one at least, got []"),
        ("data.train=[a.jsonl]", "data.train[0] must hold keys and values, got 'a.jsonl'"),
        ("data=null", "data must hold keys and values, got None"),
        ("loss.pairs=hinge", "loss.pairs must be one of bradley_terry, ordinal, got 'hinge'"),
        ("template.max_tokens=257", "template.max_tokens must be at most slot_model.scratch.max_positions 256, got "
                                    "257"),
    ],
)
def test_a_bad_override_of_reward_training_is_refused_with_its_whole_path_and_value(tmp_path, override, message):
    (tmp_path / "data.yaml").write_text(DATA % "path: a.jsonl")
    with pytest.raises(UserError) as caught:
        load(RewardTrainConfig, tmp_path / "data.yaml", [override])
    assert str(caught.value) == message


def test_the_hash_follows_every_value_of_the_configuration(small):
    config = load(TrainConfig, small)
    assert len(config_hash(config)) == 16 and config_hash(config) == config_hash(load(TrainConfig, small))
    assert config_hash(config) != config_hash(load(TrainConfig, small, ["report.num_samples=1"]))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stpes=3", "stpes must be a known key, got an unknown one; did you mean steps?"),
        ("rollout.group_sise=3", "rollout.group_sise must be a known key, got an unknown one; did you mean "
                                 "rollout.group_size?"),
        ("placement.learner.gpus=1", "placement.learner.gpus must be a known key, got an unknown one; did you mean "
                                     "placement.learner.num_gpus?"),
        ("steps=many", "steps must be a whole number, got 'many'"),
        ("steps=1.5", "steps must be a whole number, got 1.5"),
        ("steps=null", "steps must be a whole number, got None"),
        ("learner.offload=maybe", "learner.offload must be true or false, got 'maybe'"),
        ("learner.learning_rate=[1]", "learner.learning_rate must be a number, got [1]"),
        ("prompts.num_train=all", "prompts.num_train must be a whole number or null, got 'all'"),
        ("rollout=3", "rollout must hold keys and values, got 3"),
        ("steps=0", "steps must be > 0, got 0"),
        ("explainer.engine.max_num_seqs=-1", "explainer.engine.max_num_seqs must be > 0, got -1"),
        ("placement.slot.num_cpus=0", "placement.slot.num_cpus must be > 0, got 0.0"),
        ("rollout.max_tokens=300", "rollout.max_tokens must be below engine.max_model_len 256, got 300"),
        ("steps", "override must be key=value, got 'steps'"),
        ("=3", "override must be key=value, got '=3'"),
        ("steps={", "override must be key=value with a value in YAML, got 'steps={'; put a text with braces or colons "
                    "in quotes of its own"),
        ("steps=${nothing}", "steps must be a value, got: Interpolation key 'nothing' not found"),
    ],
)
def test_a_bad_override_is_refused_with_its_whole_path_and_value(small, override, message):
    with pytest.raises(UserError) as caught:
        load(TrainConfig, small, [override])
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "output_dir must be given, got nothing; set it in {path} or as output_dir=..."),
        ("- 1\n", "config {path} must hold keys and values, got a list"),
        ("seed: 1\nsteps: [\n", "config {path} must be YAML, got: did not find expected node content in line 3"),
        (SMALL + "seed: 1\nseed: 2\n", "config {path} must be YAML, got: found duplicate key seed in line 5"),
        ("rollout: {a\n", "config {path} must be YAML, got: did not find expected ',' or '}' in line 2"),
        ("a\0b", "config {path} must be YAML, got: unacceptable character #x0000: control characters are not allowed"),
        ("3", "config {path} must be YAML, got: Invalid loaded object type: int"),
        ("!!python/object/apply:os.getcwd []", "config {path} must be YAML, got: could not determine a constructor for "
                                               "the tag 'tag:yaml.org,2002:python/object/apply:os.getcwd' in line 1"),
    ],
)
def test_a_bad_file_is_refused_in_one_line_that_names_it(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load(TrainConfig, path)
    assert str(caught.value) == message.replace("{path}", str(path))


@pytest.mark.parametrize(
    ("slot", "message"),
    [
        ("nmae: a", "template.slots[0].nmae must be a known key, got an unknown one; did you mean "
                    "template.slots[0].name?"),
        ("name: a, classes: 3", "template.slots[0].classes must be a list[list[str]], got 3"),
        ("name: a, values: [x]", "template.slots[0].values must be a list[float], got ['x']"),
        ("name: a, classes: [[yes, sure], [no]]", "template.slots[0].classes must be a list[list[str]], got "
                                                  "[[True, 'sure'], [False]]; put words such as yes and no in quotes"),
        ("classes: [[up], [down]]", "template.slots[0].name must be given, got nothing"),
    ],
)
def test_a_bad_slot_is_refused_by_its_place_in_the_list(tmp_path, slot, message):
    (tmp_path / "slots.yaml").write_text(SLOTS % slot)
    with pytest.raises(UserError) as caught:
        load(RewardTrainConfig, tmp_path / "slots.yaml")
    assert str(caught.value).startswith(message)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "nothing.yaml", tmp_path):
        with pytest.raises(UserError, match=f"config must be a YAML file, got '{path}'; see configs/"):
            load(TrainConfig, path)


def test_every_mandatory_value_is_asked_for(small, tmp_path):
    for line in SMALL.splitlines():
        (tmp_path / "less.yaml").write_text(SMALL.replace(line + "\n", ""))
        with pytest.raises(UserError, match=r"^(output_dir|prompts.test|reward.model) must be given.*, got nothing;"):
            load(TrainConfig, tmp_path / "less.yaml")
