import json

import pytest

from rlaif.config.prompts import CurriculumConfig
from rlaif.data.curriculum import Curriculum, probability

BOUNDS = CurriculumConfig(prefer="bounds", low=0.25, high=0.75, outside=0.1, decay=0.5)
MIDDLE = CurriculumConfig(prefer="middle", low=0.0, high=2.0, outside=0.2)


@pytest.mark.parametrize(
    ("config", "mean", "expected"),
    [
        (CurriculumConfig(), 0.0, 1.0),
        (BOUNDS, None, 1.0), (BOUNDS, 0.5, 1.0), (BOUNDS, 0.25, 0.1), (BOUNDS, 0.75, 0.1), (BOUNDS, -3.0, 0.1),
        (MIDDLE, None, 1.0), (MIDDLE, 1.0, 1.0), (MIDDLE, 0.5, 0.75), (MIDDLE, 1.5, 0.75), (MIDDLE, 0.02, 0.2),
        (MIDDLE, 0.0, 0.2), (MIDDLE, 9.0, 0.2),
    ],
)
def test_how_likely_a_prompt_is_taken(config, mean, expected):
    assert probability(mean, config) == pytest.approx(expected, abs=1e-15)


def test_rewards_of_zero_and_one_are_weighed_by_their_variance():
    config = CurriculumConfig(prefer="middle", outside=0.0)
    for share in (0.0, 0.125, 0.5, 0.9, 1.0):
        assert probability(share, config) == pytest.approx(share * (1 - share) / 0.25)


def test_the_mean_forgets_old_groups_by_half_each_time():
    curriculum = Curriculum(BOUNDS)
    for reward, mean in ((1.0, 1.0), (0.0, 0.5), (0.0, 0.25), (0.75, 0.5)):
        curriculum.observe(7, reward)
        assert curriculum.state() == {"prompt_ids": [7], "means": [mean]}
    assert curriculum.probability(7) == 1.0 and curriculum.probability(8) == 1.0


def test_figures_follow_a_prompt_from_hard_to_easy():
    curriculum = Curriculum(BOUNDS)
    seen = []
    for reward in (0.0, 1.0, 1.0, 1.0):
        curriculum.observe(3, reward)
        seen.append(tuple(curriculum.figures().values()))
    assert seen == [(1, 1, 0), (1, 0, 0), (1, 0, 1), (1, 0, 1)]


def test_a_restored_curriculum_is_the_same_to_the_last_bit():
    first = Curriculum(BOUNDS)
    for number in range(50):
        first.observe(number % 7, 1 / (3 + number))
    second = Curriculum(BOUNDS)
    second.observe(99, 0.5)
    second.restore(json.loads(json.dumps(first.state())))
    assert second.state() == first.state() and second.figures() == first.figures()


@pytest.mark.parametrize("reward", [float("nan"), float("inf")])
def test_a_reward_that_is_no_number_is_refused(reward):
    with pytest.raises(ValueError, match=r"reward must be finite, got .* for prompt 4"):
        Curriculum(BOUNDS).observe(4, reward)
