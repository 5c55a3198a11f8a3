import pytest

from rlaif.config.checks import UserError
from rlaif.config.files import load
from rlaif.config.learner import CriticConfig, LearnerConfig, LoraConfig
from rlaif.config.train import TrainConfig


@pytest.mark.parametrize(("make", "message"), [
    (lambda: LoraConfig(rank=0), "rank must be > 0 or null, got 0"),
    (lambda: LoraConfig(rank=4, alpha=0.0), "alpha must be > 0 or null, got 0.0"),
    (lambda: LoraConfig(rank=4, dropout=1.0), r"dropout must be in \[0, 1\), got 1.0"),
    (lambda: LoraConfig(target_modules=["q_proj"]), "target_modules must be left out without lora.rank, got "),
    (lambda: CriticConfig(learning_rate=0.0), "learning_rate must be > 0 or null, got 0.0"),
    (lambda: LearnerConfig(frozen=["embed"], lora=LoraConfig(rank=4)), "frozen must be empty with lora.rank"),
    (lambda: LearnerConfig(adam_learning_rate=1e-3), "adam_learning_rate must be null unless optimizer is muon, got "),
    (lambda: LearnerConfig(optimizer="muon", critic=CriticConfig(learning_rate=1e-5)),
     "critic.learning_rate must be null with optimizer: muon"),
])
def test_what_does_not_go_is_refused_by_name(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_options_can_be_given_in_a_file_and_on_the_command_line(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("learner: {lora: {rank: 8, target_modules: [q_proj]}, critic: {model: policy}}\noutput_dir: x\n"
                    "prompts: {train: a.jsonl, test: b.jsonl}\nreward: {model: r}\n")
    learner = load(TrainConfig, path, ["learner.lora.alpha=4", "learner.activation_checkpointing=true"]).learner
    assert learner.lora == LoraConfig(rank=8, alpha=4.0, target_modules=["q_proj"])
    assert learner.critic.model == "policy" and learner.activation_checkpointing and learner.packing
