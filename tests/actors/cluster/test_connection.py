import socket

import pytest
import ray

from actors.cluster import connection
from actors.cluster.connection import actor_environment, connect, running_address
from rlaif.config.checks import UserError


def test_an_address_where_nothing_answers_is_refused_at_once_with_the_cure(monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=f"RAY_ADDRESS must name a running Ray cluster, got '{address}'.*or unset"):
        connect()
    assert not ray.is_initialized()


@pytest.mark.parametrize("is_named", [True, False])
def test_a_cluster_that_listens_and_does_not_answer_is_refused_in_time(monkeypatch, tmp_path, is_named):
    """One that is ending, as it was noted by `ray start` or named by the user; nothing of it is waited for."""
    monkeypatch.setattr(connection, "ANSWER_S", 0.5)
    monkeypatch.setattr(connection, "CURRENT_CLUSTER", tmp_path / "noted")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        if is_named:
            monkeypatch.setenv("RAY_ADDRESS", address)
            told = f"RAY_ADDRESS must name a running Ray cluster, got '{address}', which gives no answer in 0.5 s"
        else:
            (tmp_path / "noted").write_text(address + "\n")
            told = f"noted names must answer, got '{address}', which gives no answer in 0.5 s; wait .*=local"
        with pytest.raises(UserError, match=told):
            connect()
    assert not ray.is_initialized()


def test_what_was_noted_and_has_ended_is_no_cluster_and_neither_is_local(monkeypatch, tmp_path):
    monkeypatch.setattr(connection, "CURRENT_CLUSTER", tmp_path / "noted")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert running_address() is None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        (tmp_path / "noted").write_text(f"127.0.0.1:{probe.getsockname()[1]}")
    assert running_address() is None
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert running_address() is None


def test_an_actor_without_a_gpu_sees_none_and_one_with_a_gpu_is_left_to_ray():
    on_cpu, on_gpu = (actor_environment(3, gpus)["env_vars"] for gpus in (0, 0.5))
    assert on_cpu["CUDA_VISIBLE_DEVICES"] == "" and on_cpu["OMP_NUM_THREADS"] == "3"
    assert "CUDA_VISIBLE_DEVICES" not in on_gpu
