"""Reinforcement learning, step by step: prompts, rollouts, explanations, rewards, the update, weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray

from actors.faults.ending import Ended
from actors.faults.pool import InputsLost
from actors.training.dashboard import Dashboard
from actors.training.feeder import Chosen, Feeder
from actors.training.fleet import Fleet
from actors.training.held_out import HeldOut
from actors.training.progress import Progress, Saves, Tally, Unsaved
from actors.training.replay import Replay, ReplayStream
from actors.training.stages import STAGES, Stages
from actors.training.storing import Storing
from actors.training.walk import here
from rlaif.config.algorithm import AlgorithmConfig
from rlaif.config.train import TrainConfig
from rlaif.data.prompts import PromptStream
from rlaif.metrics import values
from rlaif.pipeline.ledger import Ledger
from rlaif.policy.controllers import KlController
from rlaif.policy.training_batch import ORDER, chosen_rows
from rlaif.running.figures import counts, group_figures, means
from rlaif.running.report import Report, Stopwatch, sample_lines, stage_lines


@dataclass(frozen=True)
class Trained:
    """What a training came to, for summary.json."""

    before: dict[str, float]        # figures of the first evaluation
    after: dict[str, float]         # of the last one
    steps: int                      # that were made
    stopped: str | None             # why there were not more, where the run asked for more
    best_step: int | None           # of evaluation.select_by; None where that is not given
    tally: Tally
    checksum: str                   # of the last weights
    ledger: dict[str, Any] = field(default_factory=dict)    # what became of the groups: Ledger.state()


async def train(config: TrainConfig, fleet: Fleet, stream: PromptStream | ReplayStream, held_out: HeldOut,
                labels: list[str], report: Report, watch: Stopwatch, driver_clock: Callable[[], float],
                saver: Saves | None = None, dashboard: Dashboard | None = None, storing: Storing | None = None
                ) -> Trained:
    """Trains the policy on the prompts of `stream` for `config.steps` steps, or until an evaluation or a signal ends
    the run; goes on where `saver` says that it stood.

    stream: prompts, or stored rollouts, which are trained on as they are. storing: keeps what is rolled out. labels:
    what the slots' classes are called where samples are shown. driver_clock: tells the CPU seconds that this
    process has spent so far.
    """
    at, saver = Progress(0, stream, Ledger(), kl_controller(config.algorithm), held_out, Tally()), saver or Unsaved()
    at = await saver.restore(at) or at
    stages, stopped, is_ahead = Stages(), held_out.stop, config.pipeline.max_staleness > 0
    storing = storing or Storing(config, {})
    storing.rewind(at.step)
    feed = Replay if isinstance(at.stream, ReplayStream) else Feeder
    feeder = feed(fleet, at.stream, config, stages, at.ledger, at.buffered)
    try:
        checksum = await fleet.sync(at.step)
        if at.before is None:
            await saver.unless_ended(held_out.evaluate(at.step))
            at.before = held_out.figures
        elif held_out.is_due(at.step):      # it was given up
            stopped = await saver.unless_ended(held_out.evaluate(at.step))
        feeder.grow(at.step)
        stages.lap()
        while at.step < config.steps and stopped is None:
            started, driver = time.perf_counter(), driver_clock()
            chosen = await saver.unless_ended(feeder.take())
            try:
                async with storing.writing(at.step + 1, chosen):
                    learned = await learn(fleet, chosen, at, stages)
            except InputsLost as error:
                fleet.budget.spend(f"step {at.step + 1}", str(error))
                report.say(f"step {at.step + 1} is made anew: {error}")
                feeder.again(chosen)
                continue
            feeder.trained(chosen)
            with stages.busy("sync"):
                checksum = await fleet.sync(at.step)
            if is_ahead:        # else the engines wait until the step is told, measured and written down
                feeder.grow(at.step)
            step_values = learned | rollout_values(chosen, config.algorithm) | at.stream.figures() | fleet.figures() | {
                "policy_version": at.step, "checksum": checksum, "driver_s": driver_clock() - driver
                } | pace(stages, started)
            at.tally.add(step_values)
            await _tell(at.step, config, step_values, chosen, labels, report, watch)
            if dashboard is not None:
                dashboard.step(step_values)
            del chosen          # and with it the rows in the object store
            if held_out.is_due(at.step):
                stopped = await saver.unless_ended(held_out.evaluate(at.step))
            at.buffered = feeder.buffered
            await saver.save(at)
            at.buffered = []
            stopped = stopped or saver.ends
            feeder.grow(at.step)
            stages.lap()        # what came after the step is of none
    except Ended:               # the step, or the evaluation, that was under way is given up
        at.buffered = feeder.buffered
        await saver.save(at)
        stopped = saver.ends
    finally:
        await feeder.close()
    if at.step == config.steps and not held_out.is_due(at.step):
        stopped = None          # it was the last one anyway
    if stopped is not None:
        report.say(f"ends after step {at.step} of {config.steps}: {stopped}")
    return Trained(at.before, held_out.figures, at.step, stopped, held_out.known.best_step, at.tally, checksum,
                   at.ledger.state())


async def learn(fleet: Fleet, chosen: Chosen, at: Progress, stages: Stages) -> dict[str, float]:
    """One policy update on the groups that were chosen, and what the learners measured on them; `at` is a step on.

    Raises InputsLost where no learner can read them any more.
    """
    rows = chosen_rows(chosen.summary, chosen.kept)
    with stages.busy("learn"):
        async with fleet.learning():
            learned = values(await fleet.learners.update_policy(
                ray.put(rows), at.controller.coefficient, chosen.scored))
    found = learned | {"kl_coefficient": at.controller.coefficient, "num_trained": rows.num_rows}
    if at.controller.target is not None and "kl" in learned:     # else no token was left to learn from
        at.controller = at.controller.after(learned["kl"], rows.num_rows)
    at.step += 1
    return found


def pace(stages: Stages, started: float) -> dict[str, float]:
    """Seconds of the step that began at `started`: in all, and for which each stage was busy and idle."""
    step_s, laps = time.perf_counter() - started, stages.lap()
    idle = {f"{stage}_idle_s": max(0.0, step_s - laps[f"{stage}_s"]) for stage in STAGES}
    return {"step_s": step_s} | laps | idle


def rollout_values(chosen: Chosen, algorithm: AlgorithmConfig) -> dict[str, Any]:
    """Numbers on all rollouts of a step, trained on or not: they go over what the learners measured on theirs."""
    summary = chosen.summary
    found = values(chosen.metrics) | means(summary) | counts(summary) | group_figures(summary) | chosen.figures
    if algorithm.dynamic_sampling == "resample":
        found |= {"num_replaced_groups": len(chosen.replaced), "num_equal_groups_kept": chosen.num_equal,
                  "num_resampling_rounds": chosen.num_rounds - 1}
    return found


def kl_controller(algorithm: AlgorithmConfig) -> KlController:
    """The KL's coefficient at the start of a run, and how it moves."""
    return KlController(algorithm.kl_coefficient, algorithm.kl_target, algorithm.kl_horizon)


async def _tell(step: int, config: TrainConfig, step_values: dict[str, Any], chosen: Chosen, labels: list[str],
                report: Report, watch: Stopwatch) -> None:
    """A step's numbers to the files and the console, with samples where they are due."""
    for stage in STAGES:
        watch.add(stage, step_values[f"{stage}_s"])
    watch.add("driver", step_values["driver_s"])
    report.step(step, step_values)
    for line in stage_lines(step, config.steps, step_values):
        report.say(line)
    if config.report.samples_every and step % config.report.samples_every == 0:
        try:
            rows = (await here(chosen.scored[0])).sort_by(ORDER).slice(0, config.report.num_samples).to_pylist()
        except InputsLost as error:         # they went with their node, after they were trained on
            report.say(f"  no samples: {error}")
            return
        for line in sample_lines(rows, labels):
            report.say(line)
