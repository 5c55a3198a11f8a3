"""A folder of checkpoints: whole or not at all, any damage found, the last ones kept."""

import errno
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.config.checks import UserError
from rlaif.running import checkpoints as module
from rlaif.running.checkpoints import Checkpoints
from rlaif.running.manifest import MANIFEST, Damaged, entries_of, seal, verify
from tests.helpers.disks import small_disk

FILES = {"run.json": b'{"step": 1}\n', "learner/rank-0.pt": bytes(range(256)) * 9, "learner/empty.pt": b"",
         "portion/0.arrow": b"ARROW1"}


def fill(folder: Path, note: bytes = b"") -> None:
    for name, content in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content + (note if name == "run.json" else b""))


def written(store: Checkpoints, *steps: int, **how) -> None:
    for step in steps:
        beside = store.begin(step)
        fill(beside, str(step).encode())
        store.commit(beside, **how)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def newest(store: Checkpoints) -> tuple[int | None, list[str]]:
    said: list[str] = []
    found = store.newest(said.append)
    return found and found[0], said


def test_a_checkpoint_is_there_only_once_it_is_committed_and_comes_back_as_it_was(tmp_path):
    store = Checkpoints(tmp_path / "checkpoints")
    assert newest(store) == (None, []) and store.steps == []
    beside = store.begin(7)
    fill(beside)
    assert newest(store) == (None, []), "what is being written is no checkpoint"
    assert store.commit(beside) == store.path(7) == tmp_path / "checkpoints" / "step-000000007"
    assert newest(store) == (7, [])
    for name, content in FILES.items():
        assert (store.path(7) / name).read_bytes() == content
    assert names(store.folder) == ["step-000000007"]


def test_the_newest_is_that_of_the_highest_step_whatever_the_clock_says(tmp_path, monkeypatch):
    """A clock that jumps back a day between two checkpoints."""
    store = Checkpoints(tmp_path, keep=3)
    now = [2e9]
    monkeypatch.setattr(time, "time", lambda: now[0])
    for step in (8, 9, 10, 100):
        written(store, step)
        now[0] -= 86400.0
        for path in (store.path(step), *store.path(step).rglob("*")):
            os.utime(path, (now[0], now[0]))
    assert store.steps == [9, 10, 100] and newest(store) == (100, [])


def test_the_last_k_stay_and_those_that_are_asked_for(tmp_path):
    store = Checkpoints(tmp_path, keep=2)
    written(store, 10, 20)
    assert store.steps == [10, 20]
    written(store, 30, also=[10])
    assert store.steps == [10, 20, 30]
    written(store, 40, also=[10])
    assert store.steps == [10, 30, 40]
    written(store, 50)
    assert store.steps == [40, 50] and names(tmp_path) == ["step-000000040", "step-000000050"]


def test_a_step_that_is_written_again_takes_the_place_of_the_one_before(tmp_path):
    store = Checkpoints(tmp_path)
    written(store, 3)
    beside = store.begin(3)
    (beside / "run.json").write_text("new")
    store.commit(beside)
    assert names(store.path(3)) == [MANIFEST, "run.json"] and newest(store) == (3, []) and names(tmp_path) == [
        "step-000000003"]


def test_what_killed_attempts_left_is_removed_and_nothing_else(tmp_path):
    store = Checkpoints(tmp_path)
    written(store, 1)
    fill(store.begin(2))
    fill(store.begin(2))
    (tmp_path / "step-000000003.damaged").mkdir()
    assert store.tidy() == 2 and store.tidy() == 0
    assert names(tmp_path) == ["step-000000001", "step-000000003.damaged"]


def test_an_abandoned_checkpoint_leaves_nothing(tmp_path):
    store = Checkpoints(tmp_path)
    beside = store.begin(4)
    fill(beside)
    store.abandon(beside)
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
@pytest.mark.parametrize("what", ["missing", "cut short", "grown", "emptied"])
def test_every_file_that_is_not_as_it_was_makes_the_one_before_the_newest(tmp_path, name, what):
    store = Checkpoints(tmp_path)
    written(store, 1, 2)
    path = store.path(2) / name
    content = path.read_bytes()
    if what in ("cut short", "emptied") and not content:
        pytest.skip("there is nothing to cut off an empty file")
    if what == "missing":
        path.unlink()
    else:
        path.write_bytes({"cut short": content[:-1], "grown": content + b"\0", "emptied": b""}[what])
    step, said = newest(store)
    assert step == 1
    assert len(said) == 1 and said[0].startswith(f"checkpoint {store.path(2)} is refused: {name} "), said
    assert names(tmp_path) == ["step-000000001", "step-000000002.damaged"], "set aside, to be looked at"
    assert newest(store) == (1, []), "and told once"
    written(store, 2)
    assert newest(store) == (2, [])


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sealed") / "whole"
    folder.mkdir()
    fill(folder)
    seal(folder)
    return folder


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_a_byte_that_changed_is_found_wherever_it_is(sealed, data):
    name = data.draw(st.sampled_from([MANIFEST, *(name for name, content in FILES.items() if content)]))
    path = sealed / name
    before = path.read_bytes()
    place = data.draw(st.integers(0, len(before) - 1))
    flipped = bytearray(before)
    flipped[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(flipped)
    try:
        with pytest.raises(Damaged, match=name):
            verify(sealed)
    finally:
        path.write_bytes(before)
    verify(sealed)


def test_a_file_that_nobody_wrote_down_and_a_link_are_refused(sealed, tmp_path):
    for number, (name, fault) in enumerate({"added.pt": "added.pt is not in manifest.json",
                                            "learner/link.pt": "learner/link.pt is a link"}.items()):
        folder = tmp_path / str(number)
        shutil.copytree(sealed, folder)
        if "link" in name:
            (folder / name).symlink_to(sealed / "run.json")
        else:
            (folder / name).write_bytes(b"")
        with pytest.raises(Damaged, match=fault):
            verify(folder)


def test_with_no_whole_one_left_the_run_is_not_begun_anew_unasked(tmp_path):
    store = Checkpoints(tmp_path)
    written(store, 1, 2)
    for step in (1, 2):
        (store.path(step) / "run.json").unlink()
    for _ in range(2):
        with pytest.raises(UserError, match=r"got only damaged ones in .* \(step-000000001.damaged, "
                                            r"step-000000002.damaged\); .*checkpoint.resume=never"):
            newest(store)
    assert store.clear() == 0 and newest(store) == (None, [])


def test_checksums_that_writers_tell_are_not_computed_again(tmp_path):
    store = Checkpoints(tmp_path)
    beside = store.begin(1)
    fill(beside)
    known = entries_of(beside, ["learner/rank-0.pt"])
    wrong = {name: type(entry)(entry.size, "0" * 64) for name, entry in known.items()}
    store.commit(beside, known=wrong)
    assert newest_fails(store, "learner/rank-0.pt is not the file that was written")
    beside = store.begin(2)
    fill(beside)
    store.commit(beside, known=known)
    assert newest(store)[0] == 2


def newest_fails(store: Checkpoints, why: str) -> bool:
    with pytest.raises(Damaged, match=why):
        verify(store.path(store.steps[-1]))
    return True


def test_a_full_disk_is_told_in_one_line_and_older_checkpoints_are_whole(tmp_path):
    with small_disk(tmp_path / "disk", 1) as disk:
        store = Checkpoints(disk / "checkpoints", keep=9)
        written(store, 1)
        with (disk / "ballast").open("wb") as file, pytest.raises(OSError) as full:
            while True:
                file.write(b"\0" * 65536)
                file.flush()
        assert full.value.errno == errno.ENOSPC
        with pytest.raises(UserError) as told:      # some bytes may still fit
            for step in range(2, 1000):
                beside = store.begin(step)
                try:
                    with module.told(store.folder):
                        fill(beside)
                    store.commit(beside)
                except UserError:
                    store.abandon(beside)
                    raise
        assert str(told.value) == (
            f"output_dir must take what the run writes, got 'No space left on device (0 MB free)' in "
            f"{str(store.folder)!r}; free some space and run the same command again: it goes on from the newest "
            "checkpoint")
        last = store.steps[-1]
        for step in store.steps:
            verify(store.path(step))
        assert newest(store) == (last, [])
        (disk / "ballast").unlink()
        store.tidy()
        written(store, last + 1)
        assert newest(store) == (last + 1, [])


@pytest.mark.parametrize("failing", ["write_bytes", "rename", "fsync"])
def test_an_error_at_any_moment_of_a_commit_leaves_the_older_ones(tmp_path, monkeypatch, failing):
    store = Checkpoints(tmp_path, keep=1)
    written(store, 1)
    beside = store.begin(2)
    fill(beside)

    def fail(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync") if failing == "fsync" else (Path, failing)), fail)
        with pytest.raises(UserError, match="must take what the run writes, got 'Input/output error'"):
            store.commit(beside)
    store.abandon(beside)
    assert newest(store) == (1, []) and names(tmp_path) == ["step-000000001"]


@pytest.mark.parametrize("reader", ["open", "read_bytes"])
def test_a_file_that_is_out_of_reach_is_no_damage(tmp_path, monkeypatch, reader):
    """As on storage whose server is away: nothing is set aside, and what is there is found again later."""
    store = Checkpoints(tmp_path)
    written(store, 1)

    def stale(path, *_, **__):
        raise OSError(errno.ESTALE, "Stale file handle", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, reader, stale)
        with pytest.raises(UserError, match="output_dir must be a folder that can be read, got 'Stale file handle'"):
            newest(store)
    assert newest(store) == (1, []) and names(tmp_path) == ["step-000000001"]


def test_a_read_only_folder_is_told_in_one_line(tmp_path):
    with small_disk(tmp_path / "disk", 1) as disk:
        store = Checkpoints(disk / "checkpoints")
        written(store, 1)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(UserError) as told:
            store.begin(2)
        assert str(told.value) == (
            f"output_dir must take what the run writes, got 'Read-only file system' in {str(store.folder)!r}; make it "
            "a folder that can be written and run the same command again: it goes on from the newest checkpoint")
        assert newest(store) == (1, [])


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    """kill -9 of a process that writes checkpoints without end, at random moments: the newest one verifies, and steps
    never go back."""
    script = ("import sys; from pathlib import Path; from rlaif.running.checkpoints import Checkpoints\n"
              "store = Checkpoints(sys.argv[1]); store.tidy(); step = (store.newest(sys.exit) or [0])[0]\n"
              "print('begins', flush=True)\n"
              "while True:\n"
              "    step += 1; beside = store.begin(step)\n"
              "    for n in range(3): (beside / f'{n}.bin').write_bytes(bytes([step % 256]) * 100_000)\n"
              "    store.commit(beside)\n")
    chance, last = random.Random(5), 0
    for _ in range(6):
        with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stdout.readline() == b"begins\n"
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(chance.uniform(0.05, 0.4))
            process.kill()
        step, said = newest(Checkpoints(tmp_path))
        assert said == [] and step is not None and step >= last
        last = step
    assert last > 6
