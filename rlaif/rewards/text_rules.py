"""Rewards that are read off the text itself. Each takes columns by name, as a user's function does, and its options.

exact_match, regex and json_schema may run patterns of the user's, which can take for ever on some texts: they are
called in a process with a time limit, like a user's function.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonschema.exceptions import SchemaError
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for
from jsonschema_specifications import REGISTRY

__all__ = ["compiled", "exact_match", "format_tags", "json_schema", "length_penalty", "read_schema", "regex",
           "repetition_penalty"]


def compiled(pattern: str) -> re.Pattern[str]:
    """The regular expression. Raises ValueError, one line, for one that is none."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern must be a regular expression, got {pattern!r}: {error}") from error


def exact_match(completions: Sequence[str], references: Sequence[str | None], *, answer: re.Pattern[str] | None = None,
                ignore_case: bool = False, ignore_punctuation: bool = False) -> list[float | None]:
    """1 where the completion is its reference, else 0; None without a reference.

    Runs of white space count as one space, those at the ends as nothing; characters are compared in the form NFC.
    answer: its last match is compared instead (group 1 where it has groups): a completion without a match is wrong, a
    reference without one is taken whole. ignore_punctuation: at the ends of what is compared.
    """
    def normal(text: str) -> str:
        text = " ".join(unicodedata.normalize("NFC", text).split())
        text = text.casefold() if ignore_case else text
        return _without_punctuation(text) if ignore_punctuation else text

    found: list[float | None] = []
    for completion, reference in zip(completions, references, strict=True):
        if reference is None:
            found.append(None)
            continue
        said, right = (text if answer is None else _last_match(answer, text) for text in (completion, reference))
        found.append(float(said is not None and normal(said) == normal(reference if right is None else right)))
    return found


def _last_match(pattern: re.Pattern[str], text: str) -> str | None:
    last = deque(pattern.finditer(text), maxlen=1)
    return last[0].group(1 if pattern.groups else 0) if last else None


def _without_punctuation(text: str) -> str:
    start, end = 0, len(text)
    while start < end and _is_punctuation(text[start]):
        start += 1
    while end > start and _is_punctuation(text[end - 1]):
        end -= 1
    return text[start:end]


def _is_punctuation(character: str) -> bool:
    return character.isspace() or unicodedata.category(character).startswith("P")


def regex(completions: Sequence[str], *, pattern: re.Pattern[str], is_whole: bool = False) -> list[float]:
    """1 where the pattern matches a part of the completion (or all of it), else 0."""
    matches = pattern.fullmatch if is_whole else pattern.search
    return [float(matches(completion) is not None) for completion in completions]


def length_penalty(completions: Sequence[str], num_tokens: Sequence[int], *, unit: str = "tokens", shortest: int = 0,
                   longest: int | None = None, buffer: int = 1) -> list[float]:
    """0 for a length n in shortest..longest, and outside down to -1:

        -min(1, max(n - longest, shortest - n, 0) / buffer)

    num_tokens: tokens of each completion as the policy wrote it. unit: tokens, words (between white space) or
    characters. Source: Yu et al. 2025, DAPO, equation 13, whose penalty begins at L_max - L_cache (here: longest) and
    is whole at L_max (longest + buffer).
    """
    lengths = {"tokens": num_tokens, "words": [len(text.split()) for text in completions] if unit == "words" else [],
               "characters": [len(text) for text in completions]}[unit]
    limit = math.inf if longest is None else longest
    return [0.0 - min(1.0, max(length - limit, shortest - length, 0) / buffer) for length in lengths]


def repetition_penalty(completions: Sequence[str], *, size: int = 3) -> list[float]:
    """Minus the share of repeated n-grams of `size` words (between white space): -(1 - distinct / all), above -1.

    0 for a completion with fewer words. Source: seq-rep-n of Welleck et al. 2020, Neural Text Generation with
    Unlikelihood Training, equation 10, with words instead of tokens and a minus.
    """
    found = []
    for completion in completions:
        words = completion.split()
        grams = [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]
        found.append(len(set(grams)) / len(grams) - 1.0 if grams else 0.0)
    return found


def format_tags(completions: Sequence[str], *, tags: Sequence[str], allow_text_outside: bool = False) -> list[float]:
    """1 where the completion is <tag>text</tag> for each of `tags` in their order, each once and none blank, else 0.

    Between them, before and after only white space, unless other text is allowed there.
    """
    return [float(_has_tags(completion, tags, allow_text_outside)) for completion in completions]


def _has_tags(text: str, tags: Sequence[str], allow_text_outside: bool) -> bool:
    place, outside = 0, []
    for tag in tags:
        first, last = f"<{tag}>", f"</{tag}>"
        start = text.find(first, place)
        end = text.find(last, start)
        if start < 0 or end < 0 or text.count(first) != 1 or text.count(last) != 1:
            return False
        if not text[start + len(first) : end].strip():
            return False
        outside.append(text[place:start])
        place = end + len(last)
    outside.append(text[place:])
    return allow_text_outside or not "".join(outside).strip()


def read_schema(schema: dict, schema_file: str | None) -> Validator:
    """What checks values by a JSON Schema; none but its own definitions and the published drafts can be referred to.

    Raises ValueError, one line, for a schema that is none.
    """
    if schema_file is not None:
        try:
            schema = json.loads(Path(schema_file).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"schema_file must hold a JSON Schema, got {schema_file!r}: {error}") from error
    kind = validator_for(schema)
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"schema must be a JSON Schema, got one with {error.message} at {error.json_path}") from error
    return kind(schema, registry=REGISTRY)


def json_schema(completions: Sequence[str], *, validator: Validator, parsed_value: float = 0.0) -> list[float]:
    """1 where the completion is JSON that fits the schema, `parsed_value` where it is other JSON, else 0.

    NaN and Infinity are no JSON, nor is what is nested too deep to be read.
    """
    found = []
    for completion in completions:
        try:
            value = json.loads(completion, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            found.append(0.0)
            continue
        found.append(1.0 if _fits(validator, value) else parsed_value)
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _fits(validator: Validator, value: Any) -> bool:
    try:
        return validator.is_valid(value)
    except RecursionError:
        return False
