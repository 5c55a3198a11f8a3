"""Whether what lies on a GPU, and on a node, has room there; in sums that name their parts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from rlaif.planning.cluster import GIB, Node
from rlaif.planning.memory import ASLEEP, KV_CACHE, Item, total

__all__ = ["Actor", "Shortage", "gpu_load", "host_load", "shortages"]

_CURES = {
    "optimizer": "learner.zero_stage=1 or higher, more learners, or learner.offload=true",
    "gradients": "learner.zero_stage=2 or higher, or more learners",
    "weights": "learner.zero_stage=3, tensor_parallel_size, or fewer actors on it",
    "reference": "learner.lora.rank, or algorithm.kl_coefficient=0",
    "activations": "learner.activation_checkpointing=true, or fewer learner.micro_batch_tokens",
    KV_CACHE: "a lower engine.gpu_memory_utilization, or rollout.engine.sleeps=true beside learners",
    "loading": "fewer learners on a node", "process": "fewer actors on a node",
}


@dataclass(frozen=True)
class Actor:
    """One actor: number of its node and of its GPUs there, and what it takes (of each of its GPUs, and of the host)."""

    role: str
    number: int
    node: int
    gpus: tuple[int, ...]
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Shortage:
    """What does not fit. is_known: surely, by numbers of weights alone; else by estimates."""

    told: str
    is_known: bool


def gpu_load(actors: Sequence[Actor], node: int, gpu: int, sleeps: bool, *, known: bool = False) -> float:
    """Bytes on one GPU at the fullest moment.

    Engines of rollouts that sleep are awake while learners hold only what lasts from step to step, and asleep while
    they learn.
    """
    here = [actor for actor in actors if actor.node == node and gpu in actor.gpus]
    sums = {actor: total(actor.items, "gpu", known=known) for actor in here}
    if not sleeps:
        return sum(sums.values())
    resting = sum(total(actor.items, "gpu", known=known, lasting=True) if actor.role == "learner" else sums[actor]
                  for actor in here)
    asleep = 0.0 if known else ASLEEP
    learning = sum(asleep if actor.role == "rollout" else sums[actor] for actor in here)
    return max(resting, learning)


def host_load(actors: Sequence[Actor], node: int, *, known: bool = False) -> float:
    """Bytes of a node's own memory."""
    return sum(total(actor.items, "host", known=known) for actor in actors if actor.node == node)


def shortages(actors: Sequence[Actor], nodes: Sequence[Node], sleeps: bool) -> list[Shortage]:
    """Every GPU and node that is too small for what lies on it; equal ones are told once."""
    found: dict[tuple[str, bool], list[str]] = defaultdict(list)
    for number, node in enumerate(nodes):
        for gpu in range(node.num_gpus if node.gpu is not None else 0):
            here = [actor for actor in actors if actor.node == number and gpu in actor.gpus]
            for known in (True, False):
                load = gpu_load(here, number, gpu, sleeps, known=known)
                if node.gpu is not None and load > node.gpu.memory:
                    found[_told(here, "gpu", load, node.gpu.memory, known, sleeps), known].append(f"{node.name}:{gpu}")
                    break
        here = [actor for actor in actors if actor.node == number]
        for known in (True, False):
            load = host_load(here, number, known=known)
            if load > node.memory:
                found[_told(here, "host", load, node.memory, known, False), known].append(node.name)
                break
    return [Shortage(text.replace("{where}", _names(where)), known) for (text, known), where in found.items()]


def _names(where: Sequence[str]) -> str:
    return ", ".join(where[:4]) + (f" and {len(where) - 4} more" if len(where) > 4 else "")


def _told(here: Sequence[Actor], place: str, load: float, room: float, known: bool, sleeps: bool) -> str:
    counts = Counter(actor.role for actor in here)
    items = {actor.role: [item for item in actor.items if item.place == place and (item.is_known or not known)
                          and item.bytes > 0.005 * GIB] for actor in here}
    parts = [f"{f'{counts[role]} x ' if counts[role] > 1 else ''}{role} ("
             + " + ".join(f"{item.name} {item.bytes / GIB:.1f}" for item in found) + ")"
             for role, found in items.items() if found]
    largest = max((item for found in items.values() for item in found), key=lambda item: item.bytes, default=None)
    cure = _CURES.get(largest.name if largest else "", "fewer actors there, or larger machines")
    what = "GPU" if place == "gpu" else "memory"
    when = ", at its fullest with engines asleep while learners learn" if sleeps and place == "gpu" else ""
    return (f"{what} of {{where}} must hold what lies on it, got {' + '.join(parts)} = {load / GIB:.1f} of "
            f"{room / GIB:.1f} GiB{'' if known else ' by estimate'}{when}; try {cure}")
