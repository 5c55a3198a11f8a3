"""Which processes are ended with an actor, told apart without the time of day."""

import subprocess
import time

import psutil

from actors.faults.restarts import end_processes
from actors.faults.vitals import birth


def test_the_processes_of_an_actor_are_ended_although_the_clock_was_set(monkeypatch):
    with subprocess.Popen(["sleep", "60"]) as process:
        known = ((process.pid, birth(process.pid)),)
        boot = psutil.boot_time()
        monkeypatch.setattr("psutil._pslinux.boot_time", lambda: boot + 3600.0)
        assert end_processes(known) == 1
        assert process.wait(10) == -9
    assert end_processes(known) == 0


def test_another_process_of_the_same_number_is_left_alone():
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            assert end_processes(((process.pid, birth(process.pid) - 0.5),)) == 0
            time.sleep(0.1)
            assert process.poll() is None
        finally:
            process.kill()
