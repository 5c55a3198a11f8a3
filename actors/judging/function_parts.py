"""The function parts of a reward, asked side by side: rules in this process, users' functions each in one of its own.

No Ray in here: actors.judging.reward_functions wraps it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import pyarrow as pa

from actors.judging.function_process import FunctionProcess
from rlaif.config.reward_parts import RewardPartConfig
from rlaif.metrics import Metric, Sum
from rlaif.rewards.columns import columns_of
from rlaif.rewards.functions import Answer, Columns, Raised, Skips, ask, described, read_answer
from rlaif.rewards.rules import RULES, make_rule
from rlaif.rewards.scored_batch import parts_table

__all__ = ["FunctionParts", "check_functions"]


def check_functions(parts: Sequence[RewardPartConfig], start_timeout_s: float) -> None:
    """Raises UserError for a function that cannot be called: it is looked for in a process that ends at once."""
    for part in filter(_is_isolated, parts):
        process = FunctionProcess(part, start_timeout_s)
        try:
            process.start()
        finally:
            process.close()


class FunctionParts:
    """Answers of `parts`, all of them functions or built-in rules, to whole batches."""

    def __init__(self, parts: Sequence[RewardPartConfig], start_timeout_s: float) -> None:
        self._parts = {str(part.name): part for part in parts}
        self._processes = {name: FunctionProcess(part, start_timeout_s) for name, part in self._parts.items()
                           if _is_isolated(part)}
        self._rules = {name: make_rule(part.kind, part.options) for name, part in self._parts.items()
                       if name not in self._processes}
        self._skips = {name: Skips(part.max_skipped) for name, part in self._parts.items()}
        self._threads = ThreadPoolExecutor(max(1, len(self._processes)))
        self._version = ""

    def start(self) -> str:
        """Returns once every part can be asked: 16 hex digits that follow the functions' sources."""
        versions = list(self._threads.map(FunctionProcess.start, self._processes.values()))
        self._version = hashlib.sha256("\n".join(versions).encode()).hexdigest()[:16]
        return self._version

    def values(self, rollouts: pa.Table) -> tuple[pa.Table, dict[str, Metric]]:
        """The PARTS rows of ROLLOUT rows, and of each part the seconds it took and the rows that were skipped.

        Raises UserError for a part that has more rows without a usable answer than it may.
        """
        columns = columns_of(rollouts)
        asked = {name: self._threads.submit(self._ask, name, columns) for name in self._processes}
        try:
            found = {name: self._ask(name, columns) for name in self._rules}
            found |= {name: future.result() for name, future in asked.items()}
        finally:
            wait(asked.values())        # a process takes one call at a time
        found = {name: found[name] for name in self._parts}
        metrics = {f"{what}_{name}": metric for name, (_, measured) in found.items()
                   for what, metric in measured.items()}
        return parts_table(rollouts, {name: values for name, (values, _) in found.items()}, self._version), metrics

    def close(self) -> None:
        """Ends every process."""
        for process in self._processes.values():
            process.close()
        self._threads.shutdown()

    def _ask(self, name: str, columns: Columns) -> tuple[list[float | None], dict[str, Metric]]:
        started, metrics = time.perf_counter(), {}
        call = self._processes[name].call if name in self._processes else self._rule(name, metrics)
        values, num_skipped = ask(call, columns, name, self._skips[name])
        return values, metrics | {"skipped": Sum(num_skipped), "seconds": Sum(time.perf_counter() - started)}

    def _rule(self, name: str, metrics: dict[str, Metric]) -> Callable[[Columns], Answer]:
        """The rule as a call like that of a process; what it counts lands in `metrics`."""
        def call(columns: Columns) -> Answer:
            try:
                values, counted = self._rules[name](columns)
            except Exception as error:
                raise Raised(f"must not raise, got {described(error)}") from error
            metrics.update(counted)
            return read_answer(values, len(columns["group_ids"]))

        return call


def _is_isolated(part: RewardPartConfig) -> bool:
    return part.kind == "function" or RULES[part.kind].may_hang
