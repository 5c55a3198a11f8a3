"""As many answers, learnt from as they come or up to two steps late: the policy comes as far."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import pytest

from tests.helpers.live_training import LiveTraining
from tests.real.conftest import SHARED_GPU

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]

STEPS, ROWS = 60, 128
# The exact judge is the reward: there is nothing between what is learnt and what is measured.
SETTINGS = (f"steps={STEPS}", "reward.model=gold:scenes", "explainer.source=none", "report.samples_every=0",
            "evaluation.every=0", *SHARED_GPU)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, LiveTraining]]:
    """The same seed at each staleness, one after the other."""
    made: dict[int, LiveTraining] = {}
    try:
        for staleness in (0, 1, 2):
            folder = tmp_path_factory.mktemp("stale") / "run"
            made[staleness] = LiveTraining(folder, *SETTINGS, f"pipeline.max_staleness={staleness}")
            assert made[staleness].end(600) == 0, made[staleness].printed[-4000:]
        yield made
    finally:
        for training in made.values():
            training.stop()


def test_every_run_has_learnt_from_as_many_answers_within_its_bound(runs: dict[int, LiveTraining]) -> None:
    for staleness, training in runs.items():
        assert [step["num_trained"] for step in training.steps] == [ROWS] * STEPS
        assert max(step["staleness_max"] for step in training.steps) == staleness
        assert training.summary["ledger"]["totals"] == {"trained": STEPS * 16, "discarded": 0, "skipped": 0}


def test_staleness_costs_no_gold(runs: dict[int, LiveTraining]) -> None:
    """Of 384 test prompts, a standard error of 0.02; and of the last twenty steps, 2,560 answers, of 0.01. Two seeds of
    one configuration lie 0.04 apart."""
    after = {staleness: training.summary["gold_after"] for staleness, training in runs.items()}
    late = {staleness: statistics.mean(step["gold"] for step in training.steps[-20:])
            for staleness, training in runs.items()}
    before = runs[0].summary["gold_before"]
    print({"before": before, "after": after, "last twenty steps": late,
           "seconds": {key: training.summary["wall_s"]["loop"] for key, training in runs.items()}})
    assert min(after.values()) > before + 0.15, "all of them learn"
    for staleness in (1, 2):
        assert abs(after[staleness] - after[0]) <= 0.1
        assert abs(late[staleness] - late[0]) <= 0.08
