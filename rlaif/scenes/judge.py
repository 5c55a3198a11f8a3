"""The gold judge: reads a prompt and a completion and is never wrong."""

from dataclasses import dataclass
from typing import Literal

from rlaif.scenes.explanation import explain
from rlaif.scenes.semantics import RELATIONS, Relation, relation
from rlaif.scenes.sentence import Scene, parse, write

Label = Literal["yes", "no", "garbled"]
LABELS: tuple[Label, ...] = ("yes", "no", "garbled")

INSTRUCTIONS: dict[Relation, str] = {
    "entailment": "Say something that must be true:",
    "neutral": "Say something that might be true:",
    "contradiction": "Say something that cannot be true:",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """The label, and how the completion relates to the premise (None where it is no sentence)."""

    label: Label
    relation: Relation | None

    @property
    def reward(self) -> float:
        """1.0 for yes, else 0.0."""
        return float(self.label == "yes")


def write_prompt(asked: Relation, premise: Scene) -> str:
    """The prompt that asks for a sentence in this relation to the premise."""
    return f"{INSTRUCTIONS[asked]} {write(premise)}"


def parse_prompt(prompt: str) -> tuple[Relation, Scene]:
    """The relation a prompt asks for, and its premise.

    Raises ValueError for a prompt that `write_prompt` cannot have written.
    """
    for asked in RELATIONS:
        if prompt.startswith(INSTRUCTIONS[asked] + " "):
            premise = parse(prompt.removeprefix(INSTRUCTIONS[asked]))
            if premise is not None:
                return asked, premise
    raise ValueError(f"prompt must be an instruction and a sentence of the scenes, got {prompt!r}")


def judge(prompt: str, completion: str) -> Verdict:
    """The exact verdict: "yes" for a sentence in the relation asked for, "garbled" for no sentence."""
    asked, premise = parse_prompt(prompt)
    hypothesis = parse(completion)
    if hypothesis is None:
        return Verdict("garbled", None)
    found = relation(premise, hypothesis)
    return Verdict("yes" if found == asked else "no", found)


def explain_answer(prompt: str, completion: str) -> str:
    """The exact explanation of a completion; it does not depend on the relation the prompt asks for."""
    _, premise = parse_prompt(prompt)
    return explain(premise, completion)
