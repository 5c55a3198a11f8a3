"""Seconds of a weight sync of half a billion parameters from a learner to an engine on one GPU, by backend.

Beside it, on the same machine: a copy of the same bytes from the GPU to the host, into pageable and into pinned memory.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from pathlib import Path
from typing import Any

import ray
import torch

from actors.cluster.connection import connect
from actors.engines.rollout import RolloutActor
from actors.learners.gang import Gang
from actors.learners.learner import LearnerSpec
from actors.training.weight_sync import WeightSync
from benchmarks.on_gpu.models import NamedPlacement, write_policy
from benchmarks.on_gpu.part import Checks, run
from benchmarks.on_gpu.rate import copy_to_host_s
from rlaif.config.learner import LearnerConfig
from rlaif.config.train import EngineConfig, ModelConfig, RoleConfig, RolloutConfig, WeightSyncConfig

BACKENDS = ("shared_memory", "gloo", "ipc")
ROUNDS = {"quick": 3, "full": 9}
BUCKET_MB = 256
SHARE = 0.15        # of the GPU, of each actor
ENGINE = EngineConfig(max_model_len=64, dtype="bfloat16", gpu_memory_utilization=0.12)


def measured(form: str, checks: Checks) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        num_parameters = write_policy(Path(folder), scenes=False)
        num_bytes = 2 * num_parameters
        figures = {"parameters": num_parameters, "bytes": num_bytes, "bucket_bytes": BUCKET_MB << 20,
                   "rounds": ROUNDS[form], "copy_to_host_s": copy_to_host_s(num_bytes, pinned=False),
                   "copy_to_pinned_host_s": copy_to_host_s(num_bytes, pinned=True)}
        torch.cuda.empty_cache()
        connect()
        try:
            found = asyncio.run(_all(folder, ROUNDS[form]))
        finally:
            ray.shutdown()
    first = found[BACKENDS[0]].get("digests")
    for backend, of_backend in found.items():
        if "digests" in of_backend:
            # The bytes in the engine are the same, whoever carried them.
            checks.add(f"sync by {backend}: engines with other weights than by {BACKENDS[0]}",
                       float(of_backend["digests"] != first), 0.0)
    not_run = {"nccl": {"not_run": "one GPU: NCCL takes no two ranks on it"}}
    errors = {backend: of_backend["error"] for backend, of_backend in found.items() if "error" in of_backend}
    return figures | {"backends": found | not_run, "errors": errors}


async def _all(folder: str, num_rounds: int) -> dict[str, dict[str, Any]]:
    """All are started together, which saves minutes, and measured one after the other."""
    pairs = {backend: _Pair(folder, backend) for backend in BACKENDS}
    started = await asyncio.gather(*(pair.rollout.ready.remote() for pair in pairs.values()), return_exceptions=True)
    found: dict[str, dict[str, Any]] = {}
    for (backend, pair), problem in zip(pairs.items(), started, strict=True):
        try:
            if isinstance(problem, BaseException):
                raise problem
            found[backend] = await pair.rounds(num_rounds)
        except Exception as error:
            found[backend] = {"error": f"{type(error).__name__}: {error}"}
    return found


class _Pair:
    """A learner and an engine that has begun to start."""

    def __init__(self, folder: str, backend: str) -> None:
        self._folder, self._config = folder, WeightSyncConfig(backend=backend, bucket_mb=BUCKET_MB)
        self._placement = NamedPlacement(
            backend, {name: RoleConfig(num_cpus=0.25, num_gpus=SHARE) for name in ("learner", "rollout")})
        self.rollout = RolloutActor.options(**self._placement.options("rollout", 0)).remote(
            folder, RolloutConfig(max_tokens=8, engine=ENGINE), self._config, SHARE, 0)

    async def rounds(self, num_rounds: int) -> dict[str, Any]:
        spec = LearnerSpec(model=ModelConfig(model=self._folder), tokenizer=self._folder, total_steps=1, seed=0,
                           learner=LearnerConfig(dtype="bfloat16", zero_stage=1))
        gang = Gang(spec, self._placement, 1)
        await gang.join()
        sync = WeightSync(gang, self._config, ENGINE, timeout_s=120.0)
        await sync.open([self.rollout])
        seconds, reloads, digests = [], [], set()
        for version in range(num_rounds + 2):       # two to warm up
            sent = await sync.send(version, [self.rollout])
            sent.refuse_losses()
            held = sent.outcomes[0].held
            assert held is not None
            seconds.append(sent.seconds)
            reloads.append(held.reload_s)
            digests.add(held.installed)
        self._placement.remove()
        return {"s": statistics.median(seconds[2:]), "first_s": seconds[0], "bytes": sent.num_bytes,
                "reload_s": statistics.median(reloads[2:]), "digests": sorted(digests)}


if __name__ == "__main__":
    run(measured)
