"""What the user sees and what a run leaves behind: console lines, metrics.jsonl, timings.jsonl, evaluations.jsonl,
TensorBoard, samples, summary."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from torch.utils.tensorboard import SummaryWriter

from rlaif.running.checkpoints import told
from rlaif.running.manifest import sync
from rlaif.running.run_folder import EVALUATIONS_FILE, METRICS_FILE, TIMINGS_FILE

# What a clock or a scale says: it is never twice the same, and has a file of its own.
CLOCKED = ("_s", "_per_s", "_gb", "_mb", "_bytes")


class Report:
    """One run's console and files under `output_dir`. metrics.jsonl follows from configuration and seed, where the run
    does; seconds and memory are in timings.jsonl."""

    def __init__(self, output_dir: str | Path, stream: TextIO | None = None) -> None:
        self.folder = Path(output_dir)
        self._stream = stream or sys.stdout
        self._board = SummaryWriter(str(self.folder / "tensorboard"))
        self._append(METRICS_FILE, "")      # a run before its first step has them too

    def say(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def step(self, step: int, values: Mapping[str, Any], clocked: Mapping[str, Any] | None = None) -> None:
        """Writes one step's numbers to metrics.jsonl, those of them that a clock says to timings.jsonl, and all to
        TensorBoard. clocked: further ones that come out different every time, whatever they are called."""
        timings = {name: value for name, value in values.items() if name.endswith(CLOCKED)} | dict(clocked or {})
        self._append(METRICS_FILE, _line(step, {name: value for name, value in values.items() if name not in timings}))
        if timings:
            self._append(TIMINGS_FILE, _line(step, timings))
        self._show({**values, **timings}, step)

    def evaluation(self, step: int, figures: Mapping[str, float]) -> None:
        """Writes the figures on held-out prompts after `step` to evaluations.jsonl, and to TensorBoard as test/..."""
        self._append(EVALUATIONS_FILE, _line(step, figures))
        self._show({f"test/{name}": value for name, value in figures.items()}, step)

    def rewind(self, step: int, sizes: Mapping[str, int] | None = None) -> None:
        """Forgets the numbers of steps after `step`, and what a file of `sizes` has beyond its bytes: a run that is
        taken up again writes them anew."""
        for path in self._files:
            kept, limit = 0, (sizes or {}).get(path.name, math.inf)     # bytes
            with path.open("rb") as file:
                for line in file:
                    # It may have been cut short by a kill.
                    if not line.endswith(b"\n") or _step(line) > step or kept + len(line) > limit:
                        break
                    kept += len(line)
            if kept != path.stat().st_size:
                with told(self.folder):
                    os.truncate(path, kept)
        self._close_board()
        self._board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step + 1)

    def sizes(self) -> dict[str, int]:
        """Bytes of each file of numbers by name, all of them on the disk."""
        for path in self._files:
            with told(self.folder):
                sync(path)
        return {path.name: path.stat().st_size for path in self._files if path.name != TIMINGS_FILE}

    def close(self) -> None:
        self._close_board()

    def _show(self, values: Mapping[str, Any], step: int) -> None:
        with told(self.folder):
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(name, value, step)

    def _close_board(self) -> None:
        try:
            self._board.close()
        except OSError as error:        # its thread has failed before; what is in the other files is whole
            self.say(f"{self.folder / 'tensorboard'} is incomplete: {error.strerror}")

    @property
    def _files(self) -> list[Path]:
        paths = (self.folder / name for name in (METRICS_FILE, EVALUATIONS_FILE, TIMINGS_FILE))
        return [path for path in paths if path.is_file()]

    def _append(self, name: str, text: str) -> None:
        with told(self.folder), (self.folder / name).open("a", encoding="utf-8") as file:
            file.write(text)


def _line(step: int, values: Mapping[str, Any]) -> str:
    return json.dumps({"step": step} | dict(values)) + "\n"


def _step(line: bytes) -> float:
    """Of a line of numbers; infinite for one that is none, which a power cut may leave."""
    try:
        return json.loads(line)["step"]
    except (ValueError, TypeError, KeyError):
        return math.inf


def stage_lines(step: int, num_steps: int, values: Mapping[str, Any]) -> list[str]:
    """A step's headline, then a line for every stage with its count and time."""
    head = f"step {step:>{len(str(num_steps))}}/{num_steps}"
    shown = "  ".join(f"{label} {figure(values[key])}" for label, key in (
        ("reward", "reward"), ("gold", "gold"), ("fluent", "fluent"), ("kl", "kl_per_token"),
        ("gap", "max_logprob_gap")) if key in values)
    lines = [f"{head}  {shown}  length {values['completion_tokens']:.1f}  {values['step_s']:.2f} s"]
    stages = (
        ("rollout", f"{values['num_rollouts']:d} completions, {values['num_completion_tokens']:d} tokens, "
                    f"{values['num_cut']:d} cut"),
        ("explain", _explain_line(values)),
        ("score", _score_line(values)),
        ("learn", f"{values['num_trained']:d} rows, {values['equal_reward_group_share']:.0%} of groups equal"
                  f"{_replaced(values)}, gradient norm {values['grad_norm']:.2f}" if "grad_norm" in values else
                  f"none: {values['equal_reward_group_share']:.0%} of groups equal{_replaced(values)}"),
        ("sync", f"weights {values['policy_version']:d} {values['checksum'][:8]}"),
    )
    return lines + [f"  {name:<8}{values[f'{name}_s']:6.2f} s  {text}" for name, text in stages]


def _replaced(values: Mapping[str, Any]) -> str:
    """What became of groups with equal rewards where they are replaced."""
    if "num_replaced_groups" not in values:
        return ""
    return (f" ({values['num_replaced_groups']:d} replaced in {values['num_resampling_rounds']:d} rounds, "
            f"{values['num_equal_groups_kept']:d} kept)")


def _score_line(values: Mapping[str, Any]) -> str:
    """Of judges and reward functions, what there is to say."""
    shown = [f"{values['num_rollouts']:d} rewards"] + [f"{values[name]:.0f} {text}" for name, text in (
        ("slot_inputs_cut", "inputs cut"), ("judged_without_explanation", "without explanation")) if name in values]
    if values.get("rows_unjudged"):
        shown.append(f"{values['rows_unjudged']:.0f} not judged by any part")
    return ", ".join(shown)


def _explain_line(values: Mapping[str, Any]) -> str:
    if "explanation_tokens" not in values:
        return "none asked for"
    bad = ", ".join(f"{values[f'explanations_{name}']:.0f} {name}" for name in ("failed", "empty")
                    if values[f"explanations_{name}"])
    return (f"{values['num_explanations']:.0f} explanations, {values['explanation_tokens']:.1f} tokens each, "
            f"{values['explanations_cut']:.0f} cut") + (f", {bad}" if bad else "")


def sample_lines(rows: Sequence[Mapping[str, Any]], slot_labels: Sequence[str]) -> list[str]:
    """Some rollouts in full: what was asked, written, explained, and how it was judged."""
    lines = []
    for row in rows:
        slots = "  ".join(f"{label} {p:.2f}" for label, p in zip(slot_labels, row["slot_probabilities"], strict=True))
        verdicts, parts = dict(row["judge_verdicts"]), dict(row["reward_parts"])
        gold = f"  gold {verdicts['gold']:.0f}" if "gold" in verdicts else ""
        lines += [f"  | prompt       {_one_line(row['prompt'])}", f"  | completion   {_one_line(row['completion'])}",
                  *(f"  | explanation  {_one_line(text)}" for text in row["explanations"]),
                  *([f"  | parts        {'  '.join(f'{name} {value:.2f}' for name, value in parts.items())}"]
                    if len(parts) > 1 else []),
                  f"  | {'slots        ' + slots + '  ' if slots else ''}reward {row['reward']:.2f}{gold}", "  |"]
    return lines[:-1]


def _one_line(text: str, limit: int = 160) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def before_after_table(before: Mapping[str, float], after: Mapping[str, float]) -> list[str]:
    """reward, gold, KL, length and the rest, before and after."""
    lines = [f"  {'':<22}{'before':>10}{'after':>10}"]
    for name in after:
        if name in before:
            label = {"completion_tokens": "length"}.get(name, name)
            lines.append(f"  {label:<22}{figure(before[name]):>10}{figure(after[name]):>10}")
    return lines


def figure(value: float) -> str:
    """Three decimals; what would vanish in them, as a power of ten."""
    return f"{value:.3f}" if value == 0 or abs(value) >= 5e-4 else f"{value:.0e}"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes `content` beside `path` and renames it there, so that no reader sees half a file."""
    beside = path.with_suffix(path.suffix + ".partial")
    beside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    beside.rename(path)


class Stopwatch:
    """Seconds by name; the same name adds up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.perf_counter()

    def add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    @property
    def total(self) -> float:
        return time.perf_counter() - self._began
