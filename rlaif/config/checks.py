"""The checks that configurations are made of; every one refuses a field by its own name with UserError."""

from __future__ import annotations

import math
from typing import Any


class UserError(ValueError):
    """A mistake of the user's: one line that names the field or file, the rule, the value and the cure."""


class Unavailable(UserError):
    """Something outside that a run needs is not there: a server, a place, a file. No row is to blame."""


def require(holds: bool, name: str, rule: str, value: Any) -> None:
    if not holds:
        raise UserError(f"{name} must be {rule}, got {value!r}")


def positive(config: Any, *names: str) -> None:
    for name in names:
        require(0 < getattr(config, name) < math.inf, name, "> 0", getattr(config, name))


def not_negative(config: Any, *names: str) -> None:
    for name in names:
        require(0 <= getattr(config, name) < math.inf, name, ">= 0", getattr(config, name))


def one_of(config: Any, name: str, choices: tuple) -> None:
    require(getattr(config, name) in choices, name, "one of " + ", ".join(map(str, choices)), getattr(config, name))


def rows_or_null(config: Any, *names: str) -> None:
    for name in names:
        require(getattr(config, name) is None or getattr(config, name) > 0, name, "> 0 or null", getattr(config, name))
