"""The rollout actor: its log-probabilities, its weights, and what it refuses."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from typing import Any

import psutil
import pyarrow as pa
import pytest
import ray
import torch

from actors.cluster.placement import Placement
from actors.engines.rollout import RolloutActor
from actors.faults.vitals import EngineLost
from actors.learners.sending import Order, Published, Sender
from rlaif.batch import ROLLOUT, check
from rlaif.config.prompts import PromptsConfig
from rlaif.config.train import EngineConfig, RolloutConfig, WeightSyncConfig
from rlaif.data.prompts import in_order, read_prompts
from rlaif.learning.objectives import PolicyObjective, PolicyOptions
from rlaif.modeling.models import load_causal_lm, load_tokenizer
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


def sender(weights: Mapping[str, torch.Tensor], changing: Sequence[str] = ()) -> Sender:
    """The learner's side of a sync, for weights that are here."""
    shapes = [(name, weight.dtype, tuple(weight.shape)) for name, weight in weights.items()]
    return Sender(0, shapes, list(changing or weights), lambda names: (
        (name, weight) for name, weight in weights.items() if name in names))


def send(model: torch.nn.Module, version: int, actors: Sequence[Any], bucket_bytes: int = 300_000) -> Published:
    """All weights of `model`, to `actors`."""
    return sender(dict(model.named_parameters())).publish(Order(version, bucket_bytes, "float32", 60.0), actors)


def roll_out(actor, prompts: pa.Table, seed: int = 7) -> pa.Table:
    stream = actor.generate.options(num_returns="streaming").remote(prompts, 4, seed, 6)
    batches = [answer for reference in stream if isinstance(answer := ray.get(reference), pa.Table)]
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

    first = send(moved, 1, [actor], bucket_bytes=1 << 20)
    held, = (outcome.held for outcome in first.outcomes)
    assert first.num_buckets > 1, "more than one bucket must be tried"
    after = roll_out(actor, prompts)
    assert held.label == f"1:{first.checksum}"
    assert gap(after, moved) <= 1e-4
    assert set(after["policy_version"].to_pylist()) == {1}
    assert after["completion"].to_pylist() != before["completion"].to_pylist()

    restored, = (outcome.held for outcome in send(start, 2, [actor], bucket_bytes=1 << 30).outcomes)
    again = roll_out(actor, prompts)
    assert restored.installed != held.installed
    assert again["completion"].to_pylist() == before["completion"].to_pylist(), "the start weights write as before"


def test_equal_seeds_write_equal_completions_and_other_seeds_do_not(actor, prompts) -> None:
    one, two, other = roll_out(actor, prompts, 7), roll_out(actor, prompts, 7), roll_out(actor, prompts, 8)
    assert one["completion_ids"].to_pylist() == two["completion_ids"].to_pylist()
    assert one["completion_ids"].to_pylist() != other["completion_ids"].to_pylist()


def test_weights_that_do_not_fit_are_refused_and_the_engine_lives_on(actor, prompts) -> None:
    weights = dict(load_causal_lm(POLICY, "float32").named_parameters())
    name = next(iter(weights))
    longer = torch.cat([weights[name], weights[name][:1]])
    for wrong, why in ((weights | {name: longer}, "must have shape"),
                       ({k: v for k, v in weights.items() if k != name}, f"{name} only in the engine's model")):
        outcome, = sender(wrong).publish(Order(9, 1 << 20, "float32", 60.0), [actor]).outcomes
        assert outcome.held is None and not outcome.is_lost and why in outcome.error
    assert roll_out(actor, prompts).num_rows == 96


@pytest.mark.parametrize("together", [False, True])
def test_an_engine_that_died_while_nobody_asked_is_told_of(local_ray: None, prompts, together: bool) -> None:
    """Whether vLLM has noticed by then or not."""
    with rollout_actor(POLICY, f"dying-{together}") as actor:
        for pid, _ in ray.get(actor.ping.remote()).pids:
            if "EngineCore" in " ".join(psutil.Process(pid).cmdline()):
                os.kill(pid, signal.SIGKILL)
        stream = actor.generate.options(num_returns="streaming").remote(prompts, 2, 0, 4, False, together)
        with pytest.raises(EngineLost, match="engine process is dead"):
            ray.get(next(iter(stream)), timeout=60)
        outcome, = send(load_causal_lm(POLICY, "float32"), 1, [actor]).outcomes
        assert outcome.held is None and "engine process is dead" in outcome.error


def test_an_engine_that_stands_still_behind_a_living_actor_answers_no_ping(local_ray: None, prompts) -> None:
    """But its stacks are told; and it is as before once it goes on."""
    with rollout_actor(POLICY, "standing-still") as actor:
        before = roll_out(actor, prompts)
        engine, = (pid for pid, _ in ray.get(actor.ping.remote()).pids
                   if "EngineCore" in " ".join(psutil.Process(pid).cmdline()))
        os.kill(engine, signal.SIGSTOP)
        with pytest.raises(ray.exceptions.GetTimeoutError):
            ray.get(actor.ping.remote(), timeout=3)
        assert "thread" in ray.get(actor.ping.remote(True), timeout=30).stacks
        os.kill(engine, signal.SIGCONT)
        ray.get(actor.ping.remote(), timeout=30)
        assert roll_out(actor, prompts)["completion_ids"].to_pylist() == before["completion_ids"].to_pylist()


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
