"""Engines that share a GPU look at its memory one after the other."""

import threading

import pytest

from actors.engines.gpu_turns import starting_alone


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def in_another_thread():
    """(has it been let in, the thread)"""
    let_in = threading.Event()

    def start():
        with starting_alone():
            let_in.set()

    thread = threading.Thread(target=start, daemon=True)
    thread.start()
    return let_in, thread


def test_the_next_engine_waits_until_the_one_before_has_started(own_folder, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with starting_alone():
        let_in, thread = in_another_thread()
        assert not let_in.wait(0.3)
    assert let_in.wait(10)
    thread.join(10)


def test_an_engine_that_fails_to_start_lets_the_next_one_in(own_folder, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(RuntimeError), starting_alone():
        raise RuntimeError("out of memory")
    assert in_another_thread()[0].wait(10)


def test_engines_on_other_gpus_do_not_wait(own_folder, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with starting_alone():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1/x")
        assert in_another_thread()[0].wait(10)
