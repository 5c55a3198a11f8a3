"""Which modes go with what."""

import pytest

from rlaif.config.checks import UserError
from rlaif.config.evaluation import EvaluationConfig
from rlaif.config.prompts import PromptsConfig
from rlaif.config.stored import StoredConfig
from rlaif.config.train import RewardConfig, TrainConfig

WHOLE = {"output_dir": "x", "prompts": PromptsConfig("a", "b"), "reward": RewardConfig("r")}


@pytest.mark.parametrize(("changes", "told"), [
    ({"mode": "learn"}, "mode must be one of train, rollout, replay, got 'learn'"),
    ({"mode": "replay"}, "stored.read must be given with mode replay and with no other, got None with mode replay"),
    ({"stored": StoredConfig(read="f")}, "stored.read must be given with mode replay .* got 'f' with mode train"),
    ({"mode": "replay", "stored": StoredConfig(True, "f")}, "stored.write must be false with mode replay, got True"),
    ({"mode": "rollout", "evaluation": EvaluationConfig(select_by="reward")},
     "evaluation.select_by must be left out with mode rollout, got 'reward': without learners nothing"),
    ({"mode": "replay", "stored": StoredConfig(read="f"), "evaluation": EvaluationConfig(select_by="reward")},
     "evaluation.select_by must be left out with mode replay, got 'reward': without engines nothing"),
])
def test_modes_that_leave_something_without_effect_are_refused(changes, told):
    with pytest.raises(UserError, match=told):
        TrainConfig(**WHOLE | changes)


def test_a_replay_needs_neither_prompts_nor_a_judge():
    config = TrainConfig(output_dir="x", mode="replay", stored=StoredConfig(read="f"))
    assert config.reward.model is None and config.prompts.train is None
    with pytest.raises(UserError, match=r"prompts.test must be given"):
        TrainConfig(output_dir="x", mode="rollout")
