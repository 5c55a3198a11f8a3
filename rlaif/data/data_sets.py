"""Data sets that are more than one file: folders, those of datasets' save_to_disk, and those of the Hugging Face hub.

No code of a data set is ever run: the `datasets` package of today reads data files only.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from rlaif.config.checks import UserError

# Names that people give to the splits of a data set.
SPLITS = ("train", "training", "validation", "valid", "val", "dev", "eval", "test", "testing", "holdout", "heldout")
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Part:
    """Which part of a data set is meant.

    split: its name; None: the only one, or `likely` where there are several.
    subset, revision: of the hub: the data set's configuration, and its branch, tag or commit.
    """

    split: str | None = None
    likely: str | None = None
    subset: str | None = None
    revision: str | None = None


def choose_split(names: Collection[str], part: Part, source: str, key: str) -> str:
    """Which of the splits `names` of `source` is meant; a single one of training rows is not taken for test rows.

    Raises UserError with the names where it is not clear.
    """
    known = ", ".join(sorted(names))
    if part.split is not None:
        if part.split not in names:
            raise UserError(f"{key} must have the split {part.split!r}, got {known or 'none'} in {source!r}")
        return part.split
    if part.likely in names:
        return part.likely
    only = next(iter(names)) if len(names) == 1 else None
    if only is None or (part.likely == "test" and only.startswith("train")):
        raise UserError(f"{key} must say which split of {source!r} is meant, got none of {known}; set split, or give "
                        "the path of one file")
    return only


def folder_files(folder: Path, suffixes: Sequence[str], part: Part, key: str) -> list[Path]:
    """The data files below `folder` that belong to `part`, by name; hidden ones are left out.

    A file belongs to a split that a word of its path names, as in train-00000-of-00002.parquet or test/part0.jsonl.
    Raises UserError: no such file, files of several kinds, an unclear split.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in suffixes and path.is_file()
             and not any(name.startswith((".", "_")) for name in path.relative_to(folder).parts)]
    if not files:
        raise UserError(f"{key} must hold files that end in {', '.join(suffixes)}, got none in the folder "
                        f"{str(folder)!r}")
    words = {path: set(re.split(r"[\W_]+", str(path.relative_to(folder).with_suffix("")))) for path in files}
    splits = {word for found in words.values() for word in found if word in (*SPLITS, part.split)}
    if splits or part.split is not None:
        chosen = choose_split(splits, part, str(folder), key)
        if len(splits) > 1 or part.split is not None:
            files = [path for path in files if chosen in words[path]]
    kinds = sorted({path.suffix for path in files})
    if len(kinds) > 1:
        raise UserError(f"{key} must hold files of one kind, got {', '.join(kinds)} in {str(folder)!r}; give the path "
                        "of one file")
    return files


def is_saved(folder: Path) -> bool:
    """Whether `folder` was written by datasets' save_to_disk."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def read_saved(folder: Path, part: Part, key: str) -> pa.Table:
    """The rows of a folder that datasets' save_to_disk wrote. Raises UserError where it cannot be read."""
    import datasets  # seconds, and needed for such data only

    try:
        found = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowInvalid) as error:
        raise UserError(f"{key} must be a whole folder of save_to_disk, got {str(folder)!r}: "
                        f"{_first_line(error)}") from error
    if isinstance(found, datasets.DatasetDict):
        found = found[choose_split(found.keys(), part, str(folder), key)]
    return found.with_format("arrow")[:]


def read_hub(name: str, part: Part, key: str) -> pa.Table:
    """The rows of the data set `name` ("owner/name", or a folder laid out like one) of the hub, which is kept in the
    Hugging Face cache. Raises UserError, one line, where it cannot be had."""
    import datasets  # seconds, and needed for such data only

    try:
        splits = datasets.get_dataset_split_names(name, part.subset, revision=part.revision)
        split = choose_split(splits, part, name, key)
        found = datasets.load_dataset(name, part.subset, split=split, revision=part.revision)
    except UserError:
        raise
    except Exception as error:      # of the network, the hub, the cache or a data file: whatever it is, it is the data
        raise UserError(f"{key} must be a data set of the hub that can be read, got {name!r}: {_first_line(error)}"
                        ) from error
    return found.with_format("arrow")[:]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
