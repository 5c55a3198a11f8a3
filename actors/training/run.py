"""What launchers call: a run from checks to summary, with Ray around it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from actors.cluster.connection import connect
from actors.cluster.planning import refuse_what_cannot_fit
from actors.faults.ending import Ended, Ending, ended_line
from actors.faults.watchdog import Watchdog
from actors.judging.function_parts import check_functions
from actors.learners.surviving import surviving
from actors.training.dashboard import Dashboard
from actors.training.fleet import Fleet, roles
from actors.training.held_out import HeldOut, best_folder
from actors.training.loop import Trained, train
from actors.training.replay import ReplayStream
from actors.training.saving import Saver, checkpoints_of, find, forget
from actors.training.storing import Storing, rollouts_folder
from actors.training.unmeasured import Unmeasured
from rlaif.config.train import TrainConfig
from rlaif.data.prompts import PromptStream, in_order
from rlaif.modeling.models import absolute, load_tokenizer
from rlaif.rewards.plan import RewardPlan
from rlaif.running.cli import working
from rlaif.running.identity import identity
from rlaif.running.lock import held
from rlaif.running.memory import PeakMemory
from rlaif.running.preflight import Checked, check_train, rollouts_made_of
from rlaif.running.report import Report, Stopwatch, before_after_table, write_json
from rlaif.running.run_folder import claim, finish, refuse_other_run
from rlaif.running.versions import versions


def run_training(config: TrainConfig) -> None:
    """launch/train.py: trains, evaluates, exports; everything lands in config.output_dir.

    Goes on where a run with the same configuration stopped. Asked to end by SIGTERM or a node's preemption, it writes a
    checkpoint and says how to go on.
    """
    if _is_complete(config):
        return
    watch = Stopwatch()
    checked = check_train(config)
    check_functions(checked.plan.functions, config.placement.ready_timeout_s)
    with held(config.output_dir, _say):
        if not _is_complete(config):        # as another process may have made it meanwhile
            _run(config, checked, watch)


def _is_complete(config: TrainConfig) -> bool:
    is_complete = refuse_other_run(config.output_dir, config)
    if is_complete:
        _say(f"{config.output_dir} is complete; nothing to do")
    return is_complete


def _run(asked: TrainConfig, checked: Checked, watch: Stopwatch) -> None:
    """The run itself, in a folder that no other process writes into."""
    config = with_absolute_paths(asked)     # actors may run in another folder
    checked = dataclasses.replace(checked, plan=with_absolute_files(checked.plan))
    step, ending = find(config, _say), Ending()
    where = connect()
    try:
        with ending.watching():
            doubts = refuse_what_cannot_fit(config)
            forget(config, _say)
            claim(config.output_dir, asked, anew=step is None)
            with contextlib.closing(Report(config.output_dir)) as report:
                report.say(f"{where}; results go to {config.output_dir}")
                for line in doubts:
                    report.say(f"warning: {line}")
                with working(), PeakMemory() as memory:
                    trained = asyncio.run(_train(
                        config, checked, report, watch, lambda: time.process_time() - memory.cpu_s, ending,
                        identity(asked, load_tokenizer(config.policy.model))))
                summary = _summary(config, trained, len(checked.test_rows), watch, memory.peak_gb)
                write_json(Path(config.output_dir) / "summary.json", summary)
                what = (f"policy: {export_folder(config.output_dir)}" if config.mode != "rollout" else
                        f"rollouts: {rollouts_folder(config.output_dir)}")
                report.say(f"{what}   summary: {config.output_dir}/summary.json   "
                           f"{watch.total:.0f} s in all, {memory.peak_gb:.1f} GB at the peak")
            finish(config.output_dir)
            checkpoints_of(config).clear()
    except Ended as ended:
        _say(ended_line(ended, step))
    finally:
        ray.shutdown()


def _say(text: str) -> None:
    print(text, flush=True)


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """`config` with its local folders seen from anywhere; names on a hub stay names."""
    return dataclasses.replace(
        config, output_dir=str(Path(config.output_dir).resolve()),
        policy=dataclasses.replace(config.policy, model=absolute(config.policy.model)),
        reward=dataclasses.replace(config.reward, model=absolute(config.reward.model)),
        stored=dataclasses.replace(config.stored, read=absolute(config.stored.read)))


def with_absolute_files(plan: RewardPlan) -> RewardPlan:
    """`plan` with the local folders and files that its rules read seen from anywhere."""
    parts = []
    for part in plan.parts:
        there = {name: str(Path(part.options[name]).resolve()) for name in ("encoder", "schema_file")
                 if part.kind != "function" and part.options.get(name) and Path(part.options[name]).exists()}
        parts.append(dataclasses.replace(part, options=part.options | there))
    return dataclasses.replace(plan, parts=tuple(parts))


async def _train(config: TrainConfig, checked: Checked, report: Report, watch: Stopwatch,
                 driver_clock: Callable[[], float], ending: Ending, made_of: dict[str, Any]) -> Trained:
    started = time.perf_counter()
    fleet = Fleet(config, checked, report.say)
    try:
        remark = await ending.unless(fleet.ready())
        watch.add("start", time.perf_counter() - started)
        counts = ", ".join(f"{role.num_actors} {name}"
                           for name, role in roles(config, checked.explainer, checked.plan).items())
        report.say(f"all actors ready in {watch.seconds['start']:.1f} s: {counts}")
        for line in filter(None, [remark, *checked.remarks]):
            report.say(line)
        storing = Storing(config, rollouts_made_of(config, checked))
        saver = Saver(config, fleet, report, watch, made_of, ending)
        dashboard = Dashboard(config.output_dir)

        async def attempt() -> Trained:     # from the last checkpoint on
            held_out = Unmeasured()
            if config.mode == "train":
                held_out = HeldOut(fleet, in_order(checked.test_rows), config, report, watch)
            trained = await train(config, fleet, _stream(config, checked), held_out, checked.class_names, report, watch,
                                  driver_clock, saver, dashboard, storing)
            if config.mode != "rollout" and not is_cut_short(trained):
                await _export(config, fleet, trained, report)
            return trained

        def is_cut_short(trained: Trained) -> bool:
            return saver.ends is not None and trained.stopped == saver.ends

        watchdog = Watchdog(fleet.board, config.faults, config.output_dir, report.say, lambda: fleet.handles)
        async with dashboard.watching(fleet, report.say, config.report.state_every_s):
            trained = await watchdog.over(surviving(fleet.rebuild_learners, attempt))
        if is_cut_short(trained):
            raise Ended(saver.ends, trained.steps or None)
        for line in before_after_table(trained.before, trained.after):
            report.say(line)
        return trained
    finally:
        fleet.stop()


def _stream(config: TrainConfig, checked: Checked) -> PromptStream | ReplayStream:
    """What a run goes through from its beginning: prompts, or rollouts that are stored."""
    if checked.stored is not None:
        return ReplayStream(checked.stored)
    prompts = checked.train
    assert prompts is not None
    return PromptStream(prompts.rows, config.seed, sizes=prompts.sizes, weights=prompts.weights,
                        curriculum=config.prompts.curriculum)


async def _export(config: TrainConfig, fleet: Fleet, trained: Trained, report: Report) -> None:
    """Writes the policy's folder anew, in place of what an unfinished run may have left: the last weights, or those of
    the best evaluation."""
    folder = export_folder(config.output_dir)
    for leftover in (folder, folder + ".partial"):
        shutil.rmtree(leftover, ignore_errors=True)
    if config.evaluation.export == "best":
        best_folder(config.output_dir).rename(folder)
        report.say(f"the policy is that of step {trained.best_step}, the best by {config.evaluation.select_by}")
    else:
        await fleet.learners.save(folder)


def export_folder(output_dir: str) -> str:
    """Where the trained policy goes."""
    return str(Path(output_dir) / "policy")


def _summary(config: TrainConfig, trained: Trained, num_test_prompts: int, watch: Stopwatch, peak_gb: float
             ) -> dict[str, Any]:
    tally = trained.tally
    sides = {f"{name}_{when}": value for when, found in (("before", trained.before), ("after", trained.after))
             for name, value in found.items() if name not in ("kl", "max_logprob_gap")}
    return {
        "steps": trained.steps, "seed": config.seed, **sides, "kl": trained.after.get("kl"),
        "stopped": trained.stopped, "best_step": trained.best_step,
        "wall_s": {**watch.seconds, "loop": tally.loop_s, "total": watch.total},
        "samples_per_s": tally.num_rollouts / tally.loop_s, "peak_rss_gb": peak_gb,
        "max_logprob_gap": max(tally.max_logprob_gap, trained.after.get("max_logprob_gap", 0.0)),
        "num_test_prompts": num_test_prompts,
        "weights_checksum": trained.checksum, "ledger": trained.ledger, "versions": versions(),
    }
