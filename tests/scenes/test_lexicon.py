from itertools import product

import pytest

from rlaif.scenes.lexicon import (
    DIMENSION_OF,
    DIMENSIONS,
    PREPOSITIONS,
    TREES,
    VERBS,
    article,
    category,
    compatible,
    implies,
    is_category,
    leaves,
    values,
)
from rlaif.scenes.vocabulary import vocabulary


def test_every_word_has_one_place_and_one_dimension() -> None:
    said = [value for dimension in DIMENSIONS for value in values(dimension)]
    assert tuple(TREES) == DIMENSIONS
    assert len(said) == len(set(said)) == len(DIMENSION_OF)
    assert not set(said) & {*VERBS.values(), *PREPOSITIONS.values()}


def test_every_thing_has_its_verb_and_every_place_its_preposition() -> None:
    assert set(VERBS) == set(TREES["thing"])
    assert set(PREPOSITIONS) == set(TREES["place"])
    assert len(set(VERBS.values())) == len(VERBS)


@pytest.mark.parametrize(("value", "other", "is_implied", "is_compatible"), [
    ("guitar", "guitar", True, True),
    ("guitar", "instrument", True, True),
    ("instrument", "guitar", False, True),
    ("guitar", "violin", False, False),
    ("guitar", "fruit", False, False),
    ("instrument", "fruit", False, False),
])
def test_what_a_guitar_is(value: str, other: str, is_implied: bool, is_compatible: bool) -> None:
    assert implies(value, other) is is_implied
    assert compatible(value, other) is is_compatible


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_the_tree_agrees_with_sets_of_leaves(dimension: str) -> None:
    for value, other in product(values(dimension), repeat=2):
        assert implies(value, other) == (set(leaves(value)) <= set(leaves(other)))
        assert compatible(value, other) == bool(set(leaves(value)) & set(leaves(other)))
        assert is_category(value) == (category(value) == value)


def test_articles() -> None:
    an = {word for word in DIMENSION_OF if article(word) == "an"}
    assert an == {
        "adult", "animal", "owl", "orange", "ivory", "anorak", "instrument", "apple", "atlas", "axe", "attic",
    }


def test_the_vocabulary_holds_each_word_once_and_takes_more() -> None:
    words = vocabulary()
    assert len(words) == len(set(words))
    assert vocabulary("Answer: a guitar") == (*words, "Answer")
    assert {"A", "an", "guitar", "plays", ".", ",", ":", "must", "nothing", "yes", "garbled"} <= set(words)
