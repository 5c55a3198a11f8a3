"""What a run is made of."""

import pytest

from rlaif.config.checks import UserError
from rlaif.config.prompts import PromptsConfig
from rlaif.config.train import ModelConfig, RewardConfig, RoleConfig, TrainConfig
from rlaif.modeling.models import word_tokenizer
from rlaif.running.identity import identity, refuse_other


@pytest.fixture
def model(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def made_of(model, words="a b c", **changes):
    config = TrainConfig(output_dir="x", prompts=PromptsConfig("a", "b"), reward=RewardConfig("r"),
                         policy=ModelConfig(model=str(model)), **changes)
    return identity(config, word_tokenizer([words], masked=False))


def test_the_same_run_is_the_same_wherever_it_is_placed(model):
    other = made_of(model)
    one = TrainConfig(output_dir="y", prompts=PromptsConfig("a", "b"), reward=RewardConfig("r"),
                      policy=ModelConfig(model=str(model)))
    one.placement.learner = RoleConfig(num_actors=3)
    assert refuse_other(other, identity(one, word_tokenizer(["a b c"], masked=False)), "there") == []


def test_another_configuration_tokenizer_or_start_is_refused_by_name(model):
    before = made_of(model)
    with pytest.raises(UserError, match=r"must be of the same run, got 'there' .* \(steps is 100 there and 7 here\)"):
        refuse_other(before, made_of(model, steps=7), "there")
    with pytest.raises(UserError, match="tokenizer must be that of the run that is resumed"):
        refuse_other(before, made_of(model, "a b d"), "there")
    (model / "model.safetensors").write_bytes(b"others!")
    with pytest.raises(UserError, match="policy must be that of the run that is resumed"):
        refuse_other(before, made_of(model), "there")


def test_other_versions_are_told(model):
    before = made_of(model)
    before["versions"] = before["versions"] | {"torch": "1.0", "gone": "2"}
    (line,) = refuse_other(before, made_of(model), "there")
    assert "in place of 1.0" in line and "gone absent in place of 2" in line and line.endswith("numbers may differ")
