"""Generation ahead of learning while actors are killed and hung at random, against the same run left in peace."""

from __future__ import annotations

import os
import random
import signal
import statistics
import time
from collections import Counter
from collections.abc import Iterator

import psutil
import pytest

from tests.helpers.live_training import LiveTraining
from tests.real.conftest import SHARED_GPU

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(5400)]

STEPS, GROUPS, GROUP_SIZE = 60, 8, 4
SETTINGS = (
    f"steps={STEPS}", f"rollout.groups_per_step={GROUPS}", f"rollout.group_size={GROUP_SIZE}", *SHARED_GPU,
    f"prompts.num_train={STEPS * GROUPS}", "prompts.num_test=24", "evaluation.every=0", "report.samples_every=0",
    "pipeline.max_staleness=1", "placement.rollout.num_actors=2", "placement.rollout.num_cpus=0.25",
    "checkpoint.every=5", "faults.hang_s=20", "faults.ping_s=5", "faults.max_restarts=500",
    "faults.max_learner_restarts=50", "learner.learning_rate=5.0e-4")
STATELESS = ("RolloutActor", "ExplainerActor", "SlotActor")
BETWEEN_S = (3.0, 9.0)      # seconds between two misfortunes at least; an engine takes longer to start than that
STEPS_BETWEEN, STILL_S = 2, 30.0    # and as many steps, so that the run gets on, or seconds without them


class Chaos:
    """What befalls the actors of `training`, at random, until it ends; `count` says what did."""

    def __init__(self, training: LiveTraining, seed: int) -> None:
        self._training, self._chance, self.count = training, random.Random(seed), Counter[str]()
        self._misfortunes = [lambda kind=kind: self._kill(kind) for kind in STATELESS] + [
            lambda kind=kind: self._hang(kind) for kind in STATELESS] + [self._kill_engine, self._kill_learner]

    def reign(self) -> None:
        while self._training.process.poll() is None:
            self._pause()
            try:
                self._chance.choice(self._misfortunes)()
            except psutil.NoSuchProcess:
                continue

    def _pause(self) -> None:
        """On a slow machine, where actors take long to start, they are left alone for longer."""
        began, step = time.monotonic(), self._training.num_steps
        time.sleep(self._chance.uniform(*BETWEEN_S))
        while (self._training.process.poll() is None and time.monotonic() < began + STILL_S
               and abs(self._training.num_steps - step) < STEPS_BETWEEN):
            time.sleep(0.2)

    def _one(self, processes: list[psutil.Process]) -> psutil.Process | None:
        return self._chance.choice(processes) if processes else None

    def _send(self, process: psutil.Process | None, number: signal.Signals, name: str) -> None:
        if process is not None:
            process.send_signal(number)
            self.count[name] += 1

    def _kill(self, kind: str) -> None:
        self._send(self._one(self._training.actors(kind)), signal.SIGKILL, f"kill {kind}")

    def _hang(self, kind: str) -> None:
        self._send(self._one(self._training.actors(kind)), signal.SIGSTOP, f"hang {kind}")

    def _kill_engine(self) -> None:
        """Behind a living actor."""
        self._send(self._one(self._training.engines()), signal.SIGKILL, "kill engine")

    def _kill_learner(self) -> None:
        """Seldom: it costs the steps since the last checkpoint."""
        if self._chance.random() < 0.3:
            self._send(self._one(self._training.actors("LearnerActor")), signal.SIGKILL, "kill learner")


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveTraining]:
    training = LiveTraining(tmp_path_factory.mktemp("quiet") / "run", *SETTINGS)
    try:
        assert training.end(1200) == 0, training.printed[-4000:]
        yield training
    finally:
        training.stop()


@pytest.fixture(scope="module")
def stormy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveTraining]:
    training = LiveTraining(tmp_path_factory.mktemp("stormy") / "run", *SETTINGS)
    try:
        training.until("all actors ready")
        training.chaos = Chaos(training, seed=int(os.environ.get("CHAOS_SEED", "0")))
        training.chaos.reign()
        print(dict(training.chaos.count), training.lines[-1][1])
        yield training
    finally:
        training.stop()


def test_the_run_ends(stormy: LiveTraining) -> None:
    assert stormy.process.returncode == 0, stormy.printed[-4000:]
    assert [step["step"] for step in stormy.steps] == list(range(1, STEPS + 1))


def test_every_kind_of_misfortune_befell_it(stormy: LiveTraining) -> None:
    assert stormy.chaos.count.total() >= 10, stormy.chaos.count
    last = stormy.steps[-1]
    assert last["restarts_rollout"] >= 1 and last["restarts_slot"] + last["restarts_explainer"] >= 1


def test_every_prompt_of_the_epoch_is_trained_on_exactly_once(stormy: LiveTraining) -> None:
    assert stormy.summary["ledger"]["totals"] == {"trained": STEPS * GROUPS, "discarded": 0, "skipped": 0}
    assert all(step["num_trained"] == GROUPS * GROUP_SIZE for step in stormy.steps)
    assert stormy.steps[-1]["epoch"] == pytest.approx(1.0)


def test_the_staleness_bound_is_never_broken(stormy: LiveTraining, quiet: LiveTraining) -> None:
    for training in (stormy, quiet):
        assert {step["staleness_max"] for step in training.steps} <= {0, 1}


def test_the_policy_learns_as_in_peace(stormy: LiveTraining, quiet: LiveTraining) -> None:
    """The mean over the last 30 steps, 960 answers of 240 prompts each: a standard error of about 0.03."""
    gold = [statistics.mean(step["gold"] for step in training.steps[-30:]) for training in (stormy, quiet)]
    print(gold)
    assert abs(gold[0] - gold[1]) <= 0.12


def test_nothing_is_left_behind(stormy: LiveTraining) -> None:
    """No process that holds the run's folder open, no lock, no half-written checkpoint."""
    folder = stormy.output_dir
    assert not (folder / "lock").exists() and not list(folder.rglob("*.partial"))
    assert not [process.pid for process in psutil.process_iter(["cmdline"])
                if str(folder) in " ".join(process.info["cmdline"] or ())]


