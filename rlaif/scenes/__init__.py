"""A small regular English of scenes: exact semantics, a judge that is never wrong, rows to learn from."""

from rlaif.scenes.explanation import explain
from rlaif.scenes.generate import TABLES, rows, split_of
from rlaif.scenes.judge import (
    INSTRUCTIONS,
    LABELS,
    Verdict,
    explain_answer,
    judge,
    parse_prompt,
    write_prompt,
)
from rlaif.scenes.semantics import RELATIONS, Relation, relation
from rlaif.scenes.sentence import Scene, parse, write
from rlaif.scenes.vocabulary import vocabulary

__all__ = [
    "INSTRUCTIONS",
    "LABELS",
    "RELATIONS",
    "TABLES",
    "Relation",
    "Scene",
    "Verdict",
    "explain",
    "explain_answer",
    "judge",
    "parse",
    "parse_prompt",
    "relation",
    "rows",
    "split_of",
    "vocabulary",
    "write",
    "write_prompt",
]
