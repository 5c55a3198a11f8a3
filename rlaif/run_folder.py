"""The folder of a run: made once, marked with its configuration, refused when it holds another run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from rlaif.config import UserError
from rlaif.config_file import resolved_yaml

CONFIG_FILE, DONE_FILE = "config.yaml", "done"


def refuse_other_run(output_dir: str, config: Any) -> bool:
    """True if `config` has finished in `output_dir` already.

    Raises UserError if the folder holds another run (another configuration), or files that are no run.
    """
    folder = Path(output_dir)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output_dir must be a folder, got the file {output_dir!r}")
    known = folder / CONFIG_FILE
    if known.is_file():
        mine, theirs = resolved_yaml(config).splitlines(), known.read_text(encoding="utf-8").splitlines()
        changed = [line.strip() for line in mine if line not in theirs] or [
            line.strip() for line in theirs if line not in mine]
        if changed:
            raise UserError(f"output_dir must be new or of the same run, got {output_dir!r}, which holds another run "
                            f"(this one has {changed[0]!r}); choose another output_dir or remove that one")
        return (folder / DONE_FILE).is_file()
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"output_dir must be new or of the same run, got {output_dir!r}, which holds files of no run; "
                        "choose another output_dir")
    return False


def claim(output_dir: str, config: Any) -> None:
    """Makes `output_dir` the folder of this run; what an unfinished attempt of it left there is begun anew."""
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").unlink(missing_ok=True)
    shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    (folder / CONFIG_FILE).write_text(resolved_yaml(config), encoding="utf-8")


def finish(output_dir: str) -> None:
    """Marks the run as complete; a stage that finds this mark is skipped."""
    (Path(output_dir) / DONE_FILE).write_text("")
