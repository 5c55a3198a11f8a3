"""What the two doors use of vLLM and DeepSpeed, pinned: a patch release that changes it fails here first."""

from __future__ import annotations

import pytest
import torch

from actors.sync_client import SyncClient
from rlaif.config.learner import LearnerConfig
from rlaif.modeling.models import load_causal_lm
from tests.real.conftest import START

POLICY = str(START / "policy")


def test_direct_senders_take_what_we_give_them() -> None:
    from vllm.distributed.weight_transfer.base import VLLMWeightSyncClient

    from actors import engine

    assert isinstance(SyncClient([], 1, 60.0), VLLMWeightSyncClient)
    nccl = engine.NCCLTrainerInitInfo("10.0.0.1", 29500, 3, rank=0)
    assert (nccl.master_address, nccl.master_port, nccl.world_size, nccl.is_sender) == ("10.0.0.1", 29500, 3, True)
    assert not engine.IPCTrainerInitInfo(rank=1).is_sender
    weights = [("a", torch.ones(2, 3)), ("b", torch.zeros(4))]
    source = engine._Source([(name, t.dtype, tuple(t.shape)) for name, t in weights], lambda: iter(weights))
    assert [(meta.name, meta.dtype, meta.shape) for meta in source.metadata()] == [
        ("a", torch.float32, (2, 3)), ("b", torch.float32, (4,))]
    assert [name for name, _ in source] == ["a", "b"]


def test_every_engine_gets_its_own_ranks_in_the_group(monkeypatch) -> None:
    given = []

    class Verb:
        def remote(self, info):
            given.append(info)

    class Actor:
        open_channel = Verb()

    monkeypatch.setattr("actors.sync_client.ray.get", lambda references, timeout: references)
    SyncClient([Actor(), Actor(), Actor()], workers_per_engine=2, timeout_s=60.0).init_weight_transfer_engine(
        {"rank_offset": 1, "world_size": 7})
    assert [info["rank_offset"] for info in given] == [1, 3, 5]


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_shapes_describe_the_weights_as_they_come_whole(zero_stage: int, distributed) -> None:
    from actors.zero import ZeroEngine

    start = {name: tensor.detach().clone() for name, tensor in load_causal_lm(POLICY, "float32").named_parameters()}
    model = load_causal_lm(POLICY, "float32")
    engine = ZeroEngine(model, model, LearnerConfig(zero_stage=zero_stage), torch.device("cpu"))
    whole = {name: tensor.detach().clone() for name, tensor in engine.each_whole_weight()}
    assert engine.shapes() == [(name, t.dtype, tuple(t.shape)) for name, t in whole.items()]
    assert whole.keys() == start.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(tensor, start[name], rtol=0, atol=0)
