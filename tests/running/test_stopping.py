import dataclasses
import json

import pytest

from rlaif.config.checks import UserError
from rlaif.config.evaluation import EvaluationConfig, StopConfig
from rlaif.running.stopping import Evaluated, Verdict, weigh


def run(config, *series, **more):
    """Verdicts of evaluations at steps 0, 10, 20, ..., each of figures that `series` and `more` name."""
    known, verdicts = Evaluated(), []
    names = ("reward", "gold", "kl")
    for number, values in enumerate(zip(*series, strict=True)):
        known, verdict = weigh(known, 10 * number, dict(zip(names, values, strict=False)) | more, config)
        verdicts.append(verdict)
    return known, verdicts


def stops(verdicts):
    return [number for number, verdict in enumerate(verdicts) if verdict.stop is not None]


def test_without_options_nothing_is_best_and_nothing_ends():
    known, verdicts = run(EvaluationConfig(), [0.1, 0.9, 0.2])
    assert known == Evaluated() and verdicts == [Verdict(False, None)] * 3


@pytest.mark.parametrize(
    ("better", "is_best", "step", "value"),
    [("higher", [True, True, False, False, True], 40, 0.75), ("lower", [True, False, False, True, False], 30, 0.125)],
)
def test_the_best_is_the_first_of_equal_values(better, is_best, step, value):
    known, verdicts = run(EvaluationConfig(select_by="reward", better=better), [0.25, 0.5, 0.5, 0.125, 0.75])
    assert [verdict.is_best for verdict in verdicts] == is_best
    assert (known.best, known.best_step) == (value, step)


def test_patience_counts_evaluations_since_the_best_and_begins_anew_with_a_better_one():
    config = EvaluationConfig(select_by="reward", every=10, stop=StopConfig(patience=2))
    assert stops(run(config, [0.5, 0.4, 0.6, 0.6, 0.7, 0.1])[1]) == []
    known, verdicts = run(config, [0.5, 0.4, 0.6, 0.6, 0.5])
    assert stops(verdicts) == [4] and known.num_since_best == 2
    assert verdicts[4].stop == "reward was not higher than 0.6 of step 20 in 2 evaluations"


def test_a_run_ends_above_the_limit_of_kl_not_at_it():
    config = EvaluationConfig(every=10, stop=StopConfig(kl_limit=2.0))
    _, verdicts = run(config, [0.5] * 3, [0.5] * 3, [0.0, 2.0, 2.5])
    assert stops(verdicts) == [2]
    assert verdicts[2].stop == "kl of 2.5 nats is above evaluation.stop.kl_limit 2"


GOLD = dict(gold="scenes", every=10)


@pytest.mark.parametrize(
    ("reward", "gold", "stopped"),
    [
        ([0.25, 0.5, 0.625, 0.75], [0.25, 0.5, 0.375, 0.25], [3]),          # up and down, twice in a row
        ([0.25, 0.5, 0.625, 0.625], [0.25, 0.5, 0.375, 0.25], [3]),         # against the peak, not the one before
        ([0.25, 0.5, 0.5, 0.5], [0.25, 0.5, 0.375, 0.25], []),              # the proxy is as it was at the peak
        ([0.25, 0.5, 0.625, 0.75], [0.25, 0.5, 0.4375, 0.4375], []),        # gold fell by no more than gold_drop
        ([0.25, 0.5, 0.625, 0.75, 0.875], [0.25, 0.5, 0.375, 0.4375, 0.375], []),   # not in a row
        ([0.25, 0.5, 0.625, 0.75, 0.875], [0.25, 0.5, 0.375, 0.5, 0.375], []),      # gold came back to its peak
        ([0.25, 0.75, 0.5, 0.5], [0.25, 0.5, 0.375, 0.25], []),             # both fall
        ([0.25, 0.5, 0.625, 0.75, 0.875], [0.25, 0.5, 0.25, 0.625, 0.75], []),      # both rise
    ],
)
def test_a_run_ends_where_the_proxy_rises_while_gold_falls(reward, gold, stopped):
    config = EvaluationConfig(**GOLD, stop=StopConfig(divergence=2, gold_drop=0.0625))
    assert stops(run(config, reward, gold)[1]) == stopped


def test_the_divergence_is_told_in_its_own_figures():
    config = EvaluationConfig(**GOLD, stop=StopConfig(divergence=1, proxy="part_esfp", gold_drop=0.0))
    known, _ = weigh(Evaluated(), 0, {"part_esfp": 0.5, "gold": 0.75}, config)
    known, verdict = weigh(known, 10, {"part_esfp": 0.625, "gold": 0.5}, config)
    assert verdict.stop == "part_esfp rose to 0.625 from 0.5 while gold fell to 0.5 from 0.75, 1 evaluations in a row"
    assert known == Evaluated(peak_gold=0.75, proxy_at_peak=0.5, num_diverged=1)


def test_of_several_reasons_the_gravest_is_told():
    config = EvaluationConfig(**GOLD, select_by="gold", stop=StopConfig(patience=1, kl_limit=1.0, divergence=1))
    _, verdicts = run(config, [0.5, 0.75], [0.5, 0.25], [0.0, 2.0])
    assert verdicts[1].stop.startswith("reward rose to 0.75")
    _, verdicts = run(config, [0.5, 0.25], [0.5, 0.25], [0.0, 2.0])
    assert verdicts[1].stop.startswith("kl of 2 nats")


def test_what_is_known_survives_as_json_and_goes_on_as_if_never_written():
    config = EvaluationConfig(**GOLD, select_by="gold", stop=StopConfig(patience=9, divergence=9))
    whole, _ = run(config, [0.5, 0.75, 0.875], [0.5, 0.25, 0.125])
    known, _ = run(config, [0.5, 0.75], [0.5, 0.25])
    known = Evaluated(**json.loads(json.dumps(dataclasses.asdict(known))))
    assert weigh(known, 20, {"reward": 0.875, "gold": 0.125}, config)[0] == whole


@pytest.mark.parametrize(
    ("config", "figures", "message"),
    [
        (EvaluationConfig(select_by="golden"), {"reward": 0.5, "kl": 1.0},
         "evaluation.select_by must go by a figure that is measured, got 'golden'; there are reward, kl"),
        (EvaluationConfig(every=1, stop=StopConfig(kl_limit=1.0)), {"reward": 0.5},
         "evaluation.stop.kl_limit must go by a figure that is measured, got 'kl'; set algorithm.kl_coefficient above "
         "0"),
        (EvaluationConfig(select_by="reward"), {"reward": float("nan")},
         "evaluation.select_by must go by a number, got nan as reward; look at that reward or judge"),
    ],
)
def test_a_figure_that_is_missing_or_no_number_is_refused(config, figures, message):
    with pytest.raises(UserError) as caught:
        weigh(Evaluated(), 0, figures, config)
    assert str(caught.value) == message
