"""The generative judge, described: what a causal LM is asked, and what the words of its answer are worth.

    "{prompt}\nAnswer: {completion}\nIs it right?"    verdict: yes = 1, no = 0
"""

from __future__ import annotations

import math
import string
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rlaif.config.learner import DTYPES
from rlaif.esfp.slots import FIELDS, Slot

__all__ = ["MARKS", "PRINCIPLES", "GenerativeSpec", "JudgeQuestion", "from_dict", "parse", "to_dict"]

PRINCIPLES = "principles"
_EXPLANATIONS = ("explanation", "other_explanation")

# Stand around a field's name while a chat template writes its markup around the question; private use in Unicode.
MARKS = "\ue000\ue001"


@dataclass(frozen=True)
class JudgeQuestion:
    """What the judge is asked: a text with slots.FIELDS and {principles} in braces; `{{` and `}}` are braces."""

    text: str
    closing: str = ""  # stands before the label word, after the reasoning where there is one
    without_explanation: str | None = None  # the text for a row without explanation; null: `text` with an empty one
    principles: str = ""  # how to judge, in words
    is_chat: bool = False  # the text is the user's turn in the tokenizer's chat template, the closing the judge's

    def __post_init__(self) -> None:
        for name in ("text", "without_explanation"):
            if getattr(self, name) is not None:
                self._check(name, {part for is_field, part in parse(name, getattr(self, name)) if is_field})
        if any(mark in self.closing for mark in MARKS):
            raise ValueError("closing must be free of U+E000 and U+E001, got one; take it out")

    def _check(self, name: str, fields: set[str]) -> None:
        if "completion" not in fields:
            raise ValueError(f"{name} must have the field {{completion}}, got {getattr(self, name)!r}; add it")
        if bool(self.principles) != (PRINCIPLES in fields):
            raise ValueError(f"{name} must have the field {{principles}} where principles are given and only there, "
                             f"got {getattr(self, name)!r}; add one or drop the other")
        for unwanted in _EXPLANATIONS if name == "without_explanation" else ():
            if unwanted in fields:
                raise ValueError(f"without_explanation must do without {{{unwanted}}}, got {getattr(self, name)!r}; "
                                 "take it out")

    @property
    def fields(self) -> set[str]:
        return {part for is_field, part in parse("text", self.text) if is_field}


@dataclass(frozen=True)
class GenerativeSpec:
    """A generative judge: what it is asked, what its label words are worth, and which model answers."""

    question: JudgeQuestion
    slot: Slot
    model: str  # model name, or folder
    max_tokens: int  # tokens of question and closing together, special tokens included; >= 1
    max_reasoning_tokens: int = 0  # tokens the judge may write before its verdict; 0: none
    dtype: str = "float32"  # float32 | bfloat16
    temperature: float = 1.0  # divides the class logits; > 0, fitted on held-out data
    prior: list[float] | None = None  # nats, one a class: class logits of content-free input

    def __post_init__(self) -> None:
        if not self.model.strip():
            raise ValueError(f"model must be a name or folder, got {self.model!r}; name a causal language model")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be >= 1, got {self.max_tokens}; use what the question needs, as 1024")
        if self.max_reasoning_tokens < 0:
            raise ValueError(f"max_reasoning_tokens must be >= 0, got {self.max_reasoning_tokens}; 0 is no reasoning")
        if self.max_reasoning_tokens and not self.question.closing.strip():
            raise ValueError(f"closing must have words where the judge reasons first, got {self.question.closing!r}; "
                             "say what the label word answers")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}; float32 is exact")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be > 0 and finite, got {self.temperature}; 1.0 is uncalibrated")
        if self.prior is not None and len(self.prior) != len(self.slot.classes):
            raise ValueError(f"prior must have one number a class ({len(self.slot.classes)}), got {len(self.prior)}; "
                             "measure it again")
        has_other = bool({"other", "other_explanation"} & self.question.fields)
        if self.is_pairwise != has_other or (has_other and "other" not in self.question.fields):
            raise ValueError(f"text must have {{other}} with a pairwise slot and only there, got slot {self.slot.name} "
                             f"of kind {self.slot.kind} and {self.question.text!r}; change one of the two")

    @property
    def is_pairwise(self) -> bool:
        return self.slot.kind == "pairwise"

    @property
    def reads_explanations(self) -> bool:
        return bool(set(_EXPLANATIONS) & self.question.fields)

    @property
    def context_tokens(self) -> int:
        """Tokens the model must be able to attend over: all that stands before the verdict, and the verdict."""
        return self.max_tokens + self.max_reasoning_tokens + 1


def to_dict(spec: GenerativeSpec) -> dict[str, Any]:
    """Plain values, as for YAML."""
    return asdict(spec)


def from_dict(raw: Mapping[str, Any]) -> GenerativeSpec:
    """The specification that `to_dict` wrote; a ValueError of one line where it does not fit."""
    raw = dict(raw)
    try:
        return GenerativeSpec(question=JudgeQuestion(**raw.pop("question")), slot=Slot(**raw.pop("slot")), **raw)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"generative judge must have the fields of GenerativeSpec, got a misfit: {error}; mend it"
                         ) from error


def parse(name: str, text: str) -> list[tuple[bool, str]]:
    """The text `name` as (is it a field, text or name of the field) in order; a ValueError of one line where it has
    unknown fields."""
    parts: list[tuple[bool, str]] = []
    try:
        for literal, found, spec, conversion in string.Formatter().parse(text):
            parts.append((False, literal))
            if found is not None:
                parts.append((True, found + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")))
    except ValueError as error:
        raise ValueError(f"{name} must be a text with fields in braces, got {text!r}: {error}; write {{{{ for a brace"
                         ) from error
    allowed = (*FIELDS, PRINCIPLES)
    for is_field, part in parts:
        if is_field and part not in allowed:
            raise ValueError(f"{name} must use the fields {', '.join(allowed)} only, got {{{part}}}; write {{{{ for a "
                             "brace")
    if any(mark in text for mark in MARKS):
        raise ValueError(f"{name} must be free of U+E000 and U+E001, got one; take it out")
    return [part for part in parts if part[1]]
