"""What the driver asks of the learners, and how it reads what became of each engine. The real thing:
tests/real/test_weight_sync.py."""

import asyncio
from types import SimpleNamespace

import pytest

from actors.engines.receiving import HalfSentWeights, Held
from actors.learners.sending import Outcome, Published
from actors.training.weight_sync import WeightSync
from rlaif.config.train import EngineConfig, WeightSyncConfig


class Gang:
    """Notes what it is asked; every engine then holds the version."""

    def __init__(self, installed=()):
        self.orders, self.opened, self.installed = [], [], list(installed)

    async def publish(self, order, rollouts):
        self.orders.append(order)
        label = f"{order.version}:abc"
        digests = self.installed or ["same"] * len(rollouts)
        for rollout in rollouts:
            rollout.label = label
        return Published(label, "abc", 96, 3, 64, [Outcome(Held(label, digest)) for digest in digests])

    async def open_channel(self, channel, rollouts):
        self.opened.append((channel, list(rollouts)))


class Rollout:
    def __init__(self, label=""):
        self.label, self.error = label, None
        self.holds = self

    def remote(self):
        async def answer():
            if self.error:
                raise self.error
            return Held(self.label)

        return answer()


def sync(gang, backend="shared_memory", is_partial=False):
    return WeightSync(gang, WeightSyncConfig(backend=backend, bucket_mb=2), EngineConfig(dtype="bfloat16"),
                      timeout_s=7.0, is_partial=is_partial)


def send(weights, *arguments, **options):
    return asyncio.run(weights.send(*arguments, **options))


def test_an_order_says_what_the_configuration_says():
    gang = Gang()
    sent = send(sync(gang), 5, [Rollout()], is_again=True)
    order, = gang.orders
    assert (order.version, order.bucket_bytes, order.dtype, order.timeout_s) == (5, 2 << 20, "bfloat16", 7.0)
    assert order.is_again and not order.is_partial
    assert (sent.refuse_losses(), sent.label, sent.missed, sent.num_bytes) == ("abc", "5:abc", [], 96)


def test_the_changed_weights_go_alone_once_every_engine_was_sent_the_whole():
    gang, old, new = Gang(), Rollout(), Rollout()
    weights = sync(gang, is_partial=True)
    for version, rollouts in enumerate(([old], [old], [old, new], [old, new])):
        assert send(weights, version, rollouts).is_partial == gang.orders[-1].is_partial
    assert [order.is_partial for order in gang.orders] == [False, True, False, True]
    new.error = HalfSentWeights("some of version 3")
    send(weights, 4, [old, new])
    new.error = None
    send(weights, 5, [old, new])
    assert [order.is_partial for order in gang.orders[4:]] == [False, True]


def test_an_engine_that_does_not_say_what_it_holds_is_sent_the_whole():
    gang, one = Gang(), Rollout()
    weights = WeightSync(gang, WeightSyncConfig(), EngineConfig(), timeout_s=0.05, is_partial=True)
    send(weights, 0, [one])
    one.holds = SimpleNamespace(remote=asyncio.Event().wait)        # as one that was stopped
    assert not send(weights, 1, [one]).is_partial


def test_learners_that_have_sent_nothing_send_the_whole_to_engines_that_hold_something():
    """As after the gang was built anew: it knows no marks."""
    gang = Gang()
    send(sync(gang, is_partial=True), 3, [Rollout("2:abc")])
    assert not gang.orders[0].is_partial


@pytest.mark.parametrize("backend", ["nccl", "ipc"])
def test_direct_backends_send_all_weights_always(backend):
    gang, rollout = Gang(), Rollout()
    weights = sync(gang, backend, is_partial=True)
    for version in range(3):
        send(weights, version, [rollout])
    assert not any(order.is_partial for order in gang.orders)


def test_a_channel_is_opened_where_the_backend_has_one():
    for backend, num_opened in (("shared_memory", 0), ("gloo", 1), ("nccl", 1)):
        gang, rollouts = Gang(), [Rollout(), Rollout()]
        asyncio.run(sync(gang, backend).open(rollouts))
        assert len(gang.opened) == num_opened
        for channel, given in gang.opened:
            assert (channel.backend, channel.bucket_bytes, channel.workers_per_engine) == (backend, 2 << 20, 1)
            assert given == rollouts


def test_an_engine_in_which_the_weights_lie_otherwise_than_in_most_has_missed_them():
    sent = send(sync(Gang(["same", "other", "same"])), 1, [Rollout() for _ in range(3)])
    assert sent.missed == [1]
    with pytest.raises(RuntimeError, match="rollout-1 must hold weights 1:abc, got none: its weights lie with digest "
                                           "other, those of the others with same"):
        sent.refuse_losses()


def test_a_version_that_no_engine_was_there_for_is_sent_all_the_same():
    """The learners then know it, and send it again to who comes."""
    assert send(sync(Gang()), 1, []).refuse_losses() == "abc"


def test_an_engine_that_is_sent_a_version_alone_is_compared_with_those_that_had_it_before():
    gang, first, second, odd = Gang(["same", "same", "other"]), Rollout(), Rollout(), Rollout()
    weights = sync(gang)
    assert send(weights, 4, [first, second, odd]).missed == [2]
    gang.installed = ["other"]
    assert send(weights, 4, [odd], is_again=True).missed == [0]
    gang.installed = ["same"]
    assert send(weights, 4, [odd], is_again=True).missed == []
    gang.installed = ["new"]
    assert send(weights, 5, [odd]).missed == [], "of another version nothing is known yet"
