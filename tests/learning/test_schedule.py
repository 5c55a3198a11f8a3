import math

import pytest
import torch
from transformers import get_scheduler

from rlaif.config.learner import SCHEDULES, LearnerConfig
from rlaif.learning.schedule import learning_rate_factor


def factors(schedule, warmup_steps, total_steps):
    config = LearnerConfig(schedule=schedule, warmup_steps=warmup_steps)
    return [learning_rate_factor(config, step, total_steps) for step in range(total_steps)]


def test_the_factors_by_hand():
    assert factors("constant", 2, 5) == [0.5, 1.0, 1.0, 1.0, 1.0]
    assert factors("linear", 2, 6) == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    half = math.sqrt(0.5) / 2
    assert factors("cosine", 0, 4) == pytest.approx([1.0, 0.5 + half, 0.5, 0.5 - half])
    assert factors("cosine", 1, 3) == pytest.approx([1.0, 1.0, 0.5])
    assert factors("constant", 0, 2) == [1.0, 1.0]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_step_of_a_run_has_a_rate_of_zero_or_above_the_configured_one(schedule):
    for warmup, total in ((0, 1), (0, 7), (3, 7), (7, 7), (20, 7)):
        assert all(0 < factor <= 1 for factor in factors(schedule, warmup, total))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_rate_rises_in_the_warm_up_and_never_after_it(schedule):
    found = factors(schedule, 5, 50)
    assert found[:5] == sorted(found[:5]) and found[5:] == sorted(found[5:], reverse=True)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_factors_after_the_warm_up_are_those_of_transformers(schedule):
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    theirs = get_scheduler(schedule, optimizer, num_warmup_steps=3, num_training_steps=20)
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert factors(schedule, 3, 20)[3:] == pytest.approx(rates[3:])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_step_behind_the_end_keeps_the_last_rate(schedule):
    config = LearnerConfig(schedule=schedule)
    assert learning_rate_factor(config, 10, 10) == learning_rate_factor(config, 99, 10) > 0
