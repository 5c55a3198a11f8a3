"""A short training whose actors are killed from outside, each kind once, while it goes on."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator

import pytest

from tests.helpers.live_training import LiveTraining
from tests.real.conftest import SHORT

NUM_STEPS, NUM_GROUPS, GROUP_SIZE = 6, 4, 4
SERVES_AGAIN_S = 30.0       # seconds until a killed rollout actor serves again


@pytest.fixture(scope="module")
def survived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LiveTraining, dict[str, float]]]:
    training = LiveTraining(tmp_path_factory.mktemp("faults") / "run", *SHORT, f"steps={NUM_STEPS}",
                            "faults.hang_s=20", "faults.ping_s=10", "checkpoint.every=2")
    seconds = {}
    try:
        for step, (kind, name) in enumerate((("RolloutActor", "rollout-0"), ("ExplainerActor", "explainer-0"),
                                             ("SlotActor", "slot-0")), start=1):
            training.until(rf"^step {step}/{NUM_STEPS}\b")
            began = time.monotonic()
            os.kill(training.actors(kind)[-1].pid, signal.SIGKILL)
            seconds[name] = training.until(rf"{name} serves again after") - began
        # A living actor whose engine dies is of no more use.
        training.until(rf"^step 4/{NUM_STEPS}\b")
        for engine in training.engines():
            os.kill(engine.pid, signal.SIGKILL)
        # A learner that dies takes what the gang has learnt since the last checkpoint with it.
        training.until(rf"^step 5/{NUM_STEPS}\b")
        os.kill(training.actors("LearnerActor")[-1].pid, signal.SIGKILL)
        training.end()
        yield training, seconds
    finally:
        training.stop()


def test_a_run_whose_actors_are_killed_ends_as_if_nothing_had_been(survived) -> None:
    training, _ = survived
    assert training.process.returncode == 0, training.printed[-4000:]
    steps = training.steps
    assert [step["step"] for step in steps] == list(range(1, NUM_STEPS + 1))
    assert all(step["num_trained"] == NUM_GROUPS * GROUP_SIZE for step in steps), "every prompt once"
    assert steps[-1]["groups_skipped"] == 0 and all(step["num_rollouts"] == step["num_trained"] for step in steps)


def test_every_restart_is_counted_and_told(survived) -> None:
    training, _ = survived
    last = training.steps[-1]
    assert (last["restarts_rollout"], last["restarts_explainer"], last["restarts_slot"]) == (2, 1, 1)
    for name in ("rollout-0", "explainer-0", "slot-0"):
        assert f"{name} is lost (" in training.printed and f"{name} serves again after" in training.printed


def test_learners_that_are_lost_start_anew_from_the_last_checkpoint(survived) -> None:
    training, _ = survived
    assert training.steps[-1]["restarts_learner"] == 1
    assert re.search(r"learners are lost \(.*learner-[01]: ActorDiedError", training.printed), training.printed[-4000:]
    assert "goes on after step 4" in training.printed


def test_a_killed_rollout_actor_serves_again_in_time(survived) -> None:
    _, seconds = survived
    print(seconds)
    assert seconds["rollout-0"] <= SERVES_AGAIN_S
