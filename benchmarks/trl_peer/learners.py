"""Both learners alone, each in a process of its own, asked in turn for the same update."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.trl_peer.processes import ROOT, environment_of
from benchmarks.trl_peer.rows import padding_share, write_rows

# What bounds a forward pass: tokens of ours, rows of TRL's. Of several the fastest is taken.
BOUNDS = {"ours": (1024, 2048, 4096, 8192), "trl": (8, 16, 32, 64, 128)}
QUICK_BOUNDS = {"ours": (4096,), "trl": (32,)}


class LearnerProcess:
    """A learner that makes one update whenever it is asked; see learner_step."""

    def __init__(self, kind: str, folder: Path, rows: Path, kl: float) -> None:
        self._log = folder / f"learner_{kind}.log"
        with self._log.open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [sys.executable, "benchmarks/trl_peer/learner_step.py", kind, str(folder), str(rows), str(kl)],
                cwd=ROOT, env=environment_of(DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES=""), text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        assert self._read() == "ready"

    def update(self, bound: int) -> dict[str, float]:
        """seconds and grad_norm of one update."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{bound}\n")
        self._process.stdin.flush()
        return json.loads(self._read())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            end = "\n".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])
            raise RuntimeError(f"a learner has ended with {self._process.wait()}; the end of {self._log}:\n{end}")
        return line


def compare(folder: Path, kl: float, repeats: int, bounds: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """How many times as fast our learner makes the same update: the median of the ratios of `repeats` rounds."""
    path = folder / "rows.json"
    rows = write_rows(folder, path)
    learners: dict[str, LearnerProcess] = {}
    try:
        for kind in bounds:
            learners[kind] = LearnerProcess(kind, folder, path, kl)
        first = {kind: learner.update(bounds[kind][-1]) for kind, learner in learners.items()}      # and warm-up
        tried = {kind: {bound: min(learners[kind].update(bound)["seconds"] for _ in range(2 if len(some) > 1 else 1))
                        for bound in some} for kind, some in bounds.items()}
        best = {kind: min(found, key=found.__getitem__) for kind, found in tried.items()}
        rounds = [{kind: learner.update(best[kind])["seconds"] for kind, learner in learners.items()}
                  for _ in range(repeats)]
    finally:
        for learner in learners.values():
            learner.close()
    norms = [answer["grad_norm"] for answer in first.values()]
    return {"speedup": statistics.median(taken["trl"] / taken["ours"] for taken in rounds),
            "seconds": {kind: statistics.median(taken[kind] for taken in rounds) for kind in learners},
            "bounds": best, "tried_s": tried, "rounds_s": rounds, "kl_coefficient": kl,
            # TRL divides rewards by their deviation + 1e-4, we by + 1e-6.
            "relative_gradient_norm_gap": abs(norms[0] - norms[1]) / norms[1],
            "rows": len(rows), "completion_tokens": sum(len(row.completion_ids) for row in rows),
            "padding_share_of_trl": padding_share(rows)}
