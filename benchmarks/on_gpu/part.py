"""A part of benchmarks/gpu.py runs in a process of its own: python -m benchmarks.on_gpu.<part> <form> <file.json>

What it found goes to the file: `checks`, differences beside the tolerance each must keep, and `figures`.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

Found = dict[str, Any]


class Checks:
    """Differences and what they may be."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, what: str, difference: float, tolerance: float) -> None:
        """difference: >= 0, in the unit that `what` says; one that is no number holds nothing."""
        self.rows.append({"what": what, "difference": difference, "tolerance": tolerance,
                          "holds": difference <= tolerance})


def run(measured: Callable[[str, Checks], dict[str, Any]]) -> None:
    """Calls measured(form, checks) for figures; leaves with 1 where it raised, the traceback being in the file too."""
    form, target = sys.argv[1:3]
    checks, found = Checks(), {}
    try:
        found["figures"] = measured(form, checks)
    except BaseException:
        found["error"] = traceback.format_exc()
        print(found["error"], file=sys.stderr)
    found["checks"] = checks.rows
    Path(target).write_text(json.dumps(found), encoding="utf-8")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int("error" in found))      # threads of the libraries may be left


def relative(got: Any, want: Any) -> float:
    """Largest difference of two tensors over the largest number of the second."""
    got, want = got.double().cpu(), want.double().cpu()
    return float((got - want).abs().max() / want.abs().max().clamp(min=1e-30))
