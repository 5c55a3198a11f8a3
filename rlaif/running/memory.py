"""Peak memory of a run: this process and its descendants; in a cluster begun elsewhere, all of Ray here."""

from __future__ import annotations

import threading
import time

import psutil


class PeakMemory:
    """While inside, samples memory every `interval_s`; `peak_gb` is the largest sum seen, in 10^9 bytes. A look at the
    gigabytes that processes of Ray map takes a tenth of a second of this process.

    Proportional set size is summed where the system tells it, so that pages shared by processes count once.
    """

    def __init__(self, interval_s: float = 10.0) -> None:
        self.peak_gb = 0.0
        self.cpu_s = 0.0    # what the sampling itself has cost this process
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, args=(interval_s,), daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self, interval_s: float) -> None:
        while True:
            self.peak_gb = max(self.peak_gb, _total_bytes() / 1e9)
            self.cpu_s = time.thread_time()
            if self._stop.wait(interval_s):
                return


def _total_bytes() -> int:
    own = psutil.Process()
    processes = {process.pid: process for process in (own, *_children(own))}
    if "raylet" in map(_name, processes.values()):      # Ray was started by this process: no other run counts
        return sum(map(_bytes, processes.values()))
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if line and (line[0].startswith("ray::") or line[0].endswith(("/raylet", "/gcs_server"))):
            processes[process.pid] = process
            for child in _children(process):
                processes[child.pid] = child
    return sum(map(_bytes, processes.values()))


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return ""


def _bytes(process: psutil.Process) -> int:
    try:
        full = process.memory_full_info()
        return getattr(full, "pss", full.rss)
    except psutil.Error:    # it ended meanwhile, or belongs to somebody else
        return 0
