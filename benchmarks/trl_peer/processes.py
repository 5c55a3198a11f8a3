"""A trainer in a process of its own, and the memory that it takes with all it starts."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent.parent
INTERVAL_S = 2.0    # between two looks at the memory: each costs some milliseconds a process


def environment_of(**extra: str) -> dict[str, str]:
    """The environment of both trainers: no limit to their threads, no cluster to join, no word to any server."""
    kept = {name: value for name, value in os.environ.items()
            if not name.startswith(("OMP_", "MKL_", "KMP_")) and name != "RAY_ADDRESS"}
    path = os.pathsep.join([str(ROOT), *filter(None, [kept.get("PYTHONPATH")])])
    return kept | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
                   "TOKENIZERS_PARALLELISM": "false"} | extra


def run_measured(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> float:
    """Runs `command` to its end, its words go to `log`; returns the peak memory of its process tree in 10^9 bytes.

    Raises RuntimeError, with the end of the log, where it fails.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=dict(environment), stdout=file, stderr=file)
        memory = _Peak(process.pid)
        try:
            code = process.wait()
        finally:
            if process.poll() is None:      # this process was interrupted
                process.terminate()
                process.wait()
            memory.stop()
    if code:
        end = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])
        raise RuntimeError(f"{' '.join(command[:4])} ... ended with {code}; the end of {log}:\n{end}")
    return memory.peak_gb


class _Peak:
    """Looks at the memory of a process and its descendants until it is stopped: proportional set size, so that what
    processes share counts once."""

    def __init__(self, pid: int) -> None:
        self.peak_gb = 0.0
        self._root = psutil.Process(pid)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL_S):
            try:
                processes = [self._root, *self._root.children(recursive=True)]
            except psutil.Error:
                continue
            self.peak_gb = max(self.peak_gb, sum(map(_bytes, processes)) / 1e9)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def _bytes(process: psutil.Process) -> int:
    try:
        found = process.memory_full_info()
        return getattr(found, "pss", found.rss)
    except psutil.Error:    # it has ended meanwhile
        return 0
