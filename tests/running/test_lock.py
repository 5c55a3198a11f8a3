"""One process writes into a run's folder."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from rlaif.config.checks import UserError
from rlaif.running import lock
from rlaif.running.lock import LOCK_FILE, held
from tests.helpers.disks import small_disk

HOLD = ("import sys; from rlaif.running.lock import held\n"
        "with held(sys.argv[1]):\n"
        "    print('holds', flush=True); sys.stdin.read()\n")


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
                          ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"holds\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_with_host_and_pid_of_the_first(tmp_path, holder):
    with pytest.raises(UserError) as refused, held(tmp_path):
        pass
    assert str(refused.value) == (
        f"output_dir must be used by one process at a time, got {str(tmp_path)!r}, which process {holder.pid} on "
        f"{os.uname().nodename} is using; wait for it, end it, or choose another output_dir")


def test_the_lock_of_a_process_that_was_killed_is_taken_over(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    said: list[str] = []
    with held(tmp_path, said.append):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
    assert said == [f"{tmp_path} is taken over from process {holder.pid} on {os.uname().nodename}, which has ended"]


def test_a_lock_that_was_given_back_is_taken_in_silence(tmp_path):
    for _ in range(2):
        with held(tmp_path / "new" / "run", pytest.fail):
            assert (tmp_path / "new" / "run" / LOCK_FILE).is_file()
        assert not (tmp_path / "new" / "run").exists(), "and a folder that was made for it alone is gone"
    (tmp_path / "file").write_text("")
    with held(tmp_path, pytest.fail):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "new"]


def test_a_holder_on_another_host_is_heard_of_by_its_beat(tmp_path, monkeypatch):
    """As where a shared file system keeps locks on each host alone: the kernel gives the lock, the file is written to.
    """
    monkeypatch.setattr(lock, "BEAT_S", 0.2)
    path, said = tmp_path / LOCK_FILE, []
    path.write_text(json.dumps({"host": "node-7", "pid": 41, "beat": 3}))
    beating = subprocess.Popen([sys.executable, "-c", (
        "import json, os, sys, time\n"
        "file = os.open(sys.argv[1], os.O_RDWR)\n"
        "for beat in range(4, 400):\n"
        "    os.pwrite(file, json.dumps({'host': 'node-7', 'pid': 41, 'beat': beat}).encode(), 0); time.sleep(0.1)")
        , str(path)])
    try:
        while '"beat": 3}' in path.read_text():
            time.sleep(0.01)
        with pytest.raises(UserError, match="which process 41 on node-7 is using"), held(tmp_path, said.append):
            pass
    finally:
        beating.kill()
        beating.wait()
    path.write_text(json.dumps({"host": "node-7", "pid": 41, "beat": 3}))
    with held(tmp_path, said.append):
        pass
    assert said[-1] == f"{tmp_path} is taken over from process 41 on node-7, which has ended"
    assert said[0] == f"{tmp_path} was held by process 41 on node-7: waiting 0.8 s to see whether it lives"


def test_a_holder_that_gives_the_lock_back_meanwhile_leaves_no_lock_that_nobody_sees(tmp_path, monkeypatch):
    """The file that was waited for is gone then: a third process would make another one."""
    monkeypatch.setattr(lock, "BEAT_S", 0.2)
    path = tmp_path / LOCK_FILE
    path.write_text(json.dumps({"host": "node-7", "pid": 41, "beat": 3}))
    with pytest.raises(UserError, match="process 41 on node-7"), held(tmp_path, lambda line: path.unlink()):
        pass


def test_a_full_disk_is_told_in_one_line(tmp_path):
    with small_disk(tmp_path / "disk", 1) as disk:
        with (disk / "ballast").open("wb", buffering=0) as ballast, pytest.raises(OSError):
            while True:
                ballast.write(bytes(4096))
        with pytest.raises(UserError, match="must take what the run writes, got 'No space left on device"), held(disk):
            pass
        (disk / "ballast").unlink()
        with held(disk, pytest.fail):
            pass


def test_without_locks_of_the_file_system_the_pid_decides(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_flock", lambda handle: None)
    path = tmp_path / LOCK_FILE
    path.write_text(json.dumps({"host": "here", "pid": os.getppid(), "beat": 0}))
    with pytest.raises(UserError, match=f"process {os.getppid()} on here"), held(tmp_path, host="here"):
        pass
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    path.write_text(json.dumps({"host": "here", "pid": ended.pid, "beat": 0}))
    with held(tmp_path, lambda line: None, host="here"):
        pass


def test_a_lock_file_that_was_cut_short_is_looked_at_before_it_is_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_S", 0.05)
    (tmp_path / LOCK_FILE).write_text('{"host": "no')
    said: list[str] = []
    with held(tmp_path, said.append):
        pass
    assert said[0].endswith("was held by process unknown on an unknown host: waiting 0.2 s to see whether it lives")


def test_the_holder_changes_the_file_while_it_lives(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_S", 0.05)
    with held(tmp_path):
        beats = set()
        deadline = time.monotonic() + 5
        while len(beats) < 3 and time.monotonic() < deadline:
            beats.add((tmp_path / LOCK_FILE).read_text())
            time.sleep(0.01)
        assert len(beats) >= 3
