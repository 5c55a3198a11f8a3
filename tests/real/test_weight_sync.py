"""Weights in a stream to real engines: whole or refused, whatever carries them and whoever dies on the way."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import ray
import torch

from actors.carriers.shared_memory import SharedMemory
from actors.cluster.placement import Placement
from actors.engines.receiving import Channel, Coming, HalfSentWeights
from actors.engines.rollout import RolloutActor
from actors.learners.sending import Order
from rlaif.config.train import EngineConfig, RolloutConfig, WeightSyncConfig
from rlaif.modeling.models import load_causal_lm
from rlaif.modeling.weights import fill, manifest_of, plan_buckets
from tests.real.conftest import role
from tests.real.test_engine import POLICY, gap, perturbed, prompts, roll_out, send, sender  # noqa: F401

BUCKET = 300_000        # bytes: a dozen buckets, and layers whose weights come in two of them


def order(version: int, **options: Any) -> Order:
    return Order(version, BUCKET, "float32", 60.0, **options)


@contextlib.contextmanager
def engines(name: str, num_actors: int, backend: str = "shared_memory") -> Iterator[list[Any]]:
    """name: of the role, so that actors of two tests are not taken for each other."""
    wanted = role("rollout", num_cpus=0.4, num_actors=num_actors)
    placement = Placement({name: wanted}, "PACK", 60)
    config = RolloutConfig(max_tokens=24, engine=EngineConfig(max_model_len=64, kv_cache_mb=32))
    actors = [RolloutActor.options(**placement.options(name, index)).remote(
        POLICY, config, WeightSyncConfig(backend=backend), wanted.num_gpus, 0) for index in range(num_actors)]
    try:
        ray.get([actor.ready.remote() for actor in actors], timeout=400)
        yield actors
    finally:
        placement.remove()


def killing_half_way(weights: Mapping[str, torch.Tensor], pid: int) -> Callable[[set[str]], Iterator[Any]]:
    """What a sender is to send, and a process that is killed in the midst of it."""
    def whole(names: set[str]) -> Iterator[tuple[str, torch.Tensor]]:
        for count, (name, weight) in enumerate(weights.items()):
            if count == len(weights) // 2:
                os.kill(pid, signal.SIGKILL)
                time.sleep(1.0)
            yield name, weight

    return whole


@pytest.fixture(scope="module")
def actor(local_ray: None) -> Iterator[Any]:
    with engines("alone", 1) as actors:
        yield actors[0]


def test_bits_that_change_on_the_way_leave_the_engine_refusing_until_whole_weights_are_in(
        actor, prompts) -> None:  # noqa: F811
    start, moved = load_causal_lm(POLICY, "float32"), perturbed(3)
    send(start, 1, [actor])
    before = roll_out(actor, prompts)
    weights = list(moved.named_parameters())
    manifest = manifest_of((name, weight.dtype, tuple(weight.shape)) for name, weight in weights)
    buckets = plan_buckets(manifest, BUCKET)
    memories = [SharedMemory(max(bucket.num_bytes for bucket in buckets)) for _ in range(2)]
    coming = Coming("half", 2, manifest, manifest.num_bytes, BUCKET, tuple(memory.offer for memory in memories))
    assert ray.get(actor.begin_sync.remote(coming)), "it must see the memory"
    source = iter(weights)
    for number, bucket in enumerate(buckets[:3]):
        marks = fill(bucket, source, memories[number % 2].tensor)
        if number == 2:
            memories[0].tensor[bucket.parts[-1].start + 3] ^= 1
            with pytest.raises(Exception, match=f"weight {bucket.parts[-1].name} must arrive with mark"):
                ray.get(actor.receive.remote("half", number, marks))
        else:
            ray.get(actor.receive.remote("half", number, marks))
    with pytest.raises(HalfSentWeights, match="got some of version 2"):
        ray.get(actor.holds.remote())
    writes_nothing(actor, prompts)

    published = send(moved, 2, [actor])
    assert [outcome.error for outcome in published.outcomes] == [""]
    assert gap(roll_out(actor, prompts), moved) <= 1e-4, "nothing of the half that came is left over"
    send(start, 3, [actor])
    assert roll_out(actor, prompts)["completion"].to_pylist() == before["completion"].to_pylist()


def writes_nothing(actor, prompts) -> None:  # noqa: F811
    """Whoever asks waits for whole weights, and is not served before."""
    stream = actor.generate.options(num_returns="streaming").remote(prompts, 1, 0, 24)
    assert ray.wait([stream], timeout=3.0)[0] == []


def test_a_sender_that_falls_silent_leaves_the_engine_refusing_and_another_takes_over(actor, prompts) -> None:  # noqa: F811
    moved = perturbed(4)
    weights = list(moved.named_parameters())
    manifest = manifest_of((name, weight.dtype, tuple(weight.shape)) for name, weight in weights)
    buckets = plan_buckets(manifest, BUCKET)
    memory = SharedMemory(max(bucket.num_bytes for bucket in buckets))
    ray.get(actor.begin_sync.remote(Coming("cut", 5, manifest, manifest.num_bytes, BUCKET, (memory.offer,) * 2)))
    ray.get(actor.receive.remote("cut", 0, fill(buckets[0], iter(weights), memory.tensor)))
    writes_nothing(actor, prompts)
    assert send(moved, 5, [actor]).outcomes[0].held is not None
    assert gap(roll_out(actor, prompts), moved) <= 1e-4


def test_changed_weights_alone_make_the_engine_what_the_whole_makes_it(actor, prompts) -> None:  # noqa: F811
    """As with LoRA on q_proj and v_proj: k_proj and o_proj go along, all else stays."""
    adapted = [name for name, _ in load_causal_lm(POLICY, "float32").named_parameters()
               if "q_proj" in name or "v_proj" in name]
    start, model = load_causal_lm(POLICY, "float32"), perturbed(5)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name not in adapted:
                weight.copy_(start.get_parameter(name))
    training = sender(dict(start.named_parameters()), adapted)
    first = training.publish(order(6), [actor])
    with torch.no_grad():
        for name in adapted:
            start.get_parameter(name).copy_(model.get_parameter(name))
    part = training.publish(order(7, is_partial=True), [actor])
    assert part.num_bytes == 3 * 4 * 128 * 128 * 4 < 0.31 * first.num_bytes, "of three layers, four projections"
    rollouts = roll_out(actor, prompts)
    assert gap(rollouts, model) <= 1e-4
    whole = send(model, 8, [actor])
    assert whole.checksum == part.checksum != first.checksum
    assert whole.outcomes[0].held.installed == part.outcomes[0].held.installed
    again = roll_out(actor, prompts)
    assert again["completion_ids"].to_pylist() == rollouts["completion_ids"].to_pylist()
    assert again["rollout_logprobs"].to_pylist() == rollouts["rollout_logprobs"].to_pylist()


def test_changed_weights_that_leave_a_fused_layer_half_filled_are_refused(actor) -> None:
    """q without k and v: neighbours go along, or an engine would compute with what lay in their place."""
    model = load_causal_lm(POLICY, "float32")
    send(model, 9, [actor])
    training = sender(dict(model.named_parameters()))
    training.publish(order(9), [actor])
    training._changing = ["model.layers.0.self_attn.q_proj.weight"]
    outcome, = training.publish(order(10, is_partial=True), [actor]).outcomes
    assert outcome.held is None and not outcome.is_lost
    assert "changed weights must fill the layers that they are of" in outcome.error and "qkv_proj" in outcome.error
    with pytest.raises(HalfSentWeights):
        ray.get(actor.holds.remote())
    assert send(model, 11, [actor]).outcomes[0].held is not None


def test_an_engine_that_cannot_see_the_memory_gets_buckets_through_the_object_store(
        actor, prompts, monkeypatch) -> None:  # noqa: F811
    """As on another machine: the path that is offered leads nowhere there."""
    offered = SharedMemory.__init__

    def elsewhere(self, num_bytes: int) -> None:
        offered(self, num_bytes)
        self.offer = dataclasses.replace(self.offer, path="/proc/0/fd/3")

    monkeypatch.setattr(SharedMemory, "__init__", elsewhere)
    moved = perturbed(6)
    published = send(moved, 12, [actor])
    assert [outcome.error for outcome in published.outcomes] == [""]
    assert gap(roll_out(actor, prompts), moved) <= 1e-4


def test_an_engine_that_dies_in_the_middle_is_told_of_and_the_others_get_their_weights(
        actor, prompts) -> None:  # noqa: F811
    moved = perturbed(7)
    with engines("mortal", 1) as mortal:
        actors = [actor, *mortal]
        pid = ray.get(actors[1].ping.remote()).pids[0][0]
        training = sender(dict(moved.named_parameters()))
        weights = dict(moved.named_parameters())

        training._whole = killing_half_way(weights, pid)
        published = training.publish(order(1), actors)
        alive, dead = published.outcomes
        assert dead.held is None and dead.is_lost and dead.error
        assert alive.held is not None and alive.held.label == published.label
        assert gap(roll_out(actors[0], prompts), moved) <= 1e-4


def test_gloo_carries_weights_between_processes_and_a_lost_learner_leaves_the_engine_refusing(
        local_ray, prompts) -> None:  # noqa: F811
    moved, other = perturbed(8), perturbed(9)
    with engines("network", 1, "gloo") as actors:
        training = sender(dict(moved.named_parameters()))
        channel = Channel("gloo", 1, BUCKET, "float32", 60.0)
        training.open(channel, ("127.0.0.1", 1), actors)
        published = training.publish(order(1), actors)
        assert [outcome.error for outcome in published.outcomes] == [""]
        first = roll_out(actors[0], prompts)
        assert gap(first, moved) <= 1e-4
        training.publish(order(2), actors)      # the channel serves on
        assert roll_out(actors[0], prompts)["completion"].to_pylist() == first["completion"].to_pylist()

        # A learner that goes away between buckets: the pair breaks, what the engine waits for never comes.
        weights = list(other.named_parameters())
        manifest = manifest_of((name, weight.dtype, tuple(weight.shape)) for name, weight in weights)
        ray.get(actors[0].begin_sync.remote(Coming("cut", 3, manifest, manifest.num_bytes, BUCKET)))
        asked = actors[0].receive.remote("cut", 0, {name: 0 for name, _ in weights})
        time.sleep(0.5)
        training._line._pairs.clear()
        with pytest.raises(Exception, match=r"(?i)closed|reset|connect|abort"):
            ray.get(asked, timeout=60)
        writes_nothing(actors[0], prompts)

        anew = sender(dict(other.named_parameters()))
        anew.open(channel, ("127.0.0.1", 1), actors)
        assert [outcome.error for outcome in anew.publish(order(4), actors).outcomes] == [""]
        assert gap(roll_out(actors[0], prompts), other) <= 1e-4



def test_an_engine_that_dies_under_gloo_is_left_out_and_one_that_is_dead_is_not_met(local_ray, prompts) -> None:  # noqa: F811
    """The learner lives on, and the other engine gets its weights."""
    moved = perturbed(10)
    with engines("lives", 1, "gloo") as (alive,), engines("dies", 1, "gloo") as (mortal,):
        pid = ray.get(mortal.ping.remote()).pids[0][0]
        weights = dict(moved.named_parameters())
        training = sender(weights)
        channel = Channel("gloo", 1, BUCKET, "float32", 20.0)
        training.open(channel, ("127.0.0.1", 1), [alive, mortal])

        training._whole, kept = killing_half_way(weights, pid), training._whole
        lived, died = training.publish(order(1), [alive, mortal]).outcomes
        assert died.held is None and died.is_lost and lived.error == ""
        assert gap(roll_out(alive, prompts), moved) <= 1e-4

        training._whole, began = kept, time.monotonic()
        training.open(channel, ("127.0.0.1", 1), [mortal, alive])       # as after a rebuild: nobody knows yet
        lived, died = training.publish(order(2), [alive, mortal]).outcomes
        assert died.held is None and died.is_lost and lived.error == ""
        assert time.monotonic() - began < 15, "who is dead is not waited for"
