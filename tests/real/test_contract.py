"""What the two doors use of vLLM and DeepSpeed, pinned: a patch release that changes it fails here first."""

from __future__ import annotations

import dataclasses
import inspect

import pytest
import torch

from actors.engines.sync_client import SyncClient
from rlaif.config.learner import LearnerConfig, LoraConfig
from rlaif.learning.lora import add_lora
from rlaif.modeling.models import load_causal_lm
from tests.real.conftest import START

POLICY = str(START / "policy")


def test_direct_senders_take_what_we_give_them() -> None:
    from vllm.distributed.weight_transfer.base import VLLMWeightSyncClient

    from actors.engines import engine

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

    monkeypatch.setattr("actors.engines.sync_client.ray.get", lambda references, timeout: references)
    SyncClient([Actor(), Actor(), Actor()], workers_per_engine=2, timeout_s=60.0).init_weight_transfer_engine(
        {"rank_offset": 1, "world_size": 7})
    assert [info["rank_offset"] for info in given] == [1, 3, 5]


def test_a_layer_that_waits_for_weights_says_so_as_we_read_it() -> None:
    """actors.engines.engine_worker copies what such a layer keeps, counts such layers, and makes them forget."""
    from vllm.model_executor.model_loader.reload.types import LayerReloadingInfo
    from vllm.v1.engine.core_client import AsyncMPClient
    from vllm.v1.worker.gpu_worker import Worker

    from actors.engines.engine_worker import BACKENDS, WorkerExtension

    info = LayerReloadingInfo(({}, {}), torch.device("cpu"))
    assert not info.can_load() and info.loaded_weights == [] and info.load_numel == 0
    info.load_numel_total = 12
    assert info.can_load()
    assert "_weight_update_active" in inspect.getsource(Worker.update_weights)
    for name in ("forget_half_update", "weight_marks"):
        assert callable(getattr(WorkerExtension, name)) and not hasattr(Worker, name), "vLLM has no such method itself"
    assert {"mode", "clear_cache"} <= inspect.signature(AsyncMPClient.pause_scheduler_async).parameters.keys()
    assert set(BACKENDS) == {"shared_memory", "gloo"}


def test_an_engine_sleeps_and_wakes_as_we_ask_it_to() -> None:
    """On a CPU vLLM cannot: there rollout.engine.sleeps is refused before an actor starts."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    sleep = inspect.signature(AsyncLLM.sleep).parameters
    assert {"level", "mode"} <= sleep.keys() and "wait" in str(sleep["mode"].annotation) + str(
        inspect.getmodule(AsyncLLM).PauseMode)
    assert "tags" in inspect.signature(AsyncLLM.wake_up).parameters
    assert "enable_sleep_mode" in {field.name for field in dataclasses.fields(AsyncEngineArgs)}


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_shapes_describe_the_weights_as_they_come_whole(zero_stage: int, distributed) -> None:
    from actors.learners.zero import ZeroEngine

    start = {name: tensor.detach().clone() for name, tensor in load_causal_lm(POLICY, "float32").named_parameters()}
    model = load_causal_lm(POLICY, "float32")
    engine = ZeroEngine(model, model, LearnerConfig(zero_stage=zero_stage), torch.device("cpu"))
    whole = {name: tensor.detach().clone() for name, tensor in engine.each_whole_weight()}
    assert engine.shapes() == [(name, t.dtype, tuple(t.shape)) for name, t in whole.items()]
    assert whole.keys() == start.keys()
    assert engine.changing() == list(whole)
    some = list(whole)[1:3]
    assert [name for name, _ in engine.each_whole_weight(some)] == some
    for name, tensor in whole.items():
        torch.testing.assert_close(tensor, start[name], rtol=0, atol=0)


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_with_adapters_the_adapted_weights_change_and_no_others(zero_stage: int, distributed) -> None:
    from actors.learners.zero import ZeroEngine

    model = load_causal_lm(POLICY, "float32")
    start = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    lora = LoraConfig(rank=4, target_modules=["q_proj", "v_proj"])
    add_lora(model, lora, seed=0)
    factors = [(layer.lora_A["default"].weight.detach().clone(), 0.1 * torch.ones_like(layer.lora_B["default"].weight))
               for layer in model.modules() if hasattr(layer, "lora_A")]
    for layer, (_, second) in zip([each for each in model.modules() if hasattr(each, "lora_A")], factors, strict=True):
        layer.lora_B["default"].weight.data.copy_(second)
    engine = ZeroEngine(model, model, LearnerConfig(zero_stage=zero_stage, lora=lora), torch.device("cpu"))
    adapted = [name for name in start if "q_proj" in name or "v_proj" in name]
    assert engine.changing() == adapted
    whole = {name: tensor.clone() for name, tensor in engine.each_whole_weight()}
    merged = {name: tensor.clone() for name, tensor in engine.each_whole_weight(set(adapted))}
    assert list(merged) == adapted
    for name, (first, second) in zip(adapted, factors, strict=True):
        torch.testing.assert_close(merged[name], start[name] + 2 * second @ first)
        torch.testing.assert_close(merged[name], whole[name], rtol=0, atol=0)
    for name in start.keys() - set(adapted):
        torch.testing.assert_close(whole[name], start[name], rtol=0, atol=0)
