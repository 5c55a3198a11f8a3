"""How fast weights go from the learner to an engine: python benchmarks/weight_sync.py [quick | full]

A Qwen2 policy of 34 million (quick) or 50 million parameters, drawn at random, in a real learner (DeepSpeed) and a real
rollout engine (vLLM), each in its own Ray actor. Interleaved, in rounds:

  sync      WeightSync.send: pause, gather, send, check every weight, vLLM's reload, proof, resume
  memcpy    the same bytes through shared memory, and nothing else: one process writes them (cast as in a sync), another
            reads them to its own tensors; both keep their memory from round to round, so that no page is new
  memcpy, new memory    the same, with shared memory that is made for the purpose and given back, as a program would
                        that copies once

sync_over_memcpy is the ratio of the medians of the first two. vLLM's own part of a sync, what it makes of weights that
it has (a copy to each layer, the CPU's prepacking), is `reload_s`; sync_without_reload_over_memcpy is the rest.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import ray  # noqa: E402
import torch  # noqa: E402
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM  # noqa: E402

from actors.carriers.shared_memory import Offer, SharedMemory, attach  # noqa: E402
from actors.cluster.connection import actor_environment, connect  # noqa: E402
from actors.cluster.placement import Placement  # noqa: E402
from actors.engines.rollout import RolloutActor  # noqa: E402
from actors.learners.gang import Gang  # noqa: E402
from actors.learners.learner import LearnerSpec  # noqa: E402
from actors.training.weight_sync import WeightSync  # noqa: E402
from benchmarks.measuring import environment, store, table_lines  # noqa: E402
from rlaif.config.learner import LearnerConfig  # noqa: E402
from rlaif.config.train import (  # noqa: E402
    EngineConfig,
    ModelConfig,
    RoleConfig,
    RolloutConfig,
    WeightSyncConfig,
)

START = ROOT / "rlaif" / "scenes" / "start" / "policy"
LAYERS = {"quick": 2, "full": 3}        # of hidden size 1024: 17 million parameters each
ROUNDS = {"quick": 7, "full": 15}
BUCKET_MB = 16                          # as large as the largest weight
DTYPES = {"quick": ("float32",), "full": ("float32", "bfloat16")}      # of the engine; the learner has float32


def main(arguments: Sequence[str]) -> int:
    form = arguments[0] if arguments else "quick"
    if form not in LAYERS or len(arguments) > 1:
        print(f"usage: {Path(__file__).name} [{' | '.join(LAYERS)}]", file=sys.stderr)
        return 2
    connect()
    try:
        figures = measured(form)
    finally:
        ray.shutdown()
    rows = [{"engine": dtype} | {name.removesuffix(f"_{dtype}"): value for name, value in figures.items()
                                 if name.endswith(f"_{dtype}")} for dtype in DTYPES[form]]
    for line in table_lines(list(rows[0]), rows):
        print(line)
    store("weight_sync", {"form": form} | figures | environment())
    return 0


def measured(form: str) -> dict[str, Any]:
    """The figures by name, Ray being there; those without a dtype in their name are of a float32 engine."""
    figures: dict[str, Any] = {}
    for dtype in DTYPES[form]:
        found = _measured(LAYERS[form], ROUNDS[form], dtype)
        figures |= {f"{name}_{dtype}": value for name, value in found.items()}
    for name in ("sync_over_memcpy", "sync_without_reload_over_memcpy", "sync_over_memcpy_new_memory"):
        figures[name] = figures[f"{name}_float32"]
    return figures


def _measured(num_layers: int, num_rounds: int, dtype: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        weights = write_policy(folder, num_layers)
        with fleet(folder, dtype) as (gang, rollout):
            sync = WeightSync(gang, WeightSyncConfig(bucket_mb=BUCKET_MB),
                              EngineConfig(dtype=dtype), timeout_s=120.0)
            return asyncio.run(_rounds(sync, gang, rollout, Copying(weights, dtype), num_rounds))


def write_policy(folder: str, num_layers: int) -> list[torch.Tensor]:
    """Writes a Qwen2 of the start policy's vocabulary into `folder`; returns its weights."""
    vocabulary = json.loads((START / "config.json").read_text())["vocab_size"]
    model = Qwen2ForCausalLM(Qwen2Config(
        vocab_size=vocabulary, hidden_size=1024, intermediate_size=4096, num_hidden_layers=num_layers,
        num_attention_heads=16, num_key_value_heads=16, max_position_embeddings=256, tie_word_embeddings=True))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(START).save_pretrained(folder)
    return [weight.detach() for weight in model.parameters()]


@contextmanager
def fleet(folder: str, dtype: str) -> Iterator[tuple[Gang, Any]]:
    """One learner and one rollout engine that have loaded the policy in `folder`."""
    roles = {"learner": RoleConfig(num_cpus=0.5), "rollout": RoleConfig(num_cpus=0.5)}
    placement = Placement(roles, "PACK", 60)
    spec = LearnerSpec(model=ModelConfig(model=folder), tokenizer=folder, learner=LearnerConfig(), total_steps=1,
                       seed=0)
    gang = Gang(spec, placement, 1)
    rollout = RolloutActor.options(**placement.options("rollout", 0)).remote(
        folder, RolloutConfig(max_tokens=8, engine=EngineConfig(max_model_len=64, dtype=dtype, kv_cache_mb=32)),
        WeightSyncConfig(), 0.0, 0)
    try:
        asyncio.run(_ready(gang, rollout))
        yield gang, rollout
    finally:
        placement.remove()


async def _ready(gang: Gang, rollout: Any) -> None:
    await asyncio.gather(gang.join(), _await(rollout.ready.remote()))


async def _await(reference: Any) -> Any:
    return await reference


@ray.remote(num_cpus=0)
class Reader:
    """The other process of a plain copy."""

    def __init__(self, num_bytes: int) -> None:
        self._own = torch.zeros(num_bytes, dtype=torch.uint8)
        self._attached: dict[str, torch.Tensor] = {}

    def copy(self, offer: Offer, keeps: bool) -> None:
        memory = self._attached[offer.token] if offer.token in self._attached else attach(offer)
        if keeps:
            self._attached[offer.token] = memory
        self._own.copy_(memory)


class Copying:
    """`weights`, cast to `dtype`, through shared memory to another process."""

    def __init__(self, weights: Sequence[torch.Tensor], dtype: str) -> None:
        self._weights, self._dtype = weights, getattr(torch, dtype)
        self.num_bytes = sum(weight.numel() for weight in weights) * self._dtype.itemsize
        self._kept = SharedMemory(self.num_bytes)
        self._reader = Reader.options(runtime_env=actor_environment(1, 0.0)).remote(self.num_bytes)

    def copy(self, memory: SharedMemory | None = None) -> None:
        own = memory or self._kept
        target = own.tensor.view(self._dtype)
        start = 0
        for weight in self._weights:
            target[start:start + weight.numel()].view(weight.shape).copy_(weight)
            start += weight.numel()
        ray.get(self._reader.copy.remote(own.offer, memory is None))

    def copy_once(self) -> None:
        self.copy(SharedMemory(self.num_bytes))


async def _rounds(sync: WeightSync, gang: Gang, rollout: Any, copying: Copying, num_rounds: int) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {name: [] for name in ("sync", "memcpy", "memcpy_new_memory", "reload")}

    def timed(name: str, task: Callable[[], None]) -> None:
        started = time.perf_counter()
        task()
        seconds[name].append(time.perf_counter() - started)

    learner = (await gang.handles["learner-0"].ping.remote()).pids[0][0]
    peaks: list[float] = []
    for number in range(num_rounds + 2):        # two to warm up
        before = resident(learner)
        sent = await sync.send(number, [rollout])
        sent.refuse_losses()
        peaks.append(peak(learner) - before)
        held = sent.outcomes[0].held
        assert held is not None
        seconds["sync"].append(sent.seconds)
        seconds["reload"].append(held.reload_s)
        timed("memcpy", copying.copy)
        timed("memcpy_new_memory", copying.copy_once)
    median = {name: statistics.median(values[2:]) for name, values in seconds.items()}
    return {
        "parameter_bytes": sent.num_bytes, "bucket_bytes": BUCKET_MB << 20, "num_rounds": num_rounds,
        **{f"{name}_s": value for name, value in median.items()},
        "sync_over_memcpy": median["sync"] / median["memcpy"],
        "sync_over_memcpy_new_memory": median["sync"] / median["memcpy_new_memory"],
        "sync_without_reload_over_memcpy": (median["sync"] - median["reload"]) / median["memcpy"],
        "learner_peak_extra_buckets": max(peaks) / (BUCKET_MB << 20),
    }


def _status(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) << 10
    return 0


def resident(pid: int) -> int:
    """Bytes of memory of the process, without what it shares; its peak is measured from now on."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return _status(pid, "VmRSS") - _status(pid, "RssShmem")


def peak(pid: int) -> int:
    """Bytes of memory of the process at the most since `resident` was asked, with what it shares."""
    return _status(pid, "VmHWM")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
