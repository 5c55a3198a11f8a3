import math

import pytest

from rlaif.config.learner import SCHEDULES, LearnerConfig
from rlaif.learning.schedule import learning_rate_factor


def factors(schedule, warmup_steps, total_steps):
    config = LearnerConfig(schedule=schedule, warmup_steps=warmup_steps)
    return [learning_rate_factor(config, step, total_steps) for step in range(total_steps)]


def test_the_factors_by_hand():
    assert factors("constant", 2, 5) == [0.5, 1.0, 1.0, 1.0, 1.0]
    assert factors("linear", 2, 6) == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    half = math.sqrt(0.5) / 2
    # 0.5 - half = 0.146 would be below the floor of 1 / 4
    assert factors("cosine", 0, 4) == pytest.approx([1.0, 0.5 + half, 0.5, 0.25])
    assert factors("constant", 0, 2) == [1.0, 1.0]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_step_of_a_run_has_a_rate_of_zero_or_above_the_configured_one(schedule):
    for warmup, total in ((0, 1), (0, 7), (3, 7), (7, 7), (20, 7)):
        assert all(0 < factor <= 1 for factor in factors(schedule, warmup, total))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_rate_rises_in_the_warm_up_and_never_after_it(schedule):
    found = factors(schedule, 5, 50)
    assert found[:5] == sorted(found[:5]) and found[5:] == sorted(found[5:], reverse=True)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_step_behind_the_end_keeps_the_last_rate(schedule):
    config = LearnerConfig(schedule=schedule)
    assert learning_rate_factor(config, 10, 10) == learning_rate_factor(config, 99, 10) > 0
