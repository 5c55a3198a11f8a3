"""The sending side of weights, on the learner's ranks: rank 0 streams buckets to engines while all ranks gather."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError
from torch import Tensor

from actors.carriers.lines import GlooLine, SharedMemoryLine
from actors.engines.receiving import Channel, Coming, Held
from actors.engines.sync_client import DirectSender
from rlaif.modeling.streaming import stream
from rlaif.modeling.weights import (
    Bucket,
    Manifest,
    Shape,
    digest,
    manifest_of,
    plan_buckets,
    version_label,
    with_neighbours,
)

DIRECT = ("nccl", "ipc")        # backends of vLLM's own, from GPU to GPU

Weights = Iterator[tuple[str, Tensor]]


class WeightsMovedOn(Exception):
    """The version that was asked for again is no more: the learners have trained on."""


@dataclass(frozen=True)
class Order:
    """What the driver asks of every rank."""

    version: int
    bucket_bytes: int
    dtype: str | None           # of the engines; None sends weights as they are
    timeout_s: float            # an engine that takes a bucket for so long is left out
    is_partial: bool = False    # the weights that training changes, without the rest
    is_again: bool = False      # a version that was sent before, to engines that missed it


@dataclass(frozen=True)
class Outcome:
    """What became of one engine: whole weights, or why not; is_lost: it is dead, or does not answer."""

    held: Held | None
    error: str = ""
    is_lost: bool = False


@dataclass(frozen=True)
class Published:
    """A version, and what became of each engine it was sent to, in their order."""

    label: str
    checksum: str
    num_bytes: int
    num_buckets: int
    bucket_bytes: int           # of the largest one
    outcomes: list[Outcome]


class Receivers:
    """The engines of one stream, as rank 0 sees them: who fails or falls silent is left out, the others go on."""

    def __init__(self, rollouts: Sequence[Any], timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self.live = dict(enumerate(rollouts))
        self.failed: dict[int, Outcome] = {}

    def ask(self, call: Callable[[int, Any], ray.ObjectRef]) -> dict[int, ray.ObjectRef]:
        """Makes the call to every engine that is left, without waiting."""
        return {index: call(index, actor) for index, actor in self.live.items()}

    def collect(self, asked: Mapping[int, ray.ObjectRef]) -> dict[int, Any]:
        """The answers; waits for them, for no longer than the limit."""
        awaited = {index: answer for index, answer in asked.items() if index in self.live}
        if not awaited:
            return {}
        _, late = ray.wait(list(awaited.values()), num_returns=len(awaited), timeout=self._timeout_s)
        answers = {}
        for index, answer in awaited.items():
            if answer in late:
                self._fail(index, f"gave no answer in {self._timeout_s:g} s", is_lost=True)
                continue
            try:
                answers[index] = ray.get(answer)
            except RayTaskError as error:
                self._fail(index, _lines(error.cause)[-1], is_lost=False)
            except RayError as error:       # of the actor, or of its answer: either went with its node
                self._fail(index, _lines(error)[0], is_lost=True)
        return answers

    def leave_out(self, unreached: Mapping[Any, str]) -> None:
        """Those that no bucket reaches."""
        for index in [index for index, actor in self.live.items() if actor in unreached]:
            self._fail(index, unreached[self.live[index]], is_lost=True)

    def _fail(self, index: int, error: str, *, is_lost: bool) -> None:
        del self.live[index]
        self.failed[index] = Outcome(None, error, is_lost)


def _lines(error: BaseException) -> list[str]:
    return (str(error).strip() or type(error).__name__).splitlines()


class Sender:
    """Streams the weights of one learner rank's model.

    shapes: names, dtypes and whole shapes of all weights, in order. changing: the names of those that are trained.
    whole(names): iterates over the whole weights of these names; a collective under ZeRO-3.
    """

    def __init__(self, rank: int, shapes: Sequence[tuple[str, torch.dtype, Shape]], changing: Sequence[str],
                 whole: Callable[[set[str]], Weights]) -> None:
        self._rank, self._shapes, self._whole = rank, shapes, whole
        self._names = [name for name, _, _ in shapes]
        self._changing = with_neighbours(changing, self._names)
        self._marks: dict[str, int] = {}
        self._line: SharedMemoryLine | GlooLine = SharedMemoryLine()
        self._direct: DirectSender | None = None

    def open(self, channel: Channel, address: tuple[str, int], rollouts: Sequence[Any]) -> None:
        """Opens the channel to `rollouts`: to all before the first stream; later to those that were restarted, or, for
        a direct backend, to all again. address: free on rank 0's host. Every rank must call."""
        if channel.backend in DIRECT:
            if self._direct is not None:
                self._direct.close()
            self._direct = DirectSender(self._rank, channel, address, rollouts, self._shapes,
                                        lambda: self._whole(set(self._names)))
            return
        if channel.backend == "gloo" and not isinstance(self._line, GlooLine):
            self._line = GlooLine()
        if self._rank == 0:
            self._line.open(rollouts, channel.workers_per_engine, channel.timeout_s)

    def publish(self, order: Order, rollouts: Sequence[Any]) -> Published | None:
        """Sends the weights of now; None on other ranks than 0, which have gathered with it on return."""
        if self._direct is not None:
            held, manifest = self._direct.send(order.version), self._direct.manifest
            if self._rank != 0:
                return None
            first = next(iter(held.values()))
            return Published(first.label, first.installed, manifest.num_bytes,
                             len(plan_buckets(manifest, order.bucket_bytes)), order.bucket_bytes,
                             [Outcome(held[actor]) for actor in rollouts])
        names = set(self._changing if order.is_partial else self._names)
        if self._rank != 0:
            for _ in self._whole(names):
                pass
            return None
        weights = self._whole(names)
        try:
            return self._stream(order, rollouts, weights, names)
        finally:
            for _ in weights:       # the other ranks gather all, whatever went wrong here
                pass

    def _manifest(self, order: Order, names: set[str] | None) -> Manifest:
        dtype = None if order.dtype is None else getattr(torch, order.dtype)
        return manifest_of(self._shapes, dtype, names)

    def _stream(self, order: Order, rollouts: Sequence[Any], weights: Weights, names: set[str]) -> Published:
        manifest = self._manifest(order, names if order.is_partial else None)
        buckets = plan_buckets(manifest, order.bucket_bytes)
        largest = max(bucket.num_bytes for bucket in buckets)
        memories, receivers = self._line.memories(largest), Receivers(rollouts, order.timeout_s)
        coming = Coming(uuid.uuid4().hex, order.version, manifest, manifest.num_bytes, order.bucket_bytes,
                        self._line.offers)
        begun = receivers.ask(lambda index, actor: actor.begin_sync.remote(coming))
        near: dict[Any, bool] = {}

        def send(number: int, bucket: Bucket, marks: dict[str, int]) -> dict[int, ray.ObjectRef]:
            if number == 0:     # asked before the first bucket was gathered
                near.update({rollouts[index]: answer for index, answer in receivers.collect(begun).items()})
            beside, unreached = self._line.carry(memories[number % 2][:bucket.num_bytes], receivers.live.values(), near)
            receivers.leave_out(unreached)
            return receivers.ask(
                lambda index, actor: actor.receive.remote(coming.stream, number, marks, beside.get(actor)))

        def wait(sent: dict[int, ray.ObjectRef]) -> None:
            receivers.collect(sent)
            receivers.leave_out(self._line.settle(receivers.live.values()))

        marks = stream(buckets, weights, memories, send, wait)
        self._marks = self._marks | marks
        checksum = digest(self._manifest(order, None), self._marks)
        held = receivers.collect(receivers.ask(lambda index, actor: actor.end_sync.remote(coming.stream, checksum)))
        if receivers.failed:
            self._line.forget()
        outcomes = [receivers.failed[index] if index in receivers.failed else Outcome(held[index])
                    for index in range(len(rollouts))]
        return Published(version_label(order.version, checksum), checksum, manifest.num_bytes, len(buckets), largest,
                         outcomes)
