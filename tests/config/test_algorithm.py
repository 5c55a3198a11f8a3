import dataclasses
from pathlib import Path

import pytest
import yaml

from rlaif.config import algorithm as algorithm_config
from rlaif.config.algorithm import AlgorithmConfig
from rlaif.config.checks import UserError
from rlaif.policy import policy_loss
from rlaif.policy.estimation import ESTIMATORS
from rlaif.policy.kl import KL_ESTIMATORS

NAN, INFINITE = float("nan"), float("inf")
FILES = sorted((Path(__file__).parents[2] / "configs" / "algorithms").glob("*.yaml"))


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("advantage", ["grpoo", "ppo"]),
        ("parts", ["apart"]),
        ("whiten", ["group"]),
        ("loss", ["ppo"]),
        ("ratio", ["group"]),
        ("mean", ["batch"]),
        ("kl_in", ["advantage"]),
        ("kl_estimator", ["k4"]),
        ("overlong", ["drop"]),
        ("importance", ["clip"]),
        ("importance_level", ["group"]),
        ("dynamic_sampling", ["drop"]),
        ("gamma", [-0.1, 1.1, NAN]),
        ("lam", [-0.1, 1.1]),
        ("baseline_decay", [-0.1, 1.0]),
        ("advantage_limit", [0.0, -1.0, INFINITE, NAN]),
        ("overlong_buffer", [0, -4]),
        ("overlong_penalty", [0.0, NAN]),
        ("max_resampling", [0]),
        ("clip_low", [-0.1, 1.1, NAN]),
        ("clip_high", [-0.1, INFINITE]),
        ("dual_clip", [1.2, 0.5, INFINITE, NAN]),
        ("entropy_coefficient", [-0.1, INFINITE]),
        ("importance_cap", [0.5, INFINITE, NAN]),
        ("importance_floor", [-0.1, 1.1]),
        ("kl_coefficient", [-0.1, NAN]),
        ("kl_target", [0.0, NAN]),
        ("kl_horizon", [0]),
        ("value_coefficient", [0.0]),
        ("value_clip", [0.0]),
        ("num_epochs", [0]),
        ("num_minibatches", [0]),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field, values):
    for value in values:
        with pytest.raises(UserError, match=f"^{field} must be .*, got {value!r}$"):
            AlgorithmConfig(**{field: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": "separate", "advantage": "rloo"}, "advantage must be grpo with parts = separate, got 'rloo'"),
        ({"parts": "separate", "kl_in": "reward"}, "kl_in must be loss with parts = separate, got 'reward'"),
        ({"parts": "separate", "overlong": "penalty"}, "overlong must be none or mask with parts = separate, got "),
        ({"advantage": "reinforce_pp", "whiten": "batch"}, "whiten must be none with advantage = reinforce_pp, got "),
        ({"advantage": "reinforce_pp_baseline", "whiten": "batch"}, "whiten must be none with advantage = "),
        ({"advantage": "reinforce", "dynamic_sampling": "resample"},
         "advantage must be grpo or dr_grpo or rloo or reinforce_pp_baseline with dynamic_sampling = resample, got "),
        ({"loss": "cispo", "ratio": "sequence"}, "ratio must be token with loss = cispo, got 'sequence'; change one "),
        ({"loss": "cispo", "dual_clip": 3.0}, "dual_clip must be null with loss = cispo, got 3.0; change one of the "),
        ({"ratio": "product"}, "mean must be sequence with ratio = product, got 'token'; change one of the two"),
        ({"ratio": "product", "mean": "sequence", "advantage": "rloo"},
         "importance_level must be sequence with ratio = product and importance = truncate, got 'token'"),
        ({"ratio": "product", "mean": "sequence", "advantage": "gae"},
         "advantage must be grpo or dr_grpo or rloo or reinforce_pp_baseline or reinforce with ratio = product, got "),
        ({"advantage": "gae", "advantage_limit": 3.0}, "advantage_limit must be null with advantage = gae, got 3.0; "),
        ({"kl_unbiased": True, "kl_in": "reward"}, "kl_in must be loss with kl_unbiased = true, got 'reward'; change "),
        ({"kl_target": 3.0, "kl_coefficient": 0.0}, "kl_coefficient must be > 0 with kl_target, got 0; "),
        ({"gamma": 0.9}, "gamma must be left at 1.0 unless advantage is reinforce_pp or gae, got 0.9; it would have "),
        ({"lam": 0.9, "advantage": "reinforce_pp"}, "lam must be left at 0.95 unless advantage is gae, got 0.9; it "),
        ({"baseline_decay": 0.5}, "baseline_decay must be left at 0.9 unless advantage is reinforce, got 0.5; it "),
        ({"overlong_buffer": 4}, "overlong_buffer must be left at null unless overlong is penalty, got 4; it would "),
        ({"overlong_penalty": 2.0, "overlong": "mask"}, "overlong_penalty must be left at 1.0 unless overlong is "),
        ({"max_resampling": 5}, "max_resampling must be left at 3 unless dynamic_sampling is resample, got 5; it "),
        ({"importance": "none", "importance_cap": 3.0}, "importance_cap must be left at 2.0 unless importance is "),
        ({"importance": "none", "importance_level": "sequence"}, "importance_level must be left at token unless "),
        ({"importance_floor": 0.5}, "importance_floor must be left at 0.0 unless importance is mask, got 0.5; it "),
        ({"kl_horizon": 50}, "kl_horizon must be left at 1000 unless kl_target is given, got 50; it would have no "),
        ({"kl_in": "reward", "kl_coefficient": 0.0}, "kl_in must be left at loss unless kl_coefficient is above 0, "),
        ({"kl_estimator": "k1", "kl_coefficient": 0.0}, "kl_estimator must be left at k3 unless kl_coefficient is "),
        ({"kl_unbiased": True, "kl_coefficient": 0.0}, "kl_unbiased must be left at false unless kl_coefficient is "),
        ({"value_coefficient": 1.0}, "value_coefficient must be left at 0.5 unless advantage is gae, got 1.0; it "),
        ({"value_clip": None}, "value_clip must be left at 0.2 unless advantage is gae, got None; it would have no "),
    ],
)
def test_what_does_not_go_together_is_refused_with_what_does(options, message):
    with pytest.raises(UserError) as caught:
        AlgorithmConfig(**options)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("options", [
    {"parts": "separate", "whiten": "batch", "overlong": "mask"},
    {"advantage": "gae", "whiten": "batch", "gamma": 0.99, "lam": 0.9, "value_clip": None, "kl_in": "reward"},
    {"advantage": "reinforce_pp", "gamma": 0.99, "ratio": "sequence"},
    {"advantage": "reinforce", "baseline_decay": 0.0, "whiten": "batch", "advantage_limit": 3.0},
    {"importance": "mask", "importance_level": "sequence", "importance_floor": 0.5, "importance_cap": 1.0},
    {"clip_low": 1.0, "clip_high": 0.0, "dual_clip": 1.01, "mean": "group"},
    {"ratio": "sequence", "mean": "token", "advantage": "gae"},
    {"kl_target": 3.0, "kl_horizon": 50, "kl_in": "reward"},
])
def test_what_goes_together_is_accepted(options):
    assert dataclasses.asdict(AlgorithmConfig(**options)).items() >= options.items()


def test_the_choices_are_those_of_the_modules_that_serve_them():
    assert set(algorithm_config.ADVANTAGES) == set(ESTIMATORS)
    assert set(algorithm_config.KL_ESTIMATORS) == set(KL_ESTIMATORS)
    assert set(algorithm_config.LOSSES) == set(policy_loss._SURROGATES)
    names = {field.name for field in dataclasses.fields(AlgorithmConfig)}
    assert set(algorithm_config._CHOICES) | set(algorithm_config._USED_WITH) <= names
    assert {name for _, (name, _, _) in algorithm_config._USED_WITH.items()} <= names
    assert {name for rule in algorithm_config._TOGETHER for name in (rule[0], rule[2])} <= names


def test_every_algorithm_has_its_file():
    assert [path.stem for path in FILES] == [
        "cispo", "dapo", "dr_grpo", "gdpo", "grpo", "gspo", "ppo", "reinforce", "reinforce_pp",
        "reinforce_pp_baseline", "rloo", "stable_reinforce"]
    assert set(algorithm_config.ADVANTAGES) - {path.stem for path in FILES} == {"gae"}, "which is ppo's"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_files_hold_options_of_the_algorithm_only(path):
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert list(given) == ["algorithm"]
    config = AlgorithmConfig(**given["algorithm"])
    assert type(config.kl_coefficient) is float and type(config.clip_low) is float
    if path.stem in algorithm_config.ADVANTAGES:
        assert config.advantage == path.stem


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_files_go_over_a_pull_to_the_reference_of_the_runs_own(path):
    own = {"kl_in": "reward", "kl_estimator": "k1", "kl_coefficient": 0.05}
    given = yaml.safe_load(path.read_text(encoding="utf-8"))["algorithm"]
    assert AlgorithmConfig(**(own | given)) == AlgorithmConfig(**given)
