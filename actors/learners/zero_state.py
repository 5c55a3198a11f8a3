"""What DeepSpeed's learners write down of themselves, and how as many ranks or others take it up.

    learner.json        how many ranks wrote, and how
    state/              DeepSpeed's own files: weights and optimizer, torch pickles

As many ranks take up exactly what was written. Other numbers of ranks go by DeepSpeed's universal checkpoint (ZeRO 1
to 3): every tensor whole in a file of its own, to be cut anew. Without ZeRO every rank holds all, and rank 0 writes it.

What is used of DeepSpeed: the engine's save_checkpoint, load_checkpoint and load_universal_checkpoint,
checkpoint.ds_to_universal.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import re
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from deepspeed.checkpoint import ds_to_universal

from rlaif.config.checks import UserError
from rlaif.config.learner import LearnerConfig
from rlaif.running.manifest import Entry, entries_of

TAG, LEARNER_FILE = "state", "learner.json"
_RANK = re.compile(r"_pp_rank_(\d+)_mp_rank_")
_WRITE_ERRORS = ("PytorchStreamWriter", "inline_container")     # of torch.save, which does not say why


def save(engine: Any, folder: str, state: dict[str, Any], config: LearnerConfig) -> dict[str, Entry]:
    """As ZeroEngine.save_state. Raises OSError where the disk does not take it."""
    rank = torch.distributed.get_rank()
    try:
        engine.save_checkpoint(folder, tag=TAG, client_state={"learner": state}, save_latest=False)
    except RuntimeError as error:
        if not any(name in str(error) for name in _WRITE_ERRORS):
            raise
        raise _why_not(Path(folder), error) from error
    if rank == 0:
        (Path(folder) / LEARNER_FILE).write_text(json.dumps({
            "world_size": torch.distributed.get_world_size(), "zero_stage": config.zero_stage,
            "optimizer": config.optimizer}) + "\n")
    files = [path.relative_to(folder).as_posix() for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    return entries_of(Path(folder), [name for name in files if _writer(name) == rank])


def load(engine: Any, folder: str, config: LearnerConfig) -> dict[str, Any]:
    """As ZeroEngine.load_state. Raises UserError for a number of ranks that cannot take up what others wrote."""
    written, world_size = json.loads((Path(folder) / LEARNER_FILE).read_text()), torch.distributed.get_world_size()
    if written["world_size"] == world_size or config.zero_stage == 0:
        return _load(engine, folder)
    if config.optimizer != "adamw":
        raise UserError(f"placement.learner.num_actors must be {written['world_size']} as in the run that is resumed, "
                        f"got {world_size}: DeepSpeed cuts the states of {config.optimizer} anew for no other number")
    # Beside the checkpoint, which must stay as it is; what is left there by a kill is removed with other leftovers.
    universal = Path(folder).parent.with_name("universal.partial")
    if torch.distributed.get_rank() == 0:
        _convert(Path(folder) / TAG, universal / TAG)
    torch.distributed.barrier()
    engine._config.load_universal_checkpoint = True
    try:
        return _load(engine, str(universal))
    finally:
        engine._config.load_universal_checkpoint = False
        torch.distributed.barrier()
        if torch.distributed.get_rank() == 0:
            shutil.rmtree(universal)


def _load(engine: Any, folder: str) -> dict[str, Any]:
    path, state = engine.load_checkpoint(folder, tag=TAG, load_lr_scheduler_states=False)
    assert path is not None, f"no state in {folder}"
    return state["learner"]


def _convert(source: Path, target: Path) -> None:
    shutil.rmtree(target.parent, ignore_errors=True)
    target.mkdir(parents=True)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        ds_to_universal.main(Namespace(
            input_folder=str(source), output_folder=str(target), num_extract_workers=1, num_merge_workers=1,
            keep_temp_folder=False, strict=True, inject_missing_state=True))


def _writer(name: str) -> int:
    """The rank that writes a file: what is no rank's own is written by rank 0."""
    match = _RANK.search(name)
    return int(match[1]) if match else 0


def _why_not(folder: Path, error: RuntimeError) -> OSError:
    """What the disk says to a file of our own, where torch does not tell what it said."""
    try:
        (folder / "probe").write_bytes(bytes(1 << 20))
    except OSError as found:
        return found
    finally:
        (folder / "probe").unlink(missing_ok=True)
    return OSError(errno.EIO, str(error).splitlines()[0])
