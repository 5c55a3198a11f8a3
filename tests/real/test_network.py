"""Generation ahead of learning over a network that loses packets and is cut: between two namespaces of this machine."""

from __future__ import annotations

import re
import secrets
import time
from pathlib import Path

import pytest

from tests.helpers.live_training import LiveTraining
from tests.helpers.networks import Hosts, two_hosts
from tests.real.conftest import SHARED_GPU

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]

STEPS, GROUPS, GROUP_SIZE = 30, 4, 4
SETTINGS = (
    f"steps={STEPS}", f"rollout.groups_per_step={GROUPS}", f"rollout.group_size={GROUP_SIZE}", *SHARED_GPU,
    f"prompts.num_train={STEPS * GROUPS}", "prompts.num_test=8", "evaluation.every=0", "report.samples_every=0",
    "pipeline.max_staleness=1", "checkpoint.every=5", "faults.hang_s=30", "faults.ping_s=10", "faults.warn_s=20",
    "placement.learner.num_actors=1", "placement.learner.pool=first", "placement.explainer.pool=first",
    "placement.slot.pool=first")
APART = ("placement.rollout.num_actors=2", "placement.rollout.strategy=SPREAD")     # an engine on each
AWAY = ("placement.rollout.pool=second", "placement.ready_timeout_s=60", "faults.stuck_s=300")


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    """One for the nodes and whoever joins them."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))


def training_on(hosts: Hosts, folder: Path, *overrides: str) -> LiveTraining:
    return LiveTraining(folder, *SETTINGS, *overrides, cluster=hosts.address, within=hosts.first.within)


def show(training: LiveTraining) -> None:
    began = training.lines[0][0]
    print("\n".join(f"{when - began:6.1f} s  {line}" for when, line in training.lines
                    if re.search(r"lost|serves|waits|goes on|^now|error|^step", line)))


def test_lost_packets_and_a_cut_lose_nothing(tmp_path: Path) -> None:
    """5 % of the packets, then a cut of five seconds, then one for good: the run goes on with what is on its side."""
    with two_hosts(3, 1) as hosts:
        training = training_on(hosts, tmp_path / "run", *APART)
        try:
            training.until(rf"^step +2/{STEPS}\b")
            hosts.lose_packets(5)
            training.until(rf"^step +{training.num_steps + 4}/{STEPS}\b")
            hosts.lose_packets(100)
            time.sleep(5)
            hosts.lose_packets(5)
            training.until(rf"^step +{training.num_steps + 4}/{STEPS}\b")
            assert training.num_steps < STEPS - 5, "the last cut must come before the end"
            hosts.lose_packets(100)
            assert training.end(600) == 0, training.printed[-6000:]
            assert training.summary["ledger"]["totals"] == {"trained": STEPS * GROUPS, "discarded": 0, "skipped": 0}
            assert [step["num_trained"] for step in training.steps] == [GROUPS * GROUP_SIZE] * STEPS
            assert {step["staleness_max"] for step in training.steps} <= {0, 1}
            assert training.steps[-1]["restarts_rollout"] >= 1
        finally:
            show(training)
            training.stop()


def test_a_cut_from_all_engines_ends_the_run_with_one_line_within_its_limits(tmp_path: Path) -> None:
    """And the same command goes on once the cable is whole."""
    with two_hosts(3, 1) as hosts:
        training = training_on(hosts, tmp_path / "run", *AWAY)
        try:
            training.until(rf"^step +6/{STEPS}\b")
            hosts.lose_packets(100)
            assert training.end(400) == 2, training.printed[-6000:]
            (error,) = training.errors
            assert re.match(r"error: rollout-0 must get another place in the cluster within placement.ready_timeout_s "
                            r"= 60 s, got none: no node has room for rollout-0", error)
            show(training)
            hosts.lose_packets(0)
            hosts.second.ray(f"--address={hosts.address}", "--num-cpus=1", "--labels=pool=second")
            training = training_on(hosts, tmp_path / "run", *AWAY)
            assert training.end(400) == 0, training.printed[-6000:]
            assert training.summary["ledger"]["totals"] == {"trained": STEPS * GROUPS, "discarded": 0, "skipped": 0}
        finally:
            show(training)
            training.stop()
