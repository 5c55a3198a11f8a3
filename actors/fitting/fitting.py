"""Training on a fixed set of rows: steps, checkpoints to resume from, the best weights on dev, the saved folder."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from actors.cluster.connection import connect
from actors.cluster.placement import Placement, Roles, refuse_too_large, within
from actors.faults.ending import Ended, Ending, ended_line
from actors.learners.checkpoint import BEST, LEARNER, write_checkpoint
from actors.learners.gang import Gang
from actors.learners.learner import LearnerSpec
from actors.learners.surviving import surviving
from rlaif.config.dpo import DpoConfig
from rlaif.config.reward import EvaluateConfig, RewardTrainConfig
from rlaif.config.train import RoleConfig, SftConfig
from rlaif.metrics import as_json, from_json, merge, values
from rlaif.running.checkpoints import Checkpoints, copy_all
from rlaif.running.cli import working
from rlaif.running.lock import held
from rlaif.running.report import Report, write_json
from rlaif.running.run_folder import claim, finish
from rlaif.running.versions import versions

CHECKPOINTS, TOKENIZER, PROGRESS_FILE = "checkpoints", "start_tokenizer", "progress.json"
_HIGHER_IS_BETTER = {"loss": False, "slot_accuracy": True, "pair_accuracy": True, "preference_accuracy": True}
_SHOWN = ("loss", "nll", "slot_accuracy", "slot_nll", "pair_accuracy", "pair_nll", "rating_error", "masked_lm_nll",
          "preference_accuracy", "implicit_reward_margin", "grad_norm")


@contextlib.contextmanager
def run_folder(config: SftConfig | DpoConfig | RewardTrainConfig | EvaluateConfig, stages: Sequence[Roles]
               ) -> Iterator[Report]:
    """Ray, the run's folder and its report around a training; at the end marks the run complete, and drops what served
    to resume. A training that was asked to end is told of, and stays as it is.

    stages: the roles of each part of the run, one after the other; refused where they do not fit.
    """
    with held(config.output_dir), contextlib.ExitStack() as stack:
        where = connect()
        stack.callback(ray.shutdown)
        for roles in stages:
            refuse_too_large(roles, ray.cluster_resources())
        claim(config.output_dir, config, anew=False)
        report = stack.enter_context(contextlib.closing(Report(config.output_dir)))
        report.say(f"{where}; results go to {Path(config.output_dir).resolve()}")
        try:
            with working():
                yield report
        except Ended as ended:
            report.say(ended_line(ended))
            return
        finish(config.output_dir)
        for name in (TOKENIZER, BEST, CHECKPOINTS):
            shutil.rmtree(Path(config.output_dir) / name, ignore_errors=True)


@dataclass(frozen=True)
class FitOptions:
    """How a training goes; the fields are those of SftConfig, DpoConfig and RewardTrainConfig."""

    output_dir: str
    seed: int
    steps: int
    log_every: int
    checkpoint_every: int
    dev_every: int
    select_by: str      # figure on dev that chooses the best weights, one of _HIGHER_IS_BETTER
    ready_timeout_s: float


async def fit(options: FitOptions, spec: LearnerSpec, role: RoleConfig,
              batches_after: Callable[[int], Iterator[pa.Table]], dev: pa.Table, num_train: int, report: Report,
              examine: Callable[[Gang], Awaitable[dict[str, Any]]] | None = None) -> dict[str, Any]:
    """Trains for options.steps steps on the batches, keeps the weights that are best on `dev`, saves them.

    `batches_after(n)` begins with the batch of step n + 1. Takes up the newest checkpoint in output_dir, and then ends
    with the weights that an unbroken training has. Asked to end (SIGTERM, a node's preemption) it writes one after the
    step under way and raises Ended. Returns the best weights' figures on dev, the step they are of, and
    what `examine` found out about them.
    """
    folder = Path(options.output_dir)
    placement = Placement({"learner": role}, "PACK", options.ready_timeout_s)
    try:
        started = time.perf_counter()
        gang = Gang(spec, placement, role.num_actors, say=report.say)
        remark = await within(gang.join(), options.ready_timeout_s, "learners")
        report.say(f"learners ready in {time.perf_counter() - started:.1f} s; {num_train} rows, {options.steps} steps")
        if remark:
            report.say(remark)
        ending = Ending()
        with ending.watching():
            progress = await surviving(gang.rebuild, lambda: _steps(
                gang, folder, options, batches_after, dev, report, examine, ending))
        best = progress["best"]
        _publish(folder, best["step"])
        write_json(folder / "summary.json", {
            "steps": options.steps, "seed": options.seed, "best_step": best["step"], "dev": best["figures"],
            "num_train": num_train, "num_dev": dev.num_rows, "versions": versions(),
            "train_s": progress["seconds"]})
        return best
    finally:
        placement.remove()


async def _steps(gang: Gang, folder: Path, options: FitOptions, batches_after: Callable[[int], Iterator[pa.Table]],
                 dev: pa.Table, report: Report, examine: Callable[[Gang], Awaitable[dict[str, Any]]] | None,
                 ending: Ending) -> dict[str, Any]:
    """What was achieved by the steps from the newest checkpoint to the last one."""
    progress = await _resume(gang, folder, report)
    dev_rows = ray.put(dev)
    parts, began = [from_json(progress.get("untold", {}))], time.perf_counter()
    for step, batch in enumerate(batches_after(progress["step"]), start=progress["step"] + 1):
        parts.append(await gang.update(ray.put(batch)))
        if step % options.log_every == 0 or step == options.steps:
            shown = values(merge(parts))
            report.step(step, shown)
            seconds = (time.perf_counter() - began) / (step - progress["first"] + 1)
            report.say(f"step {step}/{options.steps}  {_shown(shown)}  {seconds:.3f} s a step")
            parts = []
        if step == options.steps or (options.dev_every and step % options.dev_every == 0):
            await _measure(gang, dev_rows, dev.num_rows, step, progress, options, report, examine)
        is_due = options.checkpoint_every and step % options.checkpoint_every == 0
        if (is_due or ending.why) and step < options.steps:
            progress |= {"step": step, "seconds": progress["seconds"] + time.perf_counter() - began,
                         "untold": as_json(merge(parts))}
            began = time.perf_counter()
            progress["first"] = step + 1
            await _checkpoint(gang, folder, progress)
            if ending.why:
                raise Ended(ending.why, step)
    progress["seconds"] += time.perf_counter() - began
    return progress


async def _resume(gang: Gang, folder: Path, report: Report) -> dict[str, Any]:
    """Where to go on: `step` steps are done, `best` is what was best so far, `untold` what was measured since the last
    line of metrics."""
    store = Checkpoints(folder / CHECKPOINTS)
    store.tidy()
    found = store.newest(report.say)
    shutil.rmtree(folder / BEST, ignore_errors=True)
    if found is None:
        report.rewind(0)
        return {"step": 0, "first": 1, "best": None, "seconds": 0.0, "untold": {}}
    step, place = found
    progress = json.loads((place / PROGRESS_FILE).read_text(encoding="utf-8"))
    await gang.load_state(str((place / LEARNER).resolve()))
    if progress["best"]:
        copy_all(place / BEST, _best(folder, progress["best"]["step"]))
    report.rewind(step)
    report.say(f"goes on after step {step}")
    return progress


async def _checkpoint(gang: Gang, folder: Path, progress: dict[str, Any]) -> None:
    """Writes a checkpoint, with the best weights so far; others than these are removed."""
    best = _best(folder, progress["best"]["step"]) if progress["best"] else None

    async def fill(beside: Path) -> None:
        (beside / PROGRESS_FILE).write_text(json.dumps(progress) + "\n", encoding="utf-8")
        if best is not None:
            await asyncio.to_thread(copy_all, best, beside / BEST)

    await write_checkpoint(Checkpoints(folder / CHECKPOINTS), gang, progress["step"], fill)
    for older in (folder / BEST).glob("step-*"):
        if older != best:
            shutil.rmtree(older)


async def _measure(gang: Gang, dev: ray.ObjectRef, num_rows: int, step: int, progress: dict[str, Any],
                   options: FitOptions, report: Report,
                   examine: Callable[[Gang], Awaitable[dict[str, Any]]] | None) -> None:
    """Figures on dev; where they are the best so far, saves the weights and notes what is known of them."""
    figures = values(await gang.measure(dev))
    name, best = options.select_by, progress["best"]
    sign = 1 if _HIGHER_IS_BETTER[name] else -1
    is_best = best is None or sign * figures[name] > sign * best["figures"][name]
    report.say(f"dev at step {step}: {num_rows} rows  {_shown(figures)}{'  best' if is_best else ''}")
    if not is_best:
        return
    target = _best(Path(options.output_dir).resolve(), step)
    for leftover in (target, target.with_name(target.name + ".partial")):   # of an attempt that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    target.parent.mkdir(exist_ok=True)
    await gang.save(str(target))
    found = await examine(gang) if examine is not None else {}
    progress["best"] = {"step": step, "figures": figures, **found}


def _best(folder: Path, step: int) -> Path:
    """Where the weights of a step that was the best so far are; and in every checkpoint that knows of them."""
    return folder / BEST / f"step-{step:09d}"


def _publish(folder: Path, step: int) -> None:
    """Copies the best model's files into `folder` itself, the weights last: what is there can be taken up again."""
    for path in sorted(_best(folder, step).iterdir(), key=lambda path: path.suffix == ".safetensors"):
        if path.is_dir():
            shutil.copytree(path, folder / path.name, dirs_exist_ok=True)
        else:
            shutil.copyfile(path, folder / path.name)


def _shown(figures: dict[str, float]) -> str:
    return "  ".join(f"{name} {figures[name]:.4f}" for name in _SHOWN if name in figures)
