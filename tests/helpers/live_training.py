"""launch/train.py under way: its lines as they come, its actors as processes that can be killed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from tests.real.conftest import ROOT


class LiveTraining:
    """The run of `configs/quickstart.yaml` with `overrides`, a process of its own.

    cluster: the address of a Ray cluster that the run joins, whose nodes this process has started. within: words before
    the command, such as those that enter a network namespace.
    """

    def __init__(self, output_dir: Path, *overrides: str, cluster: str | None = None, within: Sequence[str] = ()
                 ) -> None:
        self.output_dir, self.lines = output_dir, list[tuple[float, str]]()
        self.process = subprocess.Popen(
            [*within, sys.executable, "launch/train.py", "configs/quickstart.yaml", f"output_dir={output_dir}",
             *overrides],
            cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=os.environ | ({"RAY_ADDRESS": cluster} if cluster else {}))
        self._root = psutil.Process(self.process.pid if cluster is None else os.getpid())
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.output_dir.with_suffix(".log").open("a") as log:      # for who looks on
            for line in self.process.stdout:
                self.lines.append((time.monotonic(), line.rstrip("\n")))
                print(time.strftime("%H:%M:%S"), line, end="", file=log, flush=True)

    @property
    def printed(self) -> str:
        return "\n".join(line for _, line in self.lines)

    @property
    def errors(self) -> list[str]:
        return [line for _, line in self.lines if line.startswith("error: ")]

    def until(self, pattern: str, limit_s: float = 240.0) -> float:
        """When a line that `pattern` is found in was printed."""
        ends = time.monotonic() + limit_s
        while time.monotonic() < ends:
            for when, line in list(self.lines):
                if re.search(pattern, line):
                    return when
            assert self.process.poll() is None, self.printed[-4000:]
            time.sleep(0.1)
        raise AssertionError(f"no line with {pattern!r} in {limit_s:g} s:\n{self.printed[-4000:]}")

    def actors(self, kind: str) -> list[psutil.Process]:
        """The processes of class `kind`, oldest first; Ray calls them ray::<kind>, with or without a method."""
        found = []
        for process in self._root.children(recursive=True):
            try:
                if re.match(rf"ray::{kind}\b", " ".join(process.cmdline())):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def engines(self) -> list[psutil.Process]:
        """vLLM's processes behind the rollout actors."""
        return [child for actor in self.actors("RolloutActor") for child in actor.children(recursive=True)
                if "EngineCore" in " ".join(child.cmdline())]

    def end(self, limit_s: float = 240.0) -> int:
        return self.process.wait(limit_s)

    def stop(self) -> None:
        """Whatever is left of it is no more."""
        if self.process.poll() is None:
            left = psutil.Process(self.process.pid).children(recursive=True)
            self.process.kill()
            for process in left:
                if process.is_running():
                    process.kill()
            self.process.wait()

    @property
    def num_steps(self) -> int:
        """Steps that are told of so far."""
        path = self.output_dir / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.is_file() else 0

    @property
    def steps(self) -> list[dict]:
        return [json.loads(line) for line in (self.output_dir / "metrics.jsonl").read_text().splitlines()]

    @property
    def summary(self) -> dict:
        return json.loads((self.output_dir / "summary.json").read_text())
