import pytest
import torch
from transformers import AutoModelForCausalLM

from rlaif.config.learner import LearnerConfig, LoraConfig
from rlaif.config.train import EngineConfig, WeightSyncConfig
from rlaif.planning.cluster import GIB, GPU_KINDS
from rlaif.planning.memory import (
    activation_bytes,
    bucket_memory,
    engine_memory,
    kv_bytes,
    learner_memory,
    reader_memory,
    total,
)
from rlaif.planning.shapes import shape_of
from tests.planning.test_shapes import MODELS

P = 7_615_616_512


@pytest.fixture(scope="module")
def qwen():
    return shape_of("qwen", "causal", MODELS, "policy.model")


def items(shape, config, num_ranks=1, *, has_gpu=True, reference=False, critic=None, max_row_tokens=1):
    return learner_memory(shape, config, num_ranks, has_gpu=has_gpu, reference=shape if reference else None,
                          critic=critic, max_row_tokens=max_row_tokens)


def known(found, place="gpu"):
    return {item.name: item.bytes for item in found if item.is_known and item.place == place}


# What section 5 of the ZeRO paper says of mixed precision: 2 P, 2 P and 12 P bytes, over N ranks stage by stage.
@pytest.mark.parametrize(("stage", "weights", "gradients", "optimizer"), [
    (0, 2, 2, 12), (1, 2, 2, 12 / 8), (2, 2, 2 / 8, 12 / 8), (3, 2 / 8, 2 / 8, 12 / 8)])
def test_a_rank_holds_what_the_zero_paper_says(qwen, stage, weights, gradients, optimizer):
    found = known(items(qwen, LearnerConfig(dtype="bfloat16", zero_stage=stage), 8))
    assert found == pytest.approx({"weights": weights * P, "gradients": gradients * P, "optimizer": optimizer * P})


def test_float32_has_no_second_copy_unless_zero_keeps_one(qwen):
    assert known(items(qwen, LearnerConfig()))["optimizer"] == 8 * P
    assert known(items(qwen, LearnerConfig(zero_stage=1), 2))["optimizer"] == 12 * P / 2


def test_plain_torch_holds_as_much_for_a_real_model(folders):
    model = AutoModelForCausalLM.from_pretrained(folders.causal)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.tensor([[1, 2, 3]])).logits.sum().backward()
    optimizer.step()
    parameters = list(model.parameters())
    moments = sum(state[name].nbytes for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq"))
    shape = shape_of(str(folders.causal), "causal", {}, "policy.model")
    assert known(items(shape, LearnerConfig(), has_gpu=False), "host") == {
        "weights": sum(weight.nbytes for weight in parameters),
        "gradients": sum(weight.grad.nbytes for weight in parameters), "optimizer": moments}


def test_offload_moves_the_optimizer_to_the_host(qwen):
    found = items(qwen, LearnerConfig(dtype="bfloat16", zero_stage=2, offload=True), 4)
    assert "optimizer" not in known(found) and known(found, "host") == {"optimizer": 3 * P}


def test_adapters_alone_are_trained_and_need_no_reference(qwen):
    found = known(items(qwen, LearnerConfig(dtype="bfloat16", lora=LoraConfig(rank=16)), 1))
    # Seven layers of a block: 2 x (3584, 3584), 2 x (3584, 512), 2 x (3584, 18944), (18944, 3584).
    adapters = 16 * 28 * (2 * (3584 + 3584) + 2 * (3584 + 512) + 3 * (3584 + 18944))
    assert found == {"weights": 2 * (P + adapters), "gradients": 2 * adapters, "optimizer": 12 * adapters}


def test_muon_keeps_one_moment_of_a_matrix(qwen):
    matrices = 28 * (2 * 3584 * 3584 + 2 * 3584 * 512 + 3 * 3584 * 18944)
    found = known(items(qwen, LearnerConfig(optimizer="muon")))
    assert found["optimizer"] == 8 * P - 4 * matrices


def test_reference_and_critic_are_whole_models_of_their_own(qwen):
    plain = known(items(qwen, LearnerConfig(dtype="bfloat16", zero_stage=3), 8))
    more = known(items(qwen, LearnerConfig(dtype="bfloat16", zero_stage=3), 8, reference=True, critic=qwen))
    assert more["reference"] == 2 * P       # whole on every rank
    assert {name: more[name] / plain[name] for name in plain} == dict.fromkeys(plain, 2.0)


def test_activations_grow_with_tokens_and_checkpointing_keeps_one_layer_and_the_inputs(qwen):
    layer = activation_bytes(qwen, 1000, 2, checkpointing=False) / 28
    assert layer == 1000 * (2 * (6 * 3584 + 2 * 512 + 4 * 18944) + 16 * 3584)
    assert activation_bytes(qwen, 1000, 2, checkpointing=True) == layer + 28 * 1000 * 2 * 3584
    once, twice = (activation_bytes(qwen, tokens, 2, checkpointing=True) for tokens in (1000, 2000))
    assert twice == 2 * once


def test_a_row_longer_than_micro_batch_tokens_is_held_whole(qwen):
    short, long = (next(item.bytes for item in items(qwen, LearnerConfig(micro_batch_tokens=64), max_row_tokens=size)
                        if item.name == "activations") for size in (64, 640))
    assert long == 10 * short


def test_what_is_there_between_steps_are_the_known_parts_alone(qwen):
    found = items(qwen, LearnerConfig(dtype="bfloat16", zero_stage=3), 8, reference=True)
    assert {item.name for item in found if item.place == "gpu" and not item.is_lasting} == {
        "activations", "logits", "ZeRO buffers"}
    assert total(found, "gpu", known=True) < total(found, "gpu", lasting=True) < total(found, "gpu")


def test_a_token_of_this_model_takes_56_kib_of_kv_cache(qwen):
    # 2 (keys, values) x 28 layers x 4 heads x 128 numbers x 2 bytes.
    assert kv_bytes(qwen, EngineConfig(dtype="bfloat16")) == 57_344
    assert kv_bytes(qwen, EngineConfig(dtype="bfloat16", tensor_parallel_size=2)) == 57_344 / 2
    assert kv_bytes(qwen, EngineConfig(dtype="bfloat16", tensor_parallel_size=8)) == 57_344 / 4     # heads are copied


def test_an_engine_takes_its_share_of_the_gpu_and_the_rest_is_kv_cache(qwen):
    config = EngineConfig(dtype="bfloat16", gpu_memory_utilization=0.5, max_model_len=4096)
    engine = engine_memory(qwen, config, GPU_KINDS["H100"])
    assert total(engine.items, "gpu") == pytest.approx(0.5 * 79.6 * GIB)
    assert engine.room == pytest.approx(0.5 * 79.6 * GIB - 2 * P)
    # 8192 tokens of a prefill, logits of 128 sequences, CUDA: estimates that go off it.
    working = 8192 * 2 * (8 * 3584 + 3 * 18944) + 128 * 152064 * 10 + GIB
    assert engine.num_sequences == int((engine.room - working) // (57_344 * 4096)) == 105


def test_an_engine_on_a_cpu_takes_what_it_is_given(qwen):
    engine = engine_memory(qwen, EngineConfig(kv_cache_mb=1024, max_model_len=128), None)
    found = {item.name: item.bytes for item in engine.items}
    assert (found["weights"], found["KV cache"]) == (4 * P, GIB)
    assert engine.num_sequences == GIB // (2 * 57_344 * 128)


def test_an_engine_that_sleeps_keeps_its_weights_on_the_host(qwen):
    asleep, awake = (total(engine_memory(qwen, EngineConfig(sleeps=sleeps), GPU_KINDS["H200"]).items, "host")
                     for sleeps in (True, False))
    assert asleep - awake == 4 * P


def test_an_encoder_that_only_reads_holds_weights_and_a_layers_states():
    bert = shape_of("bert", "masked", MODELS, "reward.model")
    found = {item.name: item.bytes for item in reader_memory(bert, "float32", 100, has_gpu=False)}
    assert found["weights"] == 4 * bert.num_weights and found["activations"] == 100 * 4 * (8 * 64 + 3 * 96)


def test_two_buckets_wait_on_the_host_as_large_as_asked_for_or_as_the_largest_weight(qwen, folders):
    def known_buckets(backend, role, bucket_mb=64, shape=qwen, dtype="bfloat16"):
        return known(bucket_memory(shape, WeightSyncConfig(backend, bucket_mb=bucket_mb), EngineConfig(dtype=dtype),
                                   role), "host")

    embedding = 152_064 * 3584
    assert known_buckets("shared_memory", "learner") == {"sync buckets": 2 * 2 * embedding}
    assert known_buckets("shared_memory", "learner", dtype="float32") == {"sync buckets": 2 * 4 * embedding}
    assert known_buckets("shared_memory", "learner", 4096) == {"sync buckets": 2 * 4096 << 20}
    assert known_buckets("gloo", "rollout") == {"sync buckets": 2 * 2 * embedding}
    assert known_buckets("shared_memory", "rollout") == known_buckets("nccl", "learner") == {}
    small = shape_of(str(folders.causal), "causal", {}, "policy.model")
    assert known_buckets("shared_memory", "learner", shape=small) == {"sync buckets": 2 * 2 * small.num_weights}
    for backend, count in (("nccl", 2), ("ipc", 1)):
        (item,) = bucket_memory(qwen, WeightSyncConfig(backend), EngineConfig(dtype="bfloat16"), "learner")
        assert (item.place, item.bytes) == ("gpu", count * 2 * embedding)
