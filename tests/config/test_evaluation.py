import pytest

from rlaif.config.checks import UserError
from rlaif.config.evaluation import EvaluationConfig, StopConfig


def test_the_defaults_measure_before_and_after_only():
    config = EvaluationConfig()
    assert (config.every, config.modes, config.select_by, config.export) == (0, ["sampled"], None, "last")
    assert config.figures_asked_for() == {}


def test_every_figure_that_decides_something_is_named_with_its_option():
    config = EvaluationConfig(gold="scenes", every=5, modes=["sampled", "greedy"], select_by="greedy_reward",
                              stop=StopConfig(kl_limit=3.0, divergence=2, gold="greedy_gold"))
    assert config.figures_asked_for() == {"select_by": "greedy_reward", "stop.proxy": "reward",
                                          "stop.gold": "greedy_gold", "stop.kl_limit": "kl"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"every": -1}, "every must be >= 0, got -1"),
        ({"num_prompts": 0}, "num_prompts must be > 0, got 0"),
        ({"group_size": 0}, "group_size must be > 0, got 0"),
        ({"gold": "pyrite"}, "gold must be null or scenes, got 'pyrite'"),
        ({"better": "bigger"}, "better must be one of higher, lower, got 'bigger'"),
        ({"export": "first"}, "export must be one of last, best, got 'first'"),
        ({"modes": []}, "modes must be a list of sampled and greedy, each once at most, got []"),
        ({"modes": ["greedy", "greedy"]}, "modes must be a list of sampled and greedy, each once at most, got "
                                          "['greedy', 'greedy']"),
        ({"modes": ["beam"]}, "modes must be a list of sampled and greedy, each once at most, got ['beam']"),
        ({"export": "best"}, "select_by must be given with export = best, got null; name a figure, such as reward"),
        ({"every": 1, "stop": StopConfig(patience=2)}, "select_by must be given with stop.patience, got null; name a "
                                                       "figure, such as reward"),
        ({"stop": StopConfig(kl_limit=2.0)}, "every must be > 0 with stop.kl_limit, got 0; a run stops after an "
                                             "evaluation"),
        ({"select_by": "greedy_reward"}, "modes must have greedy with select_by = greedy_reward, got ['sampled']"),
        ({"select_by": "reward", "modes": ["greedy"]}, "modes must have sampled with select_by = reward, got "
                                                       "['greedy']"),
        ({"select_by": "gold"}, "gold must be given with select_by = gold, got null; or name another figure"),
        ({"every": 1, "stop": StopConfig(divergence=1)}, "gold must be given with stop.gold = gold, got null; or name "
                                                         "another figure"),
    ],
)
def test_what_cannot_be_or_has_nothing_to_go_by_is_refused(given, message):
    with pytest.raises(UserError) as caught:
        EvaluationConfig(**given)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"patience": 0}, "patience must be > 0 or null, got 0"),
        ({"kl_limit": float("inf")}, "kl_limit must be > 0 or null, got inf"),
        ({"divergence": -1}, "divergence must be > 0 or null, got -1"),
        ({"gold_drop": -0.1}, "gold_drop must be >= 0, got -0.1"),
        ({"proxy": "gold"}, "gold must be another figure than proxy, got 'gold'"),
    ],
)
def test_a_stop_out_of_range_is_refused(given, message):
    with pytest.raises(UserError) as caught:
        StopConfig(**given)
    assert str(caught.value) == message
