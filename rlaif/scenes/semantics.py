"""What follows from a sentence.

With P_d and H_d the leaves premise and hypothesis allow in dimension d (all of them where nothing is said):

    contradiction   some d has P_d ∩ H_d = ∅
    entailment      every d has P_d ⊆ H_d
    neutral         otherwise

The trees make this a look at two words a dimension.
"""

from typing import Literal, get_args

from rlaif.scenes.lexicon import compatible, implies
from rlaif.scenes.sentence import Scene

Relation = Literal["entailment", "neutral", "contradiction"]
RELATIONS: tuple[Relation, ...] = get_args(Relation)


def fact_relation(premise: str | None, hypothesis: str) -> Relation:
    """How one value of the hypothesis relates to what the premise says in that dimension (None: nothing)."""
    if premise is None:
        return "neutral"
    if implies(premise, hypothesis):
        return "entailment"
    return "neutral" if compatible(premise, hypothesis) else "contradiction"


def relation(premise: Scene, hypothesis: Scene) -> Relation:
    """Whether the hypothesis must be (entailment), might be or cannot be true where the premise is."""
    said = premise.facts()
    found = {fact_relation(said.get(dimension), value) for dimension, value in hypothesis.facts().items()}
    if "contradiction" in found:
        return "contradiction"
    return "neutral" if "neutral" in found else "entailment"
