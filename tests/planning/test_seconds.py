import pytest

from rlaif.config.algorithm import AlgorithmConfig
from rlaif.config.learner import LearnerConfig
from rlaif.config.train import EngineConfig
from rlaif.planning.cluster import GPU_KINDS, GpuKind
from rlaif.planning.seconds import BANDWIDTH, PASS_S, PRODUCTS, Load, generate_s, learn_s, read_s, sync_s
from rlaif.planning.shapes import shape_of
from rlaif.planning.traffic import traffic
from tests.planning.test_shapes import MODELS

H100 = GPU_KINDS["H100"]
BF16 = EngineConfig(dtype="bfloat16", max_num_seqs=1, enforce_eager=False)


@pytest.fixture(scope="module")
def qwen():
    return shape_of("qwen", "causal", MODELS, "policy.model")


def generate(model, config=BF16, gpu=H100, **changed):
    return generate_s(model, config, gpu, **({"num_engines": 1, "num_sequences": 100, "num_rows": 1, "prompt_tokens": 0,
                                              "new_tokens": 100} | changed))


def test_one_sequence_reads_all_weights_for_every_token(qwen):
    weights = 2 * qwen.num_in_products
    cache = 50 * 57_344     # half of the completion on average
    assert generate(qwen) == pytest.approx(
        100 * ((weights + cache) / (H100.bandwidth * BANDWIDTH) + PASS_S[False]), rel=1e-6)


def test_many_sequences_are_bound_by_products(qwen):
    fast = GpuKind("fast memory", 1, 1e12, 1e30)
    many = generate(qwen, EngineConfig(dtype="bfloat16", max_num_seqs=512, enforce_eager=False), fast, num_rows=512,
                    num_sequences=512)
    assert many == pytest.approx(100 * (2 * qwen.num_in_products * 512 / (1e12 * PRODUCTS) + PASS_S[False]))


def test_what_the_kv_cache_cannot_hold_waits_for_another_round(qwen):
    config = EngineConfig(dtype="bfloat16", max_num_seqs=64)
    whole, half = (generate(qwen, config, num_rows=64, num_sequences=count) for count in (64, 32))
    assert 1.5 * whole < half < 2 * whole


def test_engines_share_the_rows_and_gpus_the_work_of_an_engine(qwen):
    assert generate(qwen, num_rows=8, num_engines=2) == generate(qwen, num_rows=4)
    two = EngineConfig(dtype="bfloat16", max_num_seqs=1, enforce_eager=False, tensor_parallel_size=2)
    assert generate(qwen, two) - 100 * PASS_S[False] == pytest.approx((generate(qwen) - 100 * PASS_S[False]) / 2)


@pytest.mark.parametrize(("learner", "algorithm", "passes"), [
    (LearnerConfig(), AlgorithmConfig(kl_coefficient=0.0), 3),
    (LearnerConfig(activation_checkpointing=True), AlgorithmConfig(kl_coefficient=0.0), 4),
    (LearnerConfig(), AlgorithmConfig(kl_coefficient=0.1), 4),                          # the reference reads too
    (LearnerConfig(), AlgorithmConfig(kl_coefficient=0.0, num_minibatches=2), 4),       # the policy before its steps
    (LearnerConfig(), AlgorithmConfig(kl_coefficient=0.0, num_epochs=2), 7),
])
def test_an_update_is_so_many_passes_over_the_tokens(qwen, learner, algorithm, passes):
    found = learn_s(qwen, learner, algorithm, H100, num_ranks=4, num_tokens=1000,
                    has_reference=algorithm.kl_coefficient > 0, critic=None)
    assert found == pytest.approx(2 * qwen.num_in_products * passes * 1000 / (4 * H100.flops * PRODUCTS))


def test_a_judge_reads_each_token_once(qwen):
    assert read_s(qwen, H100, num_actors=2, num_tokens=50) == pytest.approx(
        2 * qwen.num_in_products * 50 / (2 * H100.flops * PRODUCTS))


def test_weights_cross_the_slowest_way():
    assert sync_s(1.5e9, "shared_memory", 50e9, is_on_one_node=False) == 1.0
    assert sync_s(5e10, "nccl", 12.5e9, is_on_one_node=True) == 1.0
    assert sync_s(5e10, "nccl", 12.5e9, is_on_one_node=False) == 4.0


def test_batches_are_stored_at_every_stage_and_weights_where_they_travel_through_the_store():
    load = Load(num_rows=10, prompt_tokens=100, completion_tokens=200, num_explanations=20, question_tokens=300,
                explanation_tokens=50)
    rollouts = 10 * (8.5 * 100 + 16.5 * 200 + 200)
    explained = rollouts + 20 * 50 * 4.5
    found = traffic(load, num_learner_nodes=2, weight_bytes=1e6, backend="shared_memory")
    assert (found.batches, found.read, found.weights) == (rollouts + 2 * explained, 2 * explained, 1e6)
    assert traffic(load, num_learner_nodes=2, weight_bytes=1e6, backend="nccl").stored == found.batches
