"""A second derivation of the relation, from what the words stand for: nothing of `semantics` is in it."""

from rlaif.scenes.lexicon import DIMENSIONS, TREES
from rlaif.scenes.sentence import Scene


def allowed(scene: Scene, dimension: str) -> frozenset[str]:
    """The leaves of a dimension that a scene leaves possible: all of them where it says nothing."""
    tree = TREES[dimension]
    value = getattr(scene, dimension)
    everything = frozenset(leaf for leaves in tree.values() for leaf in leaves)
    return everything if value is None else frozenset(tree.get(value, (value,)))


def relation_by_worlds(premise: Scene, hypothesis: Scene) -> str:
    """Contradiction: no world makes both true. Entailment: the premise's worlds are worlds of the hypothesis.

    A world is one leaf a dimension, so the set of worlds is the product of the sets of leaves: the product of
    the intersections is empty if and only if one of them is, and one product is within another if and only if
    each set is.
    """
    pairs = [(allowed(premise, dimension), allowed(hypothesis, dimension)) for dimension in DIMENSIONS]
    if any(mine.isdisjoint(theirs) for mine, theirs in pairs):
        return "contradiction"
    return "entailment" if all(mine <= theirs for mine, theirs in pairs) else "neutral"
