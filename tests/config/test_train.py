import dataclasses

import pytest

from rlaif.config import reward as reward_config
from rlaif.config import train as config_module
from rlaif.config.checks import UserError
from rlaif.config.evaluation import EvaluationConfig
from rlaif.config.learner import LearnerConfig
from rlaif.config.prompts import PromptsConfig
from rlaif.config.reward import (
    EvaluateConfig,
    JudgedDataConfig,
    RewardDataConfig,
    RewardLossConfig,
    RewardTrainConfig,
    SlotConfig,
    TemplateConfig,
)
from rlaif.config.train import (
    EngineConfig,
    ExplainerConfig,
    ModelConfig,
    PlacementConfig,
    ReportConfig,
    RewardConfig,
    RoleConfig,
    RolloutConfig,
    ScratchConfig,
    ServerConfig,
    SftConfig,
    SupervisedDataConfig,
    TrainConfig,
    WeightSyncConfig,
)
from rlaif.data.judged_rows import COLUMNS
from rlaif.esfp.gold import GOLD
from rlaif.esfp.slots import HEADS, KINDS, SCORES
from rlaif.esfp.templates import slot_template

LISTS = (RewardDataConfig, EvaluateConfig)      # of data sets: one must be given
ALL = {kind for module in (config_module, reward_config) for kind in vars(module).values()
       if dataclasses.is_dataclass(kind)}
ALL = sorted(ALL - set(LISTS), key=lambda kind: kind.__name__)
NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_the_defaults_of_every_field_are_in_range(kind):
    assert kind() == kind()


@pytest.mark.parametrize(
    ("kind", "field", "values"),
    [
        (ScratchConfig, "num_layers", [0, -1]),
        (ScratchConfig, "hidden_size", [0, 129]),
        (ScratchConfig, "initializer_range", [0.0, NAN]),
        (EngineConfig, "dtype", ["float16"]),
        (EngineConfig, "max_num_seqs", [0]),
        (EngineConfig, "gpu_memory_utilization", [0.0, 1.5, NAN]),
        (RolloutConfig, "group_size", [0]),
        (RolloutConfig, "temperature", [0.0, -1.0, NAN, INFINITE]),
        (RolloutConfig, "max_tokens", [0, 256, 1000]),
        (ExplainerConfig, "max_tokens", [0, 256]),
        (ExplainerConfig, "temperature", [-0.1]),
        (ExplainerConfig, "source", ["oracle"]),
        (ExplainerConfig, "on_unusable", ["skip"]),
        (ExplainerConfig, "num_samples", [0]),
        (ServerConfig, "api", ["responses"]),
        (ServerConfig, "timeout_s", [0.0, INFINITE]),
        (ServerConfig, "max_retries", [-1]),
        (RewardConfig, "compare", ["best"]),
        (RewardConfig, "max_tokens_per_batch", [0]),
        (PromptsConfig, "num_train", [0, -1]),
        (PromptsConfig, "num_test", [0]),
        (LearnerConfig, "optimizer", ["sgd"]),
        (LearnerConfig, "schedule", ["step"]),
        (LearnerConfig, "learning_rate", [0.0, NAN, INFINITE]),
        (LearnerConfig, "adam_learning_rate", [0.0]),
        (LearnerConfig, "warmup_steps", [-1]),
        (LearnerConfig, "beta2", [1.0, -0.1]),
        (LearnerConfig, "zero_stage", [4]),
        (LearnerConfig, "offload", [True]),
        (WeightSyncConfig, "backend", ["pigeon"]),
        (WeightSyncConfig, "bucket_mb", [0]),
        (RoleConfig, "num_actors", [0]),
        (RoleConfig, "num_cpus", [0.0, -1.0]),
        (RoleConfig, "num_gpus", [-1.0]),
        (RoleConfig, "strategy", ["PAC"]),
        (RoleConfig, "pool", ["", "two words", "-x", "a" * 64]),
        (PlacementConfig, "strategy", ["CLOSE"]),
        (PlacementConfig, "ready_timeout_s", [0.0]),
        (EvaluationConfig, "gold", ["silver"]),
        (ReportConfig, "num_samples", [-1]),
        (TrainConfig, "steps", [0]),
        (TrainConfig, "seed", [-1]),
        (SupervisedDataConfig, "num_dev", [0]),
        (SftConfig, "batch_size", [0]),
        (SlotConfig, "kind", ["likert"]),
        (JudgedDataConfig, "kind", ["triples"]),
        (JudgedDataConfig, "num_rows", [0]),
        (JudgedDataConfig, "skip_rows", [-1]),
        (JudgedDataConfig, "weight", [0.0, -1.0, NAN]),
        (RewardLossConfig, "pairs", ["hinge"]),
        (RewardLossConfig, "flood_radius", [-1]),
        (RewardLossConfig, "masked_lm_weight", [-0.1]),
        (RewardLossConfig, "masked_share", [-0.1, 1.1]),
        (RewardLossConfig, "explanation_dropout", [1.1]),
        (RewardTrainConfig, "log_every", [0]),
        (RewardTrainConfig, "dev_every", [-1]),
        (RewardTrainConfig, "select_by", ["accuracy"]),
        (RewardTrainConfig, "prior", ["uniform"]),
        (EvaluateConfig, "num_bootstraps", [0]),
    ],
    ids=lambda part: getattr(part, "__name__", None) or (part if isinstance(part, str) else ""),
)
def test_a_value_out_of_range_is_refused_by_field_rule_and_value(kind, field, values):
    for value in values:
        with pytest.raises(UserError) as caught:
            kind(**{field: value})
        text = str(caught.value)
        assert text.startswith(f"{field} must be ") and text.endswith(f"got {value!r}"), text


def test_a_model_from_nothing_must_hold_what_it_is_trained_on():
    small = ModelConfig(scratch=ScratchConfig(max_positions=64))
    with pytest.raises(UserError, match=r"max_tokens must be at most policy.scratch.max_positions 64, got 65"):
        SftConfig(policy=small, max_tokens=65)
    with pytest.raises(UserError, match=r"template.max_tokens must be at most slot_model.scratch.max_positions 64"):
        RewardTrainConfig(slot_model=small, template=TemplateConfig(max_tokens=65))
    SftConfig(policy=dataclasses.replace(small, model="some/model"), max_tokens=65)


def test_data_sets_must_be_given():
    one = [JudgedDataConfig("rows.jsonl")]
    assert RewardDataConfig(one, one).dev == EvaluateConfig(data=one).data
    with pytest.raises(UserError, match=r"^dev must be a list of data sets, one at least, got \[\]"):
        RewardDataConfig(train=one)
    with pytest.raises(UserError, match=r"^data must be a list of data sets, one at least, got \[\]"):
        EvaluateConfig()


def test_equal_explanations_are_not_asked_for():
    ExplainerConfig(num_samples=4)      # the temperature may come from the reward folder
    ExplainerConfig(num_samples=4, temperature=0.5)
    with pytest.raises(UserError, match=r"^num_samples must be 1 at temperature 0, got 4$"):
        ExplainerConfig(num_samples=4, temperature=0.0)


def test_a_server_must_have_its_address():
    ExplainerConfig(source="server", server=ServerConfig(url="http://127.0.0.1:8000/v1"))
    with pytest.raises(UserError, match=r"^server.url must be given with source: server, got None"):
        ExplainerConfig(source="server")


def test_the_choices_of_the_config_are_those_of_the_modules_that_serve_them():
    words = [["up"], ["down"]]
    for kind in KINDS:
        text = "{completion} {other} [s]" if kind == "pairwise" else "{completion} [s]"
        for score in SCORES:
            made = slot_template(TemplateConfig(text=text, slots=[SlotConfig("s", kind, words, score=score)]))
            assert (made.slots[0].kind, made.slots[0].score) == (kind, score)
    for head in HEADS:
        slots = [] if head == "scalar" else [SlotConfig("s", classes=words)]
        text = "{completion} [s]" if head == "slot" else "{completion}"
        assert slot_template(TemplateConfig(text=text, head=head, slots=slots)).head == head
    for kind in COLUMNS:
        JudgedDataConfig("rows.jsonl", kind=kind)
    for name in GOLD:
        EvaluationConfig(gold=name)


def test_a_role_beside_another_goes_where_that_one_goes():
    RoleConfig(beside="learner")
    for own in ({"pool": "reward"}, {"strategy": "SPREAD"}):
        with pytest.raises(UserError, match=r"^beside must be null with a pool or strategy of its own, got 'learner'$"):
            RoleConfig(beside="learner", **own)
