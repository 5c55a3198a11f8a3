"""A user's reward function: found by its path, called with whole batches of columns, and its answer looked at.

    def count_words(completions, *, unit=1.0):              # rewards: [{kind: function, function: "mine:count_words",
        return [unit * len(text.split()) for text in completions]        #           options: {unit: 0.1}}]

A function names the columns it wants (see COLUMNS), or takes **columns for all; its other arguments come from
`options`. It returns one number or None (not judged) a row, as a list, a NumPy array or a tensor.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import numbers
import pkgutil
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlaif.config.checks import UserError

__all__ = ["COLUMNS", "Answer", "Columns", "Lost", "Raised", "Skips", "ask", "described", "find_function",
           "read_answer", "source_version", "wanted_columns"]

# Names of the columns as a function's arguments; rlaif.rewards.columns says what they hold.
COLUMNS = ("prompts", "completions", "references", "sources", "finish_reasons", "num_tokens", "group_ids", "samples")
Columns = Mapping[str, Sequence[Any]]

_LARGEST = 3.4e38      # what the float32 of a batch holds


class Raised(Exception):
    """The function raised: perhaps because of one row."""


class Lost(Exception):
    """There is no answer for the whole batch: the function hung, ended its process, or gave back something else."""


@dataclass(frozen=True)
class Answer:
    """values: `[N]`, finite or None. faults: what is wrong with a row's value, by row; its value is None."""

    values: list[float | None]
    faults: dict[int, str] = field(default_factory=dict)


@dataclass
class Skips:
    """How many rows without a usable answer may still pass."""

    allowed: int
    used: int = 0


def find_function(path: str) -> Callable[..., Any]:
    """What "package.module:function" names. Raises ValueError, one line, where there is nothing to call."""
    try:
        found = pkgutil.resolve_name(path)
    except Exception as error:      # whatever the user's module does while it is imported
        raise ValueError(f"function must be importable, got {path!r}: {described(error)}") from error
    if not callable(found):
        raise ValueError(f"function must name something to call, got {path!r}, {type(found).__name__}")
    return found


def wanted_columns(function: Callable[..., Any], options: Mapping[str, Any]) -> list[str]:
    """The names of COLUMNS that `function` takes. Raises ValueError for an argument that nothing is there for, and for
    an option that it does not take."""
    parameters = inspect.signature(function).parameters.values()
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    names = [parameter.name for parameter in parameters if parameter.kind in (
        parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)]
    for parameter in parameters:
        is_needed = parameter.default is parameter.empty and parameter.kind in (
            parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if is_needed and (parameter.kind is parameter.POSITIONAL_ONLY or parameter.name not in {*COLUMNS, *options}):
            raise ValueError(f"arguments of the function must be of {', '.join(COLUMNS)} or in options, got "
                             f"{parameter.name}")
    for name in options:
        if name in COLUMNS or not (takes_all or name in names):
            raise ValueError(f"options must be arguments of the function other than columns, got {name}")
    return [name for name in COLUMNS if takes_all or name in names]


def source_version(function: Callable[..., Any]) -> str:
    """16 hex digits that follow the file `function` is written in; of its name where there is none."""
    try:
        source = Path(inspect.getsourcefile(function) or "").read_bytes()
    except (TypeError, OSError):
        source = repr(function).encode()
    return hashlib.sha256(source).hexdigest()[:16]


def read_answer(returned: Any, num_rows: int) -> Answer:
    """What a function gave back for `num_rows` rows. Raises Lost where it is not one entry a row."""
    listed = returned.tolist() if hasattr(returned, "tolist") else returned
    if not isinstance(listed, list | tuple):
        raise Lost(f"must return a list with a number or None a row, got {_shown(returned)}")
    if len(listed) != num_rows:
        raise Lost(f"must return a number or None for each of {num_rows} rows, got {len(listed)}")
    values: list[float | None] = []
    faults: dict[int, str] = {}
    for row, entry in enumerate(listed):
        number = _number(entry)
        if entry is not None and number is None:
            faults[row] = f"must return finite numbers or None, got {_shown(entry)}"
        values.append(number)
    return Answer(values, faults)


def _number(entry: Any) -> float | None:
    """`entry` as a float; None where it is no number that a float32 can hold."""
    entry = entry.item() if getattr(entry, "shape", None) == () and hasattr(entry, "item") else entry
    if not isinstance(entry, numbers.Real):
        return None
    try:
        value = float(entry)
    except OverflowError:
        return None
    return value if math.isfinite(value) and abs(value) <= _LARGEST else None


def ask(call: Callable[[Columns], Answer], columns: Columns, name: str, skips: Skips
        ) -> tuple[list[float | None], int]:
    """What part `name` says of N rows, None for not judged, and how many rows were skipped.

    Where `call` raises, the row at fault is looked for by halves, and the others are asked again together without it.
    Raises UserError, naming part, row and fault, where more rows than `skips` allows have no usable answer.
    """
    num_rows = len(columns["group_ids"])
    values: list[float | None] = [None] * num_rows
    left, num_skipped = list(range(num_rows)), 0
    while left:
        try:
            answer = call(_take(columns, left))
        except Raised as fault:
            row = _row_at_fault(call, columns, left)
            faults = dict.fromkeys(left if row is None else [row], str(fault))
        except Lost as fault:
            faults = dict.fromkeys(left, str(fault))
        else:
            for row, value in zip(left, answer.values, strict=True):
                values[row] = value
            faults = {left[place]: text for place, text in answer.faults.items()}
            left = []
        num_skipped += len(faults)
        skips.used += len(faults)
        if skips.used > skips.allowed:
            raise UserError(f"reward part {name} {_first(faults, columns)}; mend it, or let max_skipped rows pass "
                            f"({skips.allowed} may, {skips.used} would)")
        left = [row for row in left if row not in faults]
    return values, num_skipped


def _row_at_fault(call: Callable[[Columns], Answer], columns: Columns, rows: Sequence[int]) -> int | None:
    """A row of `rows` for which `call` raises by itself; None where there is none to be found by halves."""
    def raises(some: Sequence[int]) -> bool:
        try:
            call(_take(columns, some))
        except Raised:
            return True
        return False

    try:
        while len(rows) > 1:
            half = rows[: len(rows) // 2]
            rows = half if raises(half) else rows[len(half):]
        return rows[0] if raises(rows) else None
    except Lost:
        return None


def _take(columns: Columns, rows: Sequence[int]) -> dict[str, list]:
    return {name: [column[row] for row in rows] for name, column in columns.items()}


def _first(faults: Mapping[int, str], columns: Columns) -> str:
    """The first fault and where it is; of several rows with one fault the first and the last."""
    ends = [f"row {row} (group_id {columns['group_ids'][row]}, sample {columns['samples'][row]})"
            for row in (min(faults), max(faults))]
    texts = set(faults.values())
    where = ends[0] if len(faults) == 1 or len(texts) > 1 else f"{len(faults)} rows from {ends[0]} to {ends[1]}"
    return f"{faults[min(faults)]} in {where}"


def described(error: BaseException) -> str:
    """An exception in one line: its type, the first line of what it says, and where it was raised."""
    said = (str(error).strip() or "no message").splitlines()[0][:200]
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {said}{where}"


def _shown(entry: Any) -> str:
    shown = repr(entry)
    return f"{shown if len(shown) <= 60 else shown[:57] + '...'} ({type(entry).__name__})"
