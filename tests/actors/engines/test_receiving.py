"""An engine serves whole weights of one version, or nothing: the receiver's side, with an engine that notes what it is
told. The same with vLLM: tests/real/test_weight_sync.py."""

import asyncio
import dataclasses

import pytest
import torch

from actors.carriers.shared_memory import Offer, SharedMemory, attach
from actors.engines.receiving import Coming, HalfSentWeights, Receiver
from rlaif.modeling.weights import Manifest, Part, digest, fill, manifest_of, plan_buckets, taken_out


class Engine:
    """Notes what it is told; loads like the engine's worker."""

    def __init__(self):
        self.told, self.weights, self.fails_at = [], {}, None

    async def open(self, init_info):
        self.told.append("open")

    async def begin_sync(self):
        self.told.append("begin")

    async def receive(self, update_info):
        if self.fails_at == len(self.told):
            raise ValueError("weight a must arrive with another mark")
        self.told.append("receive")
        parts = [Part(*part) for part in update_info["parts"]]
        memory = attach(Offer(*update_info["memory"]))
        bucket = dataclasses.make_dataclass("Bucket", ["parts"])(parts)
        self.weights |= {name: tensor.clone() for name, tensor in taken_out(bucket, memory, update_info["marks"])}

    async def end_sync(self, version):
        self.told.append(version)
        return "as they lie", 0.25


def weights(step=0):
    return {name: torch.full((4, 4), float(step + n)) for n, name in enumerate("abc")}


SHAPES = {name: (4, 4) for name in "abc"}


class Learner:
    """Two memories and the marks of all weights."""

    def __init__(self):
        self.memories, self.marks, self.count = [SharedMemory(64) for _ in range(2)], {}, 0
        self.manifest = manifest_of((name, tensor.dtype, tuple(tensor.shape)) for name, tensor in weights().items())

    def coming(self, version, manifest=None):
        self.count += 1
        manifest = manifest or self.manifest
        return Coming(f"stream {self.count}", version, manifest, manifest.num_bytes, 64,
                      tuple(memory.offer for memory in self.memories))

    async def send(self, receiver, version, *, names="abc", stop_after=9, is_far=False):
        manifest = Manifest({name: self.manifest.tensors[name] for name in names}, is_partial=names != "abc")
        coming = self.coming(version, manifest)
        await receiver.begin(coming)
        source = iter([(name, weights(version)[name]) for name in names])
        for number, bucket in enumerate(plan_buckets(manifest, 64)[:stop_after]):
            marks = fill(bucket, source, self.memories[number % 2].tensor)
            data = self.memories[number % 2].tensor.clone().numpy() if is_far else None
            await receiver.receive(coming.stream, number, marks, data)
            self.marks |= marks
        return coming, digest(self.manifest, self.marks) if len(self.marks) == 3 else ""


def pair():
    engine = Engine()
    return engine, Receiver(engine, SHAPES), Learner()


@pytest.mark.parametrize("is_far", [False, True])
def test_weights_are_whole_and_held_once_the_digest_fits(is_far):
    async def run():
        engine, receiver, learner = pair()
        receiver.refuse_prompts()       # the folder's weights are whole
        coming, checksum = await learner.send(receiver, 3, is_far=is_far)
        with pytest.raises(HalfSentWeights, match="got some of version 3"):
            receiver.refuse_prompts()
        held = await receiver.end(coming.stream, checksum)
        receiver.refuse_prompts()
        assert (held.label, held.installed, held.reload_s) == (f"3:{checksum}", "as they lie", 0.25)
        assert engine.told == ["begin", "receive", "receive", "receive", f"3:{checksum}"]
        assert all(torch.equal(engine.weights[name], tensor) for name, tensor in weights(3).items())

    asyncio.run(run())


def test_weights_that_do_not_fit_are_refused_before_the_engine_is_told_anything():
    async def run():
        engine, receiver, learner = pair()
        right = learner.manifest.tensors
        for wrong in (Manifest({"a": ("float32", (4, 4))}), Manifest(right | {"b": ("float32", (2,))}),
                      Manifest(right | {"b": ("int8", (4, 4))})):
            with pytest.raises(ValueError, match="must"):
                await receiver.begin(learner.coming(1, wrong))
        with pytest.raises(ValueError, match="weights must have 192 bytes by their shapes, got 193"):
            await receiver.begin(dataclasses.replace(learner.coming(1), num_bytes=193))
        assert engine.told == []
        receiver.refuse_prompts()

    asyncio.run(run())


def test_a_half_sent_update_refuses_prompts_until_whole_weights_are_in():
    async def run():
        _, receiver, learner = pair()
        coming, _ = await learner.send(receiver, 1, stop_after=2)
        with pytest.raises(HalfSentWeights):
            receiver.refuse_prompts()
        with pytest.raises(ValueError, match="weights must arrive in 3 buckets, got 2"):
            await receiver.end(coming.stream, "0" * 32)
        with pytest.raises(HalfSentWeights):
            receiver.refuse_prompts()
        coming, checksum = await learner.send(receiver, 1)
        assert (await receiver.end(coming.stream, checksum)).label == f"1:{checksum}"
        receiver.refuse_prompts()

    asyncio.run(run())


def test_who_asks_for_completions_waits_for_the_end_of_an_update_and_after_one_that_failed_for_the_next():
    async def run():
        engine, receiver, learner = pair()
        await asyncio.wait_for(receiver.whole(), 1.0)
        coming, checksum = await learner.send(receiver, 1)
        waiting = asyncio.ensure_future(receiver.whole())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        await receiver.end(coming.stream, checksum)
        await asyncio.wait_for(waiting, 1.0)
        engine.fails_at = len(engine.told) + 1
        with pytest.raises(ValueError, match="another mark"):
            await learner.send(receiver, 2)
        waiting = asyncio.ensure_future(receiver.whole())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        engine.fails_at = None
        coming, checksum = await learner.send(receiver, 3)
        await receiver.end(coming.stream, checksum)
        await asyncio.wait_for(waiting, 1.0)

    asyncio.run(run())


def test_after_a_bucket_that_failed_the_rest_of_its_stream_is_refused():
    async def run():
        engine, receiver, learner = pair()
        engine.fails_at = 2
        with pytest.raises(ValueError, match="another mark"):
            await learner.send(receiver, 1)
        with pytest.raises(ValueError, match="got one of another stream or of one that failed"):
            await receiver.receive("stream 1", 2, {})
        with pytest.raises(HalfSentWeights):
            receiver.refuse_prompts()

    asyncio.run(run())


def test_another_digest_than_the_learners_is_refused():
    async def run():
        engine, receiver, learner = pair()
        coming, checksum = await learner.send(receiver, 1)
        with pytest.raises(ValueError, match=f"weights must arrive with digest {'0' * 32}, got {checksum}"):
            await receiver.end(coming.stream, "0" * 32)
        with pytest.raises(HalfSentWeights):
            receiver.refuse_prompts()
        assert engine.told[-1] == "receive", "the engine must not have been told to go on"

    asyncio.run(run())


def test_a_stream_that_comes_later_ends_the_one_before():
    async def run():
        _, receiver, learner = pair()
        old, _ = await learner.send(receiver, 1, stop_after=1)
        coming, checksum = await learner.send(receiver, 2)
        with pytest.raises(ValueError, match="got one of another stream"):
            await receiver.receive(old.stream, 1, {})
        assert (await receiver.end(coming.stream, checksum)).label.startswith("2:")

    asyncio.run(run())


def test_changed_weights_alone_are_taken_only_by_who_was_sent_the_whole():
    async def run():
        engine, receiver, learner = pair()
        with pytest.raises(ValueError, match="an engine must hold whole weights to be sent the changed ones"):
            await learner.send(receiver, 1, names="b")
        coming, checksum = await learner.send(receiver, 1)
        await receiver.end(coming.stream, checksum)
        coming, checksum = await learner.send(receiver, 2, names="b")
        assert (await receiver.end(coming.stream, checksum)).label == f"2:{checksum}"
        assert torch.equal(engine.weights["b"], weights(2)["b"]) and torch.equal(engine.weights["a"], weights(1)["a"])
        await learner.send(receiver, 3, names="bc", stop_after=1)
        with pytest.raises(ValueError, match="send whole weights"):
            await learner.send(receiver, 3, names="b")

    asyncio.run(run())


def test_calls_made_without_awaiting_the_one_before_are_taken_in_order_however_they_come():
    async def run():
        engine, receiver, learner = pair()
        coming = learner.coming(1)
        source = iter(weights(1).items())
        buckets = plan_buckets(learner.manifest, 64)
        marks = [fill(buckets[number], source, learner.memories[number].tensor) for number in range(2)]
        await receiver.begin(coming)
        calls = [asyncio.ensure_future(receiver.receive(coming.stream, number, marks[number])) for number in (1, 0)]
        await asyncio.gather(*calls)
        assert engine.told == ["begin", "receive", "receive"] and list(engine.weights) == ["a", "b"]

    asyncio.run(run())


def test_the_next_bucket_is_with_the_engine_before_the_one_before_is_loaded():
    async def run():
        engine, receiver, learner = pair()
        coming, loading = learner.coming(1), asyncio.Event()
        received = []

        async def receive(update_info):
            received.append(update_info["parts"][0][0])
            await loading.wait()

        engine.receive = receive
        await receiver.begin(coming)
        calls = [asyncio.ensure_future(receiver.receive(coming.stream, number, {})) for number in range(2)]
        while len(received) < 2:
            await asyncio.sleep(0)
        assert received == ["a", "b"] and not any(call.done() for call in calls)
        loading.set()
        await asyncio.gather(*calls)

    asyncio.run(run())


def test_who_waits_for_a_bucket_that_never_comes_is_told_so_by_the_next_stream():
    async def run():
        _, receiver, learner = pair()
        coming = learner.coming(1)
        await receiver.begin(coming)
        waits = asyncio.ensure_future(receiver.receive(coming.stream, 1, {}))
        await asyncio.sleep(0.01)
        assert not waits.done()
        coming, checksum = await learner.send(receiver, 2)
        with pytest.raises(ValueError, match="got one of another stream"):
            await waits
        assert (await receiver.end(coming.stream, checksum)).label.startswith("2:")

    asyncio.run(run())
