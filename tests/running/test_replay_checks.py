"""What is refused before a replay starts an actor."""

import dataclasses

import pytest

from benchmarks.fakes.rows import explained, prompts, rollouts, scored
from rlaif.config.algorithm import AlgorithmConfig
from rlaif.config.checks import UserError
from rlaif.config.stored import StoredConfig
from rlaif.config.train import ModelConfig, RolloutConfig, TrainConfig
from rlaif.data.prompts import PromptStream
from rlaif.modeling.models import load_tokenizer
from rlaif.running.identity import tokenizer_hash
from rlaif.running.preflight import check_train
from rlaif.running.rollout_store import RolloutStore


@pytest.fixture
def replay(folders, tmp_path):
    """A configuration of two steps of four groups, and the store that it names, of a run with a two-part reward."""
    policy = str(folders.causal)
    made_of = {"tokenizer": tokenizer_hash(load_tokenizer(policy)), "temperature": 1.0, "class_names": ["verdict:yes"],
               "weights": {"esfp": 0.75, "short": 0.25}}
    store, stream = RolloutStore(tmp_path, made_of), PromptStream(prompts(8), 0)
    store.rewind(0)
    for step in (1, 2):
        groups = range(4 * step - 4, 4 * step)
        store.write(step, [scored(explained(rollouts(stream.next(4), 2, 0)))], groups, groups)
    config = TrainConfig(output_dir="unused", mode="replay", stored=StoredConfig(read=str(tmp_path)), steps=2,
                         policy=ModelConfig(policy), rollout=RolloutConfig(groups_per_step=4, group_size=2))
    return config, store, made_of


def test_the_parts_of_the_reward_and_the_slots_names_are_those_that_are_stored(replay):
    config, _, _ = replay
    checked = check_train(config)
    assert checked.plan.weights == {"esfp": 0.75, "short": 0.25} and checked.plan.judges == ()
    assert checked.class_names == ["verdict:yes"] and checked.stored.num_steps == 2
    assert (checked.train, checked.test_rows, checked.explainer.source) == (None, [], "none")
    separate = dataclasses.replace(config, algorithm=AlgorithmConfig(parts="separate"))
    assert check_train(separate).plan.weights.keys() == {"esfp", "short"}


@pytest.mark.parametrize(("changes", "told"), [
    ({"steps": 3}, r"steps must be at most 2 with rollout.groups_per_step = 4 and the 8 groups in .*, got 3; store"),
    ({"rollout": RolloutConfig(groups_per_step=5, group_size=2)}, r"steps must be at most 1 with .* = 5"),
    ({"rollout": RolloutConfig(groups_per_step=4, group_size=2, temperature=0.5)},
     r"rollout.temperature must be that of the rollouts in .* \(1.0\), got 0.5; set it"),
])
def test_too_few_groups_and_another_temperature_are_refused(replay, changes, told):
    with pytest.raises(UserError, match=told):
        check_train(dataclasses.replace(replay[0], **changes))


def test_rollouts_of_another_tokenizer_are_refused(replay):
    config, _, made_of = replay
    RolloutStore(config.stored.read, made_of | {"tokenizer": "other"}).rewind(2)
    with pytest.raises(UserError, match=r"policy.model's tokenizer must be that of the rollouts in .* \(other\), got"):
        check_train(config)
