"""FAKE: runs whose stages sleep as a latency model says, under the real loop: how well the stages overlap."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.fakes.driving import drive, settings
from benchmarks.fakes.latency import Latency, Span
from benchmarks.fakes.players import Counts, World

__all__ = ["BALANCED", "LEARNER_BOUND", "ROLLOUT_BOUND", "Simulated", "chrome_trace", "simulate"]

COUNTS = Counts(rollouts=16, explainers=4, judges=4, learners=1)
GROUPS_PER_STEP, GROUP_SIZE = 128, 8
WARM_UP = 2     # steps not measured: at the start and, ahead of the learners, at the end, where no more is drawn

# 1,024 completions a step, log-normal in length (median 48 tokens, at most 256), on 16 engines of 8 slots. Seconds a
# step of each stage, were all its actors at work all the time:
#   ROLLOUT_BOUND   rollout 2.4, explain 1.4, score 0.7, learn 1.2, sync 0.06; the longest completion takes 1.3
#   LEARNER_BOUND   rollout 1.4, explain 1.4, score 0.7, learn 2.4, sync 0.06
#   BALANCED        rollout 2.4, learn 2.2: no slack for either
ROLLOUT_BOUND = Latency(token_s=5e-3, num_slots=8, explain_row_s=1.4 / 256, score_row_s=0.7 / 256, learn_s=1.2,
                        sync_s=0.06)
LEARNER_BOUND = dataclasses.replace(ROLLOUT_BOUND, token_s=3e-3, learn_s=2.4)
BALANCED = dataclasses.replace(ROLLOUT_BOUND, learn_s=2.2)


@dataclass(frozen=True)
class Simulated:
    """wall_s: of a step. stages: seconds a step that each stage cannot do without."""

    wall_s: float
    stages: dict[str, float]
    spans: list[Span]

    @property
    def slowest_s(self) -> float:
        return max(self.stages.values())

    @property
    def over_slowest(self) -> float:
        return self.wall_s / self.slowest_s

    def some_steps(self, num_steps: int) -> list[Span]:
        """What was at work from the end of the warm-up on, for about so many steps."""
        begin = sorted(span.end_s for span in self.spans if span.stage == "learn")[WARM_UP - 1]
        return [span for span in self.spans if begin <= span.start_s < begin + num_steps * self.wall_s]


def simulate(latency: Latency, *, steps: int, max_staleness: int, barrier: bool = False, virtual: bool = False
             ) -> Simulated:
    """A run of `steps` steps; barrier: stage after stage within each step."""
    latency = dataclasses.replace(latency, barrier=barrier)
    world = World(latency, rows_per_step=GROUPS_PER_STEP * GROUP_SIZE)
    with tempfile.TemporaryDirectory() as folder:
        config = settings(folder, steps=steps, groups_per_step=GROUPS_PER_STEP, group_size=GROUP_SIZE,
                          max_staleness=max_staleness, num_slots=latency.num_slots)
        driven = drive(config, COUNTS, world, virtual=virtual)
    stages = world.stage_seconds(steps) | {"sync": latency.sync_s}
    first, last = (WARM_UP, steps - WARM_UP) if max_staleness else (1, steps)
    return Simulated(driven.per_step("wall_s", first, last), stages, world.spans)


def chrome_trace(runs: dict[str, Sequence[Span]]) -> dict[str, Any]:
    """The spans of several runs as a trace that chrome://tracing and Perfetto show; microseconds. A run is a process, a
    stage's actor a thread."""
    events: list[dict[str, Any]] = []
    for pid, (name, spans) in enumerate(runs.items(), 1):
        events.append({"ph": "M", "name": "process_name", "pid": pid, "args": {"name": f"{name} (simulated)"}})
        threads = {key: number for number, key in enumerate(sorted({(span.stage, span.who) for span in spans}))}
        events += [{"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": f"{stage}-{who}"}}
                   for (stage, who), tid in threads.items()]
        events += [{"ph": "X", "name": span.stage, "pid": pid, "tid": threads[span.stage, span.who],
                    "ts": round(span.start_s * 1e6), "dur": round((span.end_s - span.start_s) * 1e6),
                    "args": {"rows": span.num_rows}} for span in spans]
    return {"traceEvents": events, "displayTimeUnit": "ms"}
