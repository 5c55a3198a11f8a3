"""What a run shows on the Ray dashboard and to any Prometheus: ray.util.metrics, fed in one place.

    rlaif_<figure>                  {run}               reward, gold, KL, staleness, ... of the last step (_FIGURES)
    rlaif_figure                    {run, name}         every other number of a step, under its own name
    rlaif_<count>_total             {run}               rollouts, tokens, trained rows, skipped, ... (_COUNTS)
    rlaif_restarts_total            {run, role}         and whatever else the pools count
    rlaif_ready                     {run, role}         actors that are ready
    rlaif_rows_in_flight            {run, role, rank}   the queue of each actor, every few seconds
    rlaif_stage_seconds             {run, role}         histogram: how long a stage was busy in a step
    rlaif_step_seconds              {run}               histogram

Ray puts `ray_` before each name, and knows the sum of a histogram only by the middles of its bounds: the seconds of the
last step lie in rlaif_figure, as <stage>_s and step_s. Actors themselves are named <role>-<rank>.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import Counter as Counts
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any, Protocol

from ray.util.metrics import Counter, Gauge, Histogram

from actors.training.stages import STAGES
from rlaif.pipeline.board import Board, Waiting

__all__ = ["Dashboard", "state_line"]

# What a step tells -> what it is, in words.
_FIGURES = {
    "reward": "mean reward of a step's rollouts", "gold": "what the judge that only watches says of them",
    "kl": "nats a completion to the reference policy", "kl_per_token": "nats a token to the reference policy",
    "kl_coefficient": "reward per nat", "max_logprob_gap": "nats between engine and learner at most",
    "completion_tokens": "mean length of a completion", "policy_version": "finished learner steps",
    "staleness_mean": "learner steps since the weights that wrote the rows", "staleness_max": "the same at most",
    "groups_in_flight": "groups that are rolled out or scored", "groups_buffered": "groups that wait for the learners",
    "loss": "loss of the learners", "grad_norm": "norm of the gradient", "entropy": "nats a token",
    "driver_s": "seconds that the driver's own process took of the step", "sync_s": "seconds of the weights' sync",
}
# What a step counts anew, and what it counts since the start.
_COUNTS = {"num_rollouts": "rollouts", "num_completion_tokens": "completion_tokens", "num_trained": "trained_rows",
           "rows_unjudged": "unjudged_rows", "explanations_failed": "failed_explanations",
           "portions_retried": "retried_portions"}
_SUMS = {"groups_skipped": "skipped_groups", "groups_discarded": "discarded_groups"}
_OF_POOLS = ("restarts", "hung", "calls_again", "missed_syncs")
_BOUNDS = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]
PREFIX = "rlaif_"


class _Pool(Protocol):
    role: str

    @property
    def in_flight(self) -> list[int]: ...


class Dashboard:
    """The metrics of a run called by the name of its output folder. Ray must be up."""

    def __init__(self, output_dir: str) -> None:
        self._run = {"run": Path(output_dir).name}
        self._made: dict[str, Any] = {}
        self._so_far: Counts[str] = Counts()

    def step(self, values: Mapping[str, Any]) -> None:
        """All numbers of a step, as the loop has them; what is no finite number is left out."""
        left = {name: float(value) for name, value in values.items()
                if isinstance(value, Real) and math.isfinite(float(value))}
        self._histograms(left)
        for key, name in _COUNTS.items():
            self._count(name, left.get(key, 0.0))
        for key, name in _SUMS.items():
            self._count_up(name, left.pop(key, 0.0))
        for key in list(left):
            for kind in (*_OF_POOLS, "ready"):
                role = key.removeprefix(f"{kind}_")
                if role != key:
                    self._of_pool(kind, role, left.pop(key))
                    break
        seconds = left.get("step_s", 0.0)
        if seconds > 0:
            for key, name in (("num_rollouts", "rollouts_per_second"), ("num_completion_tokens", "tokens_per_second")):
                self._set(name, left.get(key, 0.0) / seconds, f"{_COUNTS[key]} a second of the last step")
        for key, value in left.items():
            if key in _FIGURES:
                self._set(key, value, _FIGURES[key])
            elif key not in _COUNTS:
                self._set("figure", value, "a number of the last step", name=key)

    def queues(self, pools: Iterable[_Pool]) -> None:
        """How many rows each actor of each pool has been asked about and has not answered."""
        for pool in pools:
            for rank, rows in enumerate(pool.in_flight):
                self._set("rows_in_flight", rows, "rows that an actor has been asked about", role=pool.role,
                          rank=str(rank))

    @contextlib.asynccontextmanager
    async def watching(self, fleet: Any, say: Callable[[str], None], every_s: float) -> AsyncIterator[None]:
        """Inside, the queues are looked at every few seconds, and a line says each stage's state every `every_s` (0:
        none)."""
        task = asyncio.create_task(self._watch(fleet, say, every_s))
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _watch(self, fleet: Any, say: Callable[[str], None], every_s: float, look_s: float = 5.0) -> None:
        told = time.monotonic()
        while True:
            await asyncio.sleep(min(look_s, every_s or look_s))
            self.queues(fleet.pools)
            now = time.monotonic()
            if every_s and now - told >= every_s:
                told = now
                say(state_line(fleet.board, {pool.role: sum(pool.in_flight) for pool in fleet.pools}, now))

    # --- metrics by name ------------------------------------------------------------------------------------------

    def _histograms(self, left: dict[str, float]) -> None:
        for stage in STAGES:
            if f"{stage}_s" in left:
                self._metric("stage_seconds", Histogram, "seconds that a stage was busy in a step", ("role",),
                             boundaries=_BOUNDS).observe(left[f"{stage}_s"], tags=self._run | {"role": stage})
        if "step_s" in left:
            self._metric("step_seconds", Histogram, "seconds of a step", (), boundaries=_BOUNDS).observe(
                left["step_s"], tags=self._run)

    def _of_pool(self, kind: str, role: str, value: float) -> None:
        if kind == "ready":
            self._set("ready", value, "actors that are ready", role=role)
        else:
            self._count_up(kind, value, role=role)

    def _count_up(self, name: str, total: float, **tags: str) -> None:
        """Counts on to `total`, a number since the start."""
        key = "/".join((name, *tags.values()))
        self._count(name, max(0.0, total - self._so_far[key]), **tags)
        self._so_far[key] = max(self._so_far[key], total)

    def _count(self, name: str, value: float, **tags: str) -> None:
        metric = self._metric(f"{name}_total", Counter, f"{name.replace('_', ' ')} since the start", tuple(tags))
        if value > 0:       # Ray takes nothing else
            metric.inc(value, tags=self._run | tags)

    def _set(self, metric: str, value: float, what: str, **tags: str) -> None:
        self._metric(metric, Gauge, what, tuple(tags)).set(value, tags=self._run | tags)

    def _metric(self, name: str, kind: Any, what: str, tags: tuple[str, ...], **more: Any) -> Any:
        if name not in self._made:
            self._made[name] = kind(PREFIX + name, description=what, tag_keys=("run", *tags), **more)
        return self._made[name]


def state_line(board: Board, rows: Mapping[str, int], now: float) -> str:
    """Each stage's state in one line: how many calls are under way, for how long the oldest, how many rows wait.

    rows: in flight, by role. now: of the board's clock.
    """
    found: dict[str, list[Waiting]] = {}
    for entry in board.entries:
        found.setdefault(entry.stage, []).append(entry)
    parts = []
    for stage in dict.fromkeys([*rows, *found]):
        calls = found.get(stage, [])
        waiting = [f"{rows[stage]} rows"] if rows.get(stage) else []
        if calls:
            waiting.append(f"{len(calls)} call{'s' if len(calls) > 1 else ''}, the oldest "
                           f"{now - min(entry.since for entry in calls):.0f} s")
        parts.append(f"{stage} {' in '.join(waiting) or 'idle'}")
    return "now: " + "; ".join(parts or ["nothing under way"])
