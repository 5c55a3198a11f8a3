"""Stage 2 of the ESFP reward, described: a template with slots, its label words and what they are worth.

    "{prompt} {completion} {explanation} The answer is [verdict]."    verdict: yes = 1, no = 0

The same templates, without slots, are read by sequence-classification heads: see HEADS.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

__all__ = ["FIELDS", "HEADS", "KINDS", "SEPARATOR", "Slot", "SlotTemplate", "fields_of", "parse"]

# The text fields of a template; `other` is the completion that a pairwise slot compares with.
FIELDS = ("prompt", "completion", "explanation", "other", "other_explanation")
_EXPLANATIONS = ("explanation", "other_explanation")
SEPARATOR = "sep"       # {sep}: the tokenizer's separator

# What reads a filled template. slot: a masked LM at the [slots]. classes: a sequence classifier, one logit a class of
# the one slot that is declared and not in the text. scalar: a sequence classifier whose only logit is the reward.
HEADS = ("slot", "classes", "scalar")

# verdict: classes with any values. ordinal: ratings in ascending order. pairwise: the first class says that the
# completion is better, the last that the other is, one between them that they are equal; read in both orders.
KINDS = ("verdict", "ordinal", "pairwise")
SCORES = ("expected", "margin")

_MARK = re.compile(r"\{(?P<field>\w+)\}|\[(?P<slot>\w+)\]|(?P<stray>[{}\[\]])")


@dataclass(frozen=True)
class Slot:
    """One place the masked language model fills in."""

    name: str  # as in the text, [name]; letters, digits, _
    classes: list[list[str]]  # label words of each class, in order; at least two classes
    values: list[float]  # score of each class, in the unit of the reward
    weight: float = 1.0  # of this slot's score in the reward
    kind: str = "verdict"  # one of KINDS
    # expected: sum of value * probability. margin: log odds of the best class against the worst, nats.
    score: str = "expected"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w+", self.name):
            raise ValueError(f"name of a slot must be letters, digits and _, got {self.name!r}; rename it")
        where = f"of slot {self.name}"
        if len(self.classes) < 2:
            raise ValueError(f"classes {where} must be at least two, got {len(self.classes)}; add a class")
        for words in self.classes:
            if isinstance(words, str) or not words or not all(isinstance(w, str) and w.strip() for w in words):
                raise ValueError(f"classes {where} must be lists of label words, got {words!r}; write [[up], [down]]")
        if len(self.values) != len(self.classes):
            raise ValueError(f"values {where} must be one a class ({len(self.classes)}), got {len(self.values)}; match")
        if not all(math.isfinite(value) for value in self.values):
            raise ValueError(f"values {where} must be finite, got {list(self.values)}; give numbers")
        if not math.isfinite(self.weight):
            raise ValueError(f"weight {where} must be finite, got {self.weight}; 1.0 is usual")
        for name, choices in (("kind", KINDS), ("score", SCORES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} {where} must be one of {', '.join(choices)}, got {getattr(self, name)!r}; "
                                 f"{choices[0]} is usual")
        values = list(self.values)
        if self.kind == "ordinal" and values != sorted(set(values)):
            raise ValueError(f"values {where} must rise from class to class in an ordinal slot, got {values}; "
                             "sort them")
        if self.kind == "pairwise" and (len(values) > 3 or values[0] <= values[-1] or not math.isclose(
                sum(values), len(values) * (values[0] + values[-1]) / 2, abs_tol=1e-9)):
            raise ValueError(f"values {where} must fall evenly over two or three classes in a pairwise slot, got "
                             f"{values}; [1, 0] or [1, 0.5, 0] is usual")
        if self.score == "margin" and max(values) == min(values):
            raise ValueError(f"values {where} must differ for the score margin, got {values}; use expected")


@dataclass(frozen=True)
class SlotTemplate:
    """A text with FIELDS in braces, `{sep}` for the tokenizer's separator, and `[name]` for slots."""

    text: str
    slots: list[Slot]
    max_tokens: int  # tokens of a filled-in template, special tokens included; >= 1
    temperature: float = 1.0  # divides the class logits; > 0, fitted on held-out data
    head: str = "slot"  # one of HEADS
    without_explanation: str | None = None  # the text for a row without explanation; null: `text` with an empty one

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be >= 1, got {self.max_tokens}; use what the encoder can read, as 512")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be > 0 and finite, got {self.temperature}; 1.0 is uncalibrated")
        if self.head not in HEADS:
            raise ValueError(f"head must be one of {', '.join(HEADS)}, got {self.head!r}; slot is usual")
        names = [slot.name for slot in self.slots]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"slots must have distinct names, got {name} twice; rename one")
        wanted = {"classes": 1, "scalar": 0}.get(self.head, len(names))
        if len(names) != wanted:
            raise ValueError(f"slots must be {wanted} with head {self.head}, got {len(names)}; change one of the two")
        for which in ("text", "without_explanation"):
            if getattr(self, which) is not None:
                self._check_marks(which, names if self.head == "slot" else [])
        if self.without_explanation is not None:
            for name in _EXPLANATIONS:
                if name in fields_of(self.without_explanation):
                    raise ValueError(f"without_explanation must do without {{{name}}}, got "
                                     f"{self.without_explanation!r}; take it out")
        if len({slot.kind == "pairwise" for slot in self.slots}) > 1:
            raise ValueError("slots must all be pairwise or none of them, got both; use two reward models")
        if self.is_pairwise and "other" not in fields_of(self.text):
            raise ValueError(f"text must have {{other}} for a pairwise slot, got {self.text!r}; add it")
        if not self.is_pairwise:
            for name in ("other", "other_explanation"):
                if name in fields_of(self.text):
                    raise ValueError(f"text must use {{{name}}} with pairwise slots only, got {self.text!r}; set the "
                                     "slot's kind to pairwise")

    def _check_marks(self, which: str, names: list[str]) -> None:
        text = getattr(self, which)
        marked = [part for kind, part in parse(text) if kind == "slot"]
        if not marked and self.head == "slot":
            raise ValueError(f"{which} must have a slot, got {text!r}; add one as [name]")
        for name in names:
            if name not in marked:
                raise ValueError(f"slots must all be in the {which}, got {name} without [{name}]; add it or drop the "
                                 "slot")
        for name in marked:
            if name not in names:
                cure = "declare it under slots" if self.head == "slot" else f"head {self.head} reads none: remove it"
                raise ValueError(f"{which} must name declared slots only, got [{name}]; {cure}")
            if marked.count(name) > 1:
                raise ValueError(f"{which} must name each slot once, got [{name}] {marked.count(name)} times; remove "
                                 "one")

    @property
    def is_pairwise(self) -> bool:
        """Compares two completions instead of judging one."""
        return any(slot.kind == "pairwise" for slot in self.slots)

    @property
    def num_classes(self) -> int:
        """Logits that a head other than "slot" has."""
        return len(self.slots[0].classes) if self.slots else 1

    @property
    def reads_explanations(self) -> bool:
        return any(name in fields_of(self.text) for name in _EXPLANATIONS)


def fields_of(text: str) -> set[str]:
    """Names of the fields in a template's text."""
    return {part for kind, part in parse(text) if kind == "field"}


def parse(text: str) -> list[tuple[str, str]]:
    """The text as (kind, text) in order, kind one of literal, field, slot."""
    parts: list[tuple[str, str]] = []
    end = 0
    for match in _MARK.finditer(text):
        parts.append(("literal", text[end : match.start()]))
        end = match.end()
        kind = match.lastgroup
        if kind == "stray":
            raise ValueError(f"text must use braces and brackets for {{field}} and [slot] only, got {match.group()!r} "
                             f"at character {match.start()}; names are letters, digits and _")
        if kind == "field" and match.group(kind) not in (*FIELDS, SEPARATOR):
            raise ValueError(f"text must use the fields {', '.join((*FIELDS, SEPARATOR))} only, got "
                             f"{{{match.group(kind)}}}; rename it")
        parts.append((kind, match.group(kind)))
    parts.append(("literal", text[end:]))
    return [(kind, part) for kind, part in parts if part]
