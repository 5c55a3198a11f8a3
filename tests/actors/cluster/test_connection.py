import socket

import pytest
import ray

from actors.cluster.connection import actor_environment, connect
from rlaif.config.checks import UserError


def test_an_address_where_nothing_answers_is_refused_at_once_with_the_cure(monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=f"RAY_ADDRESS must name a running Ray cluster, got '{address}'.*or unset"):
        connect()
    assert not ray.is_initialized()


def test_an_actor_without_a_gpu_sees_none_and_one_with_a_gpu_is_left_to_ray():
    on_cpu, on_gpu = (actor_environment(3, gpus)["env_vars"] for gpus in (0, 0.5))
    assert on_cpu["CUDA_VISIBLE_DEVICES"] == "" and on_cpu["OMP_NUM_THREADS"] == "3"
    assert "CUDA_VISIBLE_DEVICES" not in on_gpu
