"""Reinforcement learning, step by step: prompts, rollouts, explanations, rewards, the update, weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray

from actors.fleet import Fleet
from actors.held_out import HeldOut
from actors.walk import Order, Walk, walk
from rlaif.algorithm_config import AlgorithmConfig
from rlaif.config import TrainConfig
from rlaif.controllers import KlController
from rlaif.dynamic_sampling import Choice, choose_groups
from rlaif.figures import counts, group_figures, means
from rlaif.metrics import values
from rlaif.prompts import PromptStream
from rlaif.report import Report, Stopwatch, sample_lines, stage_lines
from rlaif.training_batch import ORDER, chosen_rows

STAGES = ("rollout", "explain", "score", "learn", "sync")


@dataclass(frozen=True)
class Trained:
    """What a training came to, for summary.json."""

    before: dict[str, float]        # figures of the first evaluation
    after: dict[str, float]         # of the last one
    steps: int                      # that were made
    stopped: str | None             # why there were not more, where the run asked for more
    best_step: int | None           # of evaluation.select_by; None where that is not given
    loop_s: float                   # seconds of the steps
    num_rollouts: int
    max_logprob_gap: float          # nats
    checksum: str                   # of the last weights


async def train(config: TrainConfig, fleet: Fleet, stream: PromptStream, held_out: HeldOut, labels: list[str],
                report: Report, watch: Stopwatch, driver_clock: Callable[[], float]) -> Trained:
    """Trains the policy on the prompts of `stream` for `config.steps` steps, or until an evaluation ends the run.

    labels: what the slots' classes are called where samples are shown. driver_clock: tells the CPU seconds that this
    process has spent so far.
    """
    controller = kl_controller(config.algorithm)
    checksum = await fleet.sync(0)
    stopped = await held_out.evaluate(0)
    before, step, gap, loop_s, num_rollouts = held_out.figures, 0, 0.0, 0.0, 0
    while step < config.steps and stopped is None:
        step += 1
        started, driver = time.perf_counter(), driver_clock()
        done, choice = await roll_out(config, fleet, stream)
        learn_started = time.perf_counter()
        chosen = chosen_rows(done.summary, choice.kept)
        learned = values(await fleet.learners.update_policy(ray.put(chosen), controller.coefficient, done.scored))
        learn_s = time.perf_counter() - learn_started
        sync_started = time.perf_counter()
        checksum = await fleet.sync(step)
        seconds = {f"{stage}_s": clock.seconds for stage, clock in done.clocks.items()} | {
            "learn_s": learn_s, "sync_s": time.perf_counter() - sync_started}
        # What was measured on all rollouts goes over what the learners measured on those they trained on.
        step_values = learned | rollout_values(done, choice, config.algorithm) | stream.figures() | seconds | {
            "kl_coefficient": controller.coefficient, "num_trained": chosen.num_rows,
            "step_s": time.perf_counter() - started, "driver_s": driver_clock() - driver,
            "policy_version": step, "checksum": checksum}
        if controller.target is not None:
            controller = controller.after(learned["kl"], chosen.num_rows)
        gap = max(gap, step_values["max_logprob_gap"])
        loop_s, num_rollouts = loop_s + step_values["step_s"], num_rollouts + step_values["num_rollouts"]
        _tell(step, config, step_values, done, labels, report, watch)
        if held_out.is_due(step):
            stopped = await held_out.evaluate(step)
    if step == config.steps:
        stopped = None
    if stopped is not None:
        report.say(f"ends after step {step} of {config.steps}: {stopped}")
    return Trained(before=before, after=held_out.figures, steps=step, stopped=stopped,
                   best_step=held_out.known.best_step, loop_s=loop_s, num_rollouts=num_rollouts,
                   max_logprob_gap=max(gap, held_out.figures.get("max_logprob_gap", 0.0)), checksum=checksum)


async def roll_out(config: TrainConfig, fleet: Fleet, stream: PromptStream) -> tuple[Walk, Choice]:
    """The scored rollouts of a step, and the groups of them to train on; with algorithm.dynamic_sampling = resample new
    prompts are drawn for groups of equal rewards, up to max_resampling times."""
    algorithm, num_groups = config.algorithm, config.rollout.groups_per_step
    order = Order(config.rollout.group_size, config.seed)
    max_rounds = algorithm.max_resampling if algorithm.dynamic_sampling == "resample" else 0
    done, num_missing = Walk(), num_groups
    for num_rounds in range(max_rounds + 1):
        await walk(fleet, stream.next(num_missing), order, done)
        choice = choose_groups(done.summary["group_id"].to_pylist(), told_apart_by(done.summary, algorithm.parts),
                               num_groups, is_last=num_rounds == max_rounds)
        num_missing = choice.num_missing
        if num_missing == 0:
            break
    stream.observe(done.summary["group_id"].to_pylist(), done.summary["reward"].to_pylist())
    return done, choice


def told_apart_by(summary: pa.Table, parts: str) -> list[Any]:
    """What must differ inside a group for it to teach: the reward, or each of its parts where they are normalised by
    themselves."""
    if parts == "separate":
        return [tuple(sorted(terms)) for terms in summary["reward_terms"].to_pylist()]
    return summary["reward"].to_pylist()


def rollout_values(done: Walk, choice: Choice, algorithm: AlgorithmConfig) -> dict[str, Any]:
    """Numbers on all rollouts of a step, trained on or not."""
    found = values(done.metrics) | means(done.summary) | counts(done.summary) | group_figures(done.summary)
    if algorithm.dynamic_sampling == "resample":
        found |= {"num_replaced_groups": len(choice.replaced), "num_equal_groups_kept": choice.num_equal,
                  "num_resampling_rounds": done.num_rounds - 1}
    return found


def kl_controller(algorithm: AlgorithmConfig) -> KlController:
    """The KL's coefficient at the start of a run, and how it moves."""
    return KlController(algorithm.kl_coefficient, algorithm.kl_target, algorithm.kl_horizon)


def _tell(step: int, config: TrainConfig, step_values: dict[str, Any], done: Walk, labels: list[str], report: Report,
          watch: Stopwatch) -> None:
    """A step's numbers to the files and the console, with samples where they are due."""
    for stage in STAGES:
        watch.add(stage, step_values[f"{stage}_s"])
    watch.add("driver", step_values["driver_s"])
    report.step(step, step_values)
    for line in stage_lines(step, config.steps, step_values):
        report.say(line)
    if config.report.samples_every and step % config.report.samples_every == 0:
        rows = ray.get(done.scored[0]).sort_by(ORDER).slice(0, config.report.num_samples).to_pylist()
        for line in sample_lines(rows, labels):
            report.say(line)
