"""The stream of buckets: what is alive when, in which order, and who waits for whom."""

import pytest
import torch

from rlaif.modeling.streaming import stream
from rlaif.modeling.weights import digest, manifest_of, mark, plan_buckets, taken_out


def weights(num=23):
    generator = torch.Generator().manual_seed(3)
    return {f"w{n}": torch.randn((n % 5 + 1, 7), generator=generator) for n in range(num)}


class Receiver:
    """Takes buckets when it is told to, as late as it likes, and notes what happened."""

    def __init__(self, memories):
        self.memories, self.events, self.got, self.under_way = memories, [], {}, 0

    def send(self, number, bucket, marks):
        self.under_way += 1
        self.events.append(("send", number))
        return number, bucket, marks

    def wait(self, sent):
        number, bucket, marks = sent
        self.got |= {name: tensor.clone() for name, tensor in taken_out(bucket, self.memories[number % 2], marks)}
        self.under_way -= 1
        self.events.append(("done", number))


def run(source, max_bytes, gathered=lambda name, receiver: None):
    manifest = manifest_of((name, tensor.dtype, tuple(tensor.shape)) for name, tensor in weights().items())
    buckets = plan_buckets(manifest, max_bytes)
    memories = [torch.zeros(max(bucket.num_bytes for bucket in buckets), dtype=torch.uint8) for _ in range(2)]
    receiver = Receiver(memories)

    def noted():
        for name, tensor in source.items():
            gathered(name, receiver)
            yield name, tensor

    marks = stream(buckets, noted(), memories, receiver.send, receiver.wait)
    return manifest, buckets, receiver, marks


@pytest.mark.parametrize("max_bytes", [1, 300, 1 << 20])
def test_all_weights_arrive_bit_by_bit_and_the_marks_are_those_of_the_weights(max_bytes):
    manifest, _, receiver, marks = run(weights(), max_bytes)
    assert list(receiver.got) == list(weights())
    assert all(torch.equal(receiver.got[name], tensor) for name, tensor in weights().items())
    assert digest(manifest, marks) == digest(manifest, {name: mark(tensor) for name, tensor in weights().items()})


def test_no_more_than_two_buckets_are_alive_and_the_next_is_gathered_while_one_is_under_way():
    alive = []
    _, buckets, receiver, _ = run(weights(), 300, lambda name, receiver: alive.append(receiver.under_way))
    assert len(buckets) > 4
    assert max(alive) == 1, "the bucket that is gathered and one that is under way, never a third"
    assert alive.count(1) > len(alive) / 2, "gathering must not wait until the bucket before has arrived"
    events = [event for number in range(len(buckets)) for event in (
        [("done", number - 2)] * (number >= 2) + [("send", number)])]
    assert receiver.events == [*events, ("done", len(buckets) - 2), ("done", len(buckets) - 1)]


def test_a_memory_is_not_filled_anew_before_its_bucket_has_arrived():
    """A receiver that takes each bucket at the last moment still finds it unchanged: its marks fit."""
    _, _, receiver, _ = run(weights(), 1)
    assert len(receiver.got) == 23


def test_one_weight_at_a_time_is_asked_for():
    """Under ZeRO 3 a weight is whole only until the next is asked for."""
    source = weights()

    def gone():
        for name in source:
            tensor = source[name].clone()
            yield name, tensor
            tensor.fill_(float("nan"))

    manifest = manifest_of((name, tensor.dtype, tuple(tensor.shape)) for name, tensor in source.items())
    buckets = plan_buckets(manifest, 300)
    memories = [torch.zeros(400, dtype=torch.uint8) for _ in range(2)]
    receiver = Receiver(memories)
    stream(buckets, gone(), memories, receiver.send, receiver.wait)
    assert all(torch.equal(receiver.got[name], tensor) for name, tensor in source.items())


def test_what_a_receiver_raises_ends_the_stream():
    def wait(sent):
        raise OSError("the line is cut")

    manifest = manifest_of((name, tensor.dtype, tuple(tensor.shape)) for name, tensor in weights().items())
    memories = [torch.zeros(400, dtype=torch.uint8) for _ in range(2)]
    with pytest.raises(OSError, match="the line is cut"):
        stream(plan_buckets(manifest, 300), iter(weights().items()), memories, lambda *sent: sent, wait)
