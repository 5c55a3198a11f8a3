"""Rows of unequal length for the learners alone: the same for both, from prompts of the race and drawn completions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from benchmarks.trl_peer import world


@dataclass(frozen=True)
class Row:
    """A scored completion; rows of a group follow one another."""

    group_id: int
    sample: int
    prompt_ids: list[int]
    completion_ids: list[int]
    reward: float


def write_rows(folder: Path, path: Path) -> list[Row]:
    """The rows of a step, lengths drawn evenly from 1 to MAX_TOKENS; they lie at `path` for `read_rows`."""
    rng = Random(world.SEED)
    rows = []
    for prompt in world.prompts(folder)[: world.NUM_PROMPTS]:
        for sample in range(world.GROUP_SIZE):
            ids = [rng.randrange(1, world.VOCABULARY) for _ in range(rng.randint(1, world.MAX_TOKENS))]
            rows.append(Row(prompt["group_id"], sample, prompt["prompt_ids"], ids, rng.random()))
    path.write_text(json.dumps([asdict(row) for row in rows]), encoding="utf-8")
    return rows


def read_rows(path: Path) -> list[Row]:
    return [Row(**row) for row in json.loads(path.read_text(encoding="utf-8"))]


def padding_share(rows: Sequence[Row]) -> float:
    """Share of padding where all prompts are as long as the longest, and all completions."""
    prompts, completions = ([len(getattr(row, name)) for row in rows] for name in ("prompt_ids", "completion_ids"))
    return 1 - (sum(prompts) + sum(completions)) / (len(rows) * (max(prompts) + max(completions)))
