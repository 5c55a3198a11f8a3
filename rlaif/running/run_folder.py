"""The folder of a run: made once, marked with its configuration, refused when it holds another run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rlaif.config.checks import UserError
from rlaif.config.files import resolved_yaml
from rlaif.running.lock import LOCK_FILE
from rlaif.running.manifest import sync, sync_all

CONFIG_FILE, DONE_FILE = "config.yaml", "done"
_BESIDE = CONFIG_FILE + ".partial"
METRICS_FILE, EVALUATIONS_FILE, TIMINGS_FILE = "metrics.jsonl", "evaluations.jsonl", "timings.jsonl"

# Where a run lies, on what and how carefully it runs: it stays the same run.
MAY_CHANGE = ("output_dir", "checkpoint", "placement", "faults", "sync", "report")


def refuse_other_run(output_dir: str, config: Any) -> bool:
    """True if `config` has finished in `output_dir` already.

    Raises UserError if the folder holds another run (another configuration), holds files that are no run, or cannot be
    made.
    """
    folder = Path(output_dir)
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError(f"output_dir must be a folder that can be written, got {output_dir!r}, where {str(there)!r} is "
                        f"{'read-only' if there.is_dir() else 'a file'}")
    known = folder / CONFIG_FILE
    if known.is_file():
        found = difference(known.read_text(encoding="utf-8"), resolved_yaml(config))
        if found is not None:
            raise UserError(f"output_dir must be new or of the same run, got {output_dir!r}, which holds another run "
                            f"({found}); choose another output_dir or remove that one")
        return (folder / DONE_FILE).is_file()
    if folder.is_dir() and any(path.name not in (LOCK_FILE, _BESIDE) for path in folder.iterdir()):
        raise UserError(f"output_dir must be new or of the same run, got {output_dir!r}, which holds files of no run; "
                        "choose another output_dir")
    return False


def difference(theirs: str, mine: str) -> str | None:
    """The first setting that makes two configurations in YAML different runs, in words; None where none does."""
    if theirs == mine:
        return None
    try:
        old, new = (dict(_leaves(OmegaConf.to_container(OmegaConf.create(text)), "")) for text in (theirs, mine))
    except (OmegaConfBaseException, YAMLError, ValueError):
        return f"its {CONFIG_FILE} is not readable"
    for key in (*new, *old):
        if key.split(".")[0] in MAY_CHANGE:
            continue
        there, here = old.get(key, "nothing"), new.get(key, "nothing")
        if there != here:
            return f"{key} is {there!r} there and {here!r} here"
    return None


def _leaves(content: Any, path: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(content, dict):
        yield path, content
        return
    for key, value in content.items():
        yield from _leaves(value, f"{path}.{key}" if path else str(key))


def claim(output_dir: str, config: Any, *, anew: bool = True) -> None:
    """Makes `output_dir` the folder of this run. `anew`: its numbers begin again; else they are kept to go on with."""
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if anew:
        for name in (METRICS_FILE, EVALUATIONS_FILE, TIMINGS_FILE):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    (folder / _BESIDE).write_text(resolved_yaml(config), encoding="utf-8")
    sync(folder / _BESIDE)
    (folder / _BESIDE).rename(folder / CONFIG_FILE)     # whole or not at all: half of it would be another run
    sync(folder)


def finish(output_dir: str) -> None:
    """Marks the run as complete, all that it made being on the disk: its checkpoints go next. A stage that finds this
    mark is skipped."""
    sync_all(Path(output_dir))
    (Path(output_dir) / DONE_FILE).write_text("")
    sync(Path(output_dir))
