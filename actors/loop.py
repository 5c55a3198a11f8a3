"""Reinforcement learning, step by step: prompts, rollouts, explanations, rewards, the update, weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray

from actors.fleet import Fleet
from actors.held_out import HeldOut
from actors.walk import Order, Walk, walk
from rlaif.config.algorithm import AlgorithmConfig
from rlaif.config.train import TrainConfig
from rlaif.data.prompts import PromptStream
from rlaif.metrics import values
from rlaif.policy.controllers import KlController
from rlaif.policy.dynamic_sampling import Choice, choose_groups
from rlaif.policy.training_batch import ORDER, chosen_rows
from rlaif.running.figures import counts, group_figures, means
from rlaif.running.report import Report, Stopwatch, sample_lines, stage_lines

STAGES = ("rollout", "explain", "score", "learn", "sync")


@dataclass
class Tally:
    """What adds up over the steps of a run."""

    loop_s: float = 0.0             # seconds
    num_rollouts: int = 0
    max_logprob_gap: float = 0.0    # nats

    def add(self, step_values: Mapping[str, Any]) -> None:
        self.loop_s += step_values["step_s"]
        self.num_rollouts += step_values["num_rollouts"]
        self.max_logprob_gap = max(self.max_logprob_gap, step_values["max_logprob_gap"])


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


async def train(config: TrainConfig, fleet: Fleet, stream: PromptStream, held_out: HeldOut, labels: list[str],
                report: Report, watch: Stopwatch, driver_clock: Callable[[], float]) -> Trained:
    """Trains the policy on the prompts of `stream` for `config.steps` steps, or until an evaluation ends the run.

    labels: what the slots' classes are called where samples are shown. driver_clock: tells the CPU seconds that this
    process has spent so far.
    """
    controller, tally, step = kl_controller(config.algorithm), Tally(), 0
    checksum = await fleet.sync(step)
    await held_out.evaluate(step)
    before, stopped = held_out.figures, None
    while step < config.steps and stopped is None:
        step += 1
        started, driver = time.perf_counter(), driver_clock()
        done, choice = await roll_out(config, fleet, stream)
        chosen = chosen_rows(done.summary, choice.kept)
        with done.timed("learn"):
            learned = values(await fleet.learners.update_policy(ray.put(chosen), controller.coefficient, done.scored))
        with done.timed("sync"):
            checksum = await fleet.sync(step)
        # What was measured on all rollouts goes over what the learners measured on those they trained on.
        step_values = learned | rollout_values(done, choice, config.algorithm) | stream.figures() | done.seconds | {
            "kl_coefficient": controller.coefficient, "num_trained": chosen.num_rows, "policy_version": step,
            "step_s": time.perf_counter() - started, "driver_s": driver_clock() - driver, "checksum": checksum}
        if controller.target is not None:
            controller = controller.after(learned["kl"], chosen.num_rows)
        tally.add(step_values)
        _tell(step, config, step_values, done, labels, report, watch)
        if held_out.is_due(step):
            stopped = await held_out.evaluate(step)
    if step == config.steps:
        stopped = None      # it was the last one anyway
    if stopped is not None:
        report.say(f"ends after step {step} of {config.steps}: {stopped}")
    return Trained(before, held_out.figures, step, stopped, held_out.known.best_step, tally, checksum)


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
