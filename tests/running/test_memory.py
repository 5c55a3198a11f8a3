import os
import subprocess
import sys
import time

import psutil
import pytest

from rlaif.running import memory
from rlaif.running.memory import PeakMemory

HOLD = "import sys; held = b'x' * {size}; print('ready', flush=True); sys.stdin.read()"


@pytest.fixture
def alone(monkeypatch):
    """Only this process and its descendants: another run on this machine must not move the figures."""
    monkeypatch.setattr(psutil, "process_iter", lambda attributes: iter(()))


def measured(inside):
    with PeakMemory(interval_s=0.02) as peak:
        inside()
        time.sleep(0.2)
    return peak.peak_gb


def test_what_a_descendant_holds_counts_and_is_remembered_after_its_end(alone):
    before = measured(lambda: None)
    with PeakMemory(interval_s=0.02) as peak:
        child = subprocess.Popen([sys.executable, "-c", HOLD.format(size=200 << 20)], stdin=subprocess.PIPE,
                                 stdout=subprocess.PIPE)
        assert child.stdout.readline() == b"ready\n"
        time.sleep(0.2)
        child.communicate()
        time.sleep(0.1)
    assert 0.2 < peak.peak_gb - before < 0.4


def test_this_process_counts(alone):
    rss = psutil.Process(os.getpid()).memory_info().rss / 1e9
    assert 0.3 * rss < measured(lambda: None) < 1.5 * rss


def test_processes_of_ray_count_although_they_are_no_descendants(monkeypatch):
    child = subprocess.Popen([sys.executable, "-c", HOLD.format(size=100 << 20)], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"ready\n"
    actor = psutil.Process(child.pid)
    monkeypatch.setattr(memory, "_children", lambda process: [])    # as if it were nobody's child
    totals = {}
    for line in ("ray::LearnerActor", "/usr/bin/raylet", "/usr/bin/other"):
        actor.info = {"cmdline": [line]}
        monkeypatch.setattr(psutil, "process_iter", lambda attributes: iter([actor]))
        totals[line] = memory._total_bytes()
    child.communicate()
    assert totals["ray::LearnerActor"] - totals["/usr/bin/other"] > 90 << 20
    assert totals["/usr/bin/raylet"] - totals["/usr/bin/other"] > 90 << 20


def test_a_process_that_ended_meanwhile_counts_nothing():
    child = subprocess.Popen([sys.executable, "-c", ""])
    process = psutil.Process(child.pid)
    child.wait()
    assert memory._bytes(process) == 0 and memory._children(process) == []
