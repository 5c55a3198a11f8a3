"""Reinforcement learning, step by step: prompts, rollouts, explanations, slot scores, advantages, update, weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch

from actors.fleet import Fleet
from actors.walk import Walk, walk
from rlaif.advantages import group_statistics
from rlaif.config import TrainConfig
from rlaif.evaluation import evaluation_values, identical_share
from rlaif.metrics import values
from rlaif.prompts import PromptStream, in_order
from rlaif.report import Report, Stopwatch, before_after_table, figure, sample_lines, stage_lines
from rlaif.slots import SlotTemplate
from rlaif.training_batch import ORDER, advantages

STAGES = ("rollout", "explain", "score", "learn", "sync")


async def train(config: TrainConfig, fleet: Fleet, rows: Sequence[dict], test_rows: Sequence[dict],
                template: SlotTemplate, report: Report, watch: Stopwatch, driver_clock: Callable[[], float]
                ) -> dict[str, Any]:
    """Trains the policy for `config.steps` steps on `rows`; returns what summary.json says of the run's figures.

    `driver_clock` tells the CPU seconds that this process has spent so far.
    """
    checksum = await fleet.sync(0)
    test = in_order(test_rows)
    before = await evaluate(fleet, test, config.seed, "before", report, watch)
    stream = PromptStream(rows, config.seed)
    gap, step_values, began = 0.0, {}, time.perf_counter()
    for step in range(1, config.steps + 1):
        started, driver = time.perf_counter(), driver_clock()
        prompts = stream.next(config.rollout.groups_per_step)
        done = await walk(fleet, prompts, group_size=config.rollout.group_size, seed=config.seed)
        learned, learn_s = await _learn(fleet, done, config.algorithm.advantage)
        sync_started = time.perf_counter()
        checksum = await fleet.sync(step)
        seconds = {f"{stage}_s": clock.seconds for stage, clock in done.clocks.items()} | {
            "learn_s": learn_s, "sync_s": time.perf_counter() - sync_started}
        step_values = _summary_values(done.summary) | values(done.metrics) | learned | seconds | {
            "step_s": time.perf_counter() - started, "driver_s": driver_clock() - driver,
            "policy_version": step, "checksum": checksum}
        gap = max(gap, step_values["max_logprob_gap"])
        for stage in STAGES:
            watch.add(stage, step_values[f"{stage}_s"])
        watch.add("driver", step_values["driver_s"])
        report.step(step, step_values)
        for line in stage_lines(step, config.steps, step_values):
            report.say(line)
        if config.report.samples_every and step % config.report.samples_every == 0:
            _show_samples(done, config.report.num_samples, template, report)
    loop_s = time.perf_counter() - began
    after = await evaluate(fleet, test, config.seed, "after", report, watch)
    for line in before_after_table(before, after):
        report.say(line)
    num_samples = config.steps * config.rollout.groups_per_step * config.rollout.group_size
    return {"before": before, "after": after, "samples_per_s": num_samples / loop_s, "loop_s": loop_s,
            "num_test_prompts": len(test_rows), "max_logprob_gap": max(gap, after["max_logprob_gap"]),
            "weights_checksum": checksum}


async def _learn(fleet: Fleet, done: Walk, estimator: str) -> tuple[dict[str, float], float]:
    """The update of a step: advantages from the small columns, joined to the rows where the learners are."""
    started = time.perf_counter()
    rows = ray.put(advantages(done.summary, estimator))
    metrics = await fleet.learners.update_policy(rows, done.scored)
    return values(metrics), time.perf_counter() - started


async def evaluate(fleet: Fleet, prompts: pa.Table, seed: int, when: str, report: Report, watch: Stopwatch
                   ) -> dict[str, float]:
    """Figures on held-out `prompts`, one completion each: reward, gold, KL to the start, length, fluency, variety."""
    started = time.perf_counter()
    done = await walk(fleet, prompts, group_size=1, seed=seed + 1)
    drift = values(await fleet.learners.drift(done.scored))
    completions = [text for table in await _payload(done) for text in table["completion"].to_pylist()]
    found = evaluation_values(_summary_values(done.summary), drift) | {
        "identical_share": identical_share(completions)}
    watch.add("evaluate", time.perf_counter() - started)
    shown = "  ".join(f"{name} {figure(value)}" for name, value in found.items())
    report.say(f"test {when}: {prompts.num_rows} prompts  {shown}  {time.perf_counter() - started:.2f} s")
    return found


async def _payload(done: Walk) -> list[pa.Table]:
    return [await reference for reference in done.scored]


def _summary_values(summary: pa.Table) -> dict[str, Any]:
    """Means and counts over a step's rollouts."""
    summary = summary.sort_by(ORDER)
    rewards = torch.tensor(summary["reward"].to_pylist(), dtype=torch.float64)
    _, groups = torch.unique(torch.tensor(summary["group_id"].to_pylist()), return_inverse=True)
    parts: dict[str, list[float]] = {}
    for column in ("reward_parts", "judge_verdicts"):
        for row in summary[column].to_pylist():
            for name, value in row:
                parts.setdefault(name, []).append(value)
    tokens = summary["num_completion_tokens"]
    return {"reward": rewards.mean().item()} | {name: sum(v) / len(v) for name, v in parts.items()} | {
        "completion_tokens": pc.mean(tokens).as_py(), "num_completion_tokens": pc.sum(tokens).as_py(),
        "num_rollouts": summary.num_rows,
        "num_cut": summary["finish_reason"].to_pylist().count("length")} | values(group_statistics(rewards, groups))


def _show_samples(done: Walk, num_samples: int, template: SlotTemplate, report: Report) -> None:
    labels = [f"{slot.name}:{words[0]}" for slot in template.slots for words in slot.classes]
    rows = ray.get(done.scored[0]).sort_by(ORDER).slice(0, num_samples).to_pylist()
    for line in sample_lines(rows, labels):
        report.say(line)


def export_folder(output_dir: str) -> str:
    """Where the trained policy goes."""
    return str(Path(output_dir) / "policy")
