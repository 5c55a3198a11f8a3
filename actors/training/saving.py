"""Writes a run down, and takes it up where it was: see rlaif.running.checkpoints for what keeps it whole.

    step-000000120/
        run.json                step, prompt stream, ledger, controller, held-out figures, tally, configuration
        learner/                weights and optimizer of every rank, as DeepSpeed writes them
        portion-0000/           a scored portion that no step has taken yet: its tables and its small columns
        best/                   the weights of the best evaluation so far
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import shutil
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from actors.faults.ending import Ending
from actors.faults.restarts import Lost, lost
from actors.learners.checkpoint import BEST, LEARNER, write_checkpoint
from actors.training.held_out import best_folder
from actors.training.progress import Progress
from actors.training.stored_portions import read_portion, write_portion
from rlaif.config.train import TrainConfig
from rlaif.pipeline.ledger import restored
from rlaif.pipeline.portions import ScoredPortion
from rlaif.running.checkpoints import Checkpoints, copy_all
from rlaif.running.identity import refuse_other
from rlaif.running.report import Report, Stopwatch

CHECKPOINTS, RUN_FILE, PORTION = "checkpoints", "run.json", "portion-"
T = TypeVar("T")


def checkpoints_of(config: TrainConfig) -> Checkpoints:
    """The folder of a run's checkpoints."""
    return Checkpoints(Path(config.output_dir) / CHECKPOINTS, config.checkpoint.keep)


def find(config: TrainConfig, say: Callable[[str], None]) -> int | None:
    """The step that the run will go on from, its checkpoint verified; None where it begins. Removes what killed
    attempts left.

    Raises UserError where there are checkpoints and none of them is whole.
    """
    if config.checkpoint.resume == "never":
        return None
    checkpoints = checkpoints_of(config)
    checkpoints.tidy()
    found = checkpoints.newest(say)
    return None if found is None else found[0]


def forget(config: TrainConfig, say: Callable[[str], None]) -> None:
    """With checkpoint.resume = never, removes the checkpoints that are there: once nothing refuses the run any more."""
    if config.checkpoint.resume == "never":
        checkpoints = checkpoints_of(config)
        num_cleared = checkpoints.clear()
        if num_cleared:
            say(f"checkpoint.resume is never: {num_cleared} checkpoints in {checkpoints.folder} are removed")


class Saver:
    """Checkpoints of one run. `identity`: of rlaif.running.identity. `ending`: who may ask the run to end."""

    def __init__(self, config: TrainConfig, fleet: Any, report: Report, watch: Stopwatch, identity: Mapping[str, Any],
                 ending: Ending) -> None:
        self._config, self._fleet, self._report, self._watch = config, fleet, report, watch
        self._identity, self._ending = dict(identity), ending
        self._checkpoints = checkpoints_of(config)
        self._steps_saved: set[int] = set()
        self._after_step: tuple[int, dict[str, Any]] | None = None      # what run.json would hold, nothing under way
        self.ends: str | None = None        # why the run ends now, once it is written down

    async def unless_ended(self, work: Awaitable[T]) -> T:
        """What `work` gives; raises Ended, and drops it, where the run is asked to end meanwhile."""
        return await self._ending.unless(work)

    async def save(self, progress: Progress) -> None:
        """After every step, and once more where one was given up. Writes it down where that is due: every so many
        steps, and when the run is asked to end; then `ends` says so.

        Raises UserError, one line, where the disk does not take it; older checkpoints are whole then.
        """
        step, every, why = progress.step, self._config.checkpoint.every, self._ending.why
        content = self._content(progress)
        if not progress.buffered and not progress.ledger.num_waiting:
            self._after_step = step, content
        is_due = every > 0 and step % every == 0 and step < self._config.steps
        if (is_due or why is not None) and step > 0 and step not in self._steps_saved:
            started = time.perf_counter()
            buffered = progress.buffered
            if self._after_step is not None and self._after_step[0] == step:
                # What a step that was given up has drawn since is drawn again, as if it had not been.
                content, buffered = self._after_step[1], []
            await self._write(step, content, buffered)
            self._watch.add("checkpoint", time.perf_counter() - started)
        self.ends = why

    def _content(self, progress: Progress) -> dict[str, Any]:
        return {"step": progress.step, "stream": progress.stream.state(), "ledger": progress.ledger.state(),
                "controller": dataclasses.asdict(progress.controller), "held_out": progress.held_out.state(),
                "tally": dataclasses.asdict(progress.tally), "before": progress.before, "run": self._identity}

    async def _write(self, step: int, content: dict[str, Any], buffered: list[ScoredPortion]) -> None:
        best_step = content["held_out"]["known"]["best_step"]

        async def fill(folder: Path) -> None:
            num_portions = 0
            for portion in buffered:
                place = folder / f"{PORTION}{num_portions:04d}"
                try:
                    await write_portion(place, portion)
                    num_portions += 1
                except Exception as error:
                    if lost(error) is not Lost.INPUTS:
                        raise
                    # Rows that went with their node: they are rolled out anew, here and by a run that goes on.
                    shutil.rmtree(place)
            if best_step is not None:
                await asyncio.to_thread(copy_all, best_folder(self._config.output_dir), folder / BEST)
            told = content | {"num_portions": num_portions, "sizes": self._report.sizes()}
            (folder / RUN_FILE).write_text(json.dumps(told) + "\n", encoding="utf-8")

        await write_checkpoint(self._checkpoints, self._fleet.learners, step, fill,
                               also=[] if best_step is None else [best_step])
        self._steps_saved.add(step)

    async def restore(self, fresh: Progress) -> Progress | None:
        """Where the newest whole checkpoint left the run, its learners brought there; None where there is none: then
        the run begins, as `fresh` says.

        Raises UserError where it is of another configuration, other prompts, another tokenizer or other start weights.
        """
        self._steps_saved, self._after_step = set(), None       # of an attempt whose learners were lost
        found = await asyncio.to_thread(self._checkpoints.newest, self._report.say)
        if found is None:
            fresh.held_out.begin()
            self._report.rewind(-1)
            return None
        step, folder = found
        content = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        for line in refuse_other(content["run"], self._identity, str(folder)):
            self._report.say(line)
        fresh.stream.restore(content["stream"])
        await self._fleet.learners.load_state(str((folder / LEARNER).resolve()))
        buffered = [read_portion(folder / f"{PORTION}{number:04d}") for number in range(content["num_portions"])]
        scored = set(content["ledger"]["scored"])
        ledger = restored(content["ledger"], [group for portion in buffered for group in portion.group_ids
                                              if group in scored])
        fresh.held_out.restore(content["held_out"], folder / BEST)
        self._rewind(step, content["sizes"])
        self._steps_saved = {step}
        self._report.say(f"goes on after step {step}")
        return dataclasses.replace(
            fresh, step=step, ledger=ledger, before=content["before"], buffered=buffered,
            controller=dataclasses.replace(fresh.controller, **content["controller"]),
            tally=dataclasses.replace(fresh.tally, **content["tally"]))

    def _rewind(self, step: int, sizes: Mapping[str, int]) -> None:
        self._report.rewind(step, sizes)
        for name, size in self._report.sizes().items():
            if size != sizes.get(name, size):
                self._report.say(f"{name} has {size} bytes of {sizes[name]} up to step {step}: it was changed since")
