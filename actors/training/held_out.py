"""Evaluations inside a run: figures on held-out prompts, the best weights so far, whether the run should end."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from actors.faults.pool import InputsLost
from actors.training.fleet import Fleet
from actors.training.walk import Order, here, walk
from rlaif.config.train import TrainConfig
from rlaif.metrics import values
from rlaif.running.checkpoints import copy_all
from rlaif.running.figures import means
from rlaif.running.held_out import evaluation_figures
from rlaif.running.report import Report, Stopwatch, figure
from rlaif.running.stopping import Evaluated, weigh

BEST = "best"


class HeldOut:
    """Evaluations of one run on `prompts`, in file order. `known` is all that a resumed run needs of them."""

    def __init__(self, fleet: Fleet, prompts: pa.Table, config: TrainConfig, report: Report, watch: Stopwatch) -> None:
        self._fleet, self._prompts, self._config = fleet, prompts, config
        self._report, self._watch = report, watch
        self.known = Evaluated()
        self.step = -1                              # of the last evaluation
        self.figures: dict[str, float] = {}         # likewise
        self.stop: str | None = None                # why the run should end, as the last evaluation says

    def begin(self) -> None:
        """Removes what an attempt that was killed kept as the best."""
        shutil.rmtree(best_folder(self._config.output_dir), ignore_errors=True)

    def state(self) -> dict[str, Any]:
        """What `restore` takes beside the weights of `best_folder`, as JSON can write it without loss."""
        return {"known": dataclasses.asdict(self.known), "step": self.step, "figures": self.figures,
                "stop": self.stop}

    def restore(self, state: Mapping[str, Any], best: Path) -> None:
        """Goes to where `state` was taken; `best`: the best weights of then, if there were any."""
        self.known, self.step = Evaluated(**state["known"]), state["step"]
        self.figures, self.stop = dict(state["figures"]), state["stop"]
        self.begin()
        if self.known.best_step is not None:
            copy_all(best, best_folder(self._config.output_dir))

    def is_due(self, step: int) -> bool:
        """Whether the policy is to be measured after `step`."""
        every = self._config.evaluation.every
        return step > self.step and (step == self._config.steps or (every > 0 and step % every == 0))

    async def evaluate(self, step: int) -> str | None:
        """Measures the policy as it is after `step`, keeps its weights where they are the best so far, and returns why
        the run should end, or None. The rollout engines must hold the weights of the learners."""
        started = time.perf_counter()
        figures: dict[str, float] = {}
        for mode in self._config.evaluation.modes:
            figures |= await self._measure(mode)
        known, verdict = weigh(self.known, step, figures, self._config.evaluation)
        if verdict.is_best:
            await self._keep()
        # Not before: an evaluation that is given up has not been.
        self.step, self.figures, self.known = step, figures, known
        self._report.evaluation(step, self.figures)
        seconds = time.perf_counter() - started
        self._watch.add("evaluate", seconds)
        shown = "  ".join(f"{name} {figure(value)}" for name, value in self.figures.items())
        when = "before" if step == 0 else f"at step {step}"
        self._report.say(f"test {when}: {self._prompts.num_rows} prompts  {shown}  {seconds:.2f} s"
                         f"{'  best' if verdict.is_best else ''}")
        self.stop = verdict.stop
        return self.stop

    async def _measure(self, mode: str) -> dict[str, float]:
        """The figures of one mode, the same seeds every time. How far the policy is from its start is told by what it
        samples; greedy completions are no sample."""
        is_greedy = mode == "greedy"
        group_size = 1 if is_greedy else self._config.evaluation.group_size
        order = Order(group_size, self._config.seed + 1, is_greedy, compares=group_size > 1,
                      reproducible=self._config.pipeline.is_reproducible)
        while True:
            try:
                done = await walk(self._fleet, self._prompts, order)
                drift = {} if is_greedy else values(await self._fleet.learners.drift(done.scored))
                completions = [text for reference in done.scored
                               for text in (await here(reference))["completion"].to_pylist()]
                break
            except InputsLost as error:     # rows that went with their node
                self._fleet.budget.spend("evaluation", str(error))
        found = means(done.summary)
        if self._fleet.plan.is_plain:       # the only part is the reward itself
            found = {name: value for name, value in found.items() if not name.startswith("part_")}
        return evaluation_figures(found, drift, completions, mode)

    async def _keep(self) -> None:
        """Saves the weights as the best; the ones before stay until the new ones are whole."""
        folder = best_folder(self._config.output_dir)
        beside = folder.with_name(BEST + ".new")
        for leftover in (beside, beside.with_name(beside.name + ".partial")):
            shutil.rmtree(leftover, ignore_errors=True)
        await self._fleet.learners.save(str(beside))
        shutil.rmtree(folder, ignore_errors=True)
        beside.rename(folder)


def best_folder(output_dir: str) -> Path:
    """Where the weights of the best evaluation are while the run goes on, as a Hugging Face folder."""
    return Path(output_dir) / BEST
