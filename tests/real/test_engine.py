"""The rollout actor: its log-probabilities, its weights, and what it refuses."""

from __future__ import annotations

import contextlib
import dataclasses

import pyarrow as pa
import pytest
import ray
import torch

from actors.placement import Placement
from actors.rollout import RolloutActor
from rlaif.batch import ROLLOUT, check
from rlaif.config.prompts import PromptsConfig
from rlaif.config.train import EngineConfig, RolloutConfig, WeightSyncConfig
from rlaif.data.prompts import in_order, read_prompts
from rlaif.learning.objectives import PolicyObjective, PolicyOptions
from rlaif.modeling.models import load_causal_lm, load_tokenizer
from rlaif.modeling.weights import pack
from tests.real.conftest import START, Run, role

POLICY = str(START / "policy")


@contextlib.contextmanager
def rollout_actor(policy: str, name: str = "rollout"):
    placement = Placement({name: role("rollout")}, "PACK", 60)
    config = RolloutConfig(max_tokens=24, engine=EngineConfig(max_model_len=64, gpu_memory_utilization=0.2))
    actor = RolloutActor.options(**placement.options(name, 0)).remote(
        policy, config, WeightSyncConfig(), role("rollout").num_gpus, 0)
    ray.get(actor.ready.remote(), timeout=120)
    yield actor
    placement.remove()


@pytest.fixture(scope="module")
def actor(local_ray: None):
    with rollout_actor(POLICY) as actor:
        yield actor


@pytest.fixture(scope="module")
def prompts() -> pa.Table:
    config = PromptsConfig(train="scenes:prompts-train", test="scenes:prompts-test", num_test=24)
    return in_order(read_prompts(config, "test", load_tokenizer(POLICY), 40).rows)


def roll_out(actor, prompts: pa.Table, seed: int = 7) -> pa.Table:
    stream = actor.generate.options(num_returns="streaming").remote(prompts, 4, seed, 6)
    batches = [ray.get(reference) for reference in stream]
    assert len(batches) == 4, "24 groups must leave in 4 batches of 6"
    return check(pa.concat_tables(batches), ROLLOUT).sort_by([("group_id", "ascending"), ("sample", "ascending")])


def gap(rollouts: pa.Table, model) -> float:
    """Largest difference between the engine's logprobs and a Hugging Face forward's."""
    objective = PolicyObjective(PolicyOptions())
    logprobs = objective.logprobs(objective.module(model), rollouts)
    return objective.drift(rollouts, logprobs, None)["max_logprob_gap"].value


def perturbed(seed: int, scale: float = 0.1):
    model = load_causal_lm(POLICY, "float32")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor += scale * tensor.std() * torch.randn(tensor.shape, generator=generator)
    return model


def test_logprobs_are_those_of_transformers_before_and_after_a_sync(actor, prompts) -> None:
    before = roll_out(actor, prompts)
    start, moved = load_causal_lm(POLICY, "float32"), perturbed(1)
    assert gap(before, start) <= 1e-4
    assert gap(before, moved) > 1e-2, "the other weights must be told apart"

    manifest, buckets = pack(moved.named_parameters(), 1 << 20)
    assert len(buckets) > 1, "more than one bucket must be tried"
    version, digest = ray.get(actor.install.remote(1, manifest, *buckets))
    after = roll_out(actor, prompts)
    assert version == f"1:{manifest.checksum}"
    assert gap(after, moved) <= 1e-4
    assert set(after["policy_version"].to_pylist()) == {1}
    assert after["completion"].to_pylist() != before["completion"].to_pylist()

    manifest, buckets = pack(start.named_parameters(), 1 << 30)
    _, restored = ray.get(actor.install.remote(2, manifest, *buckets))
    again = roll_out(actor, prompts)
    assert restored != digest
    assert again["completion"].to_pylist() == before["completion"].to_pylist(), "the start weights write as before"


def test_equal_seeds_write_equal_completions_and_other_seeds_do_not(actor, prompts) -> None:
    one, two, other = roll_out(actor, prompts, 7), roll_out(actor, prompts, 7), roll_out(actor, prompts, 8)
    assert one["completion_ids"].to_pylist() == two["completion_ids"].to_pylist()
    assert one["completion_ids"].to_pylist() != other["completion_ids"].to_pylist()


def test_weights_that_do_not_fit_are_refused_and_the_engine_lives_on(actor, prompts) -> None:
    manifest, buckets = pack(load_causal_lm(POLICY, "float32").named_parameters(), 1 << 30)
    name, (dtype, shape) = next(iter(manifest.tensors.items()))
    wrong = dataclasses.replace(manifest, tensors=manifest.tensors | {name: (dtype, (shape[0] + 1, *shape[1:]))})
    with pytest.raises(ValueError, match="must have shape"):
        ray.get(actor.install.remote(9, wrong, *buckets))
    short = dataclasses.replace(manifest, tensors={k: v for k, v in manifest.tensors.items() if k != name})
    with pytest.raises(ValueError, match=f"{name} only in the engine's model"):
        ray.get(actor.install.remote(9, short, *buckets))
    assert roll_out(actor, prompts).num_rows == 96


def test_a_batch_of_another_schema_is_refused(actor, prompts) -> None:
    stream = actor.generate.options(num_returns="streaming").remote(prompts.drop_columns(["source"]), 4, 7, 6)
    with pytest.raises(ValueError, match="batch must have column source"):
        ray.get(next(iter(stream)))


def test_vllm_loads_the_policy_that_a_run_exports(local_ray: None, short_run: Run, prompts) -> None:
    folder = str(short_run.output_dir / "policy")
    with rollout_actor(folder, "exported") as actor:
        rollouts = roll_out(actor, prompts)
    assert gap(rollouts, load_causal_lm(folder, "float32")) <= 1e-4
    assert gap(rollouts, load_causal_lm(POLICY, "float32")) > 1e-3, "it must not be the start policy"
