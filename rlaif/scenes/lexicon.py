"""The words of the scenes and what is a what.

A scene is told by at most five facts, one a dimension, each named by one word of its own:

    subject   who it is                an adult, a child or an animal of the picture book
    colour    of the garment
    garment   what is worn
    thing     what is played, eaten, ... the verb belongs to the category of the thing
    place     where, with the preposition of the category of the place

The values of a dimension form trees of depth two: categories, and below each its leaves. Both may be said.

Rules of the world: a scene has one being, in one garment of one colour, doing one thing at one place, and
each of them is some leaf. So a value stands for the set of leaves below it; two values of one dimension are
compatible only if one is the other or is above it. The world is open: what is not said is not known.
"""

from collections.abc import Mapping
from types import MappingProxyType

DIMENSIONS: tuple[str, ...] = ("subject", "colour", "garment", "thing", "place")
"""In the order in which a sentence says them."""

TREES: Mapping[str, Mapping[str, tuple[str, ...]]] = MappingProxyType({
    "subject": {
        "adult": ("man", "woman"),
        "child": ("boy", "girl"),
        "animal": ("fox", "bear", "rabbit", "owl"),
    },
    "colour": {
        "bright": ("red", "yellow", "orange", "pink"),
        "dark": ("black", "brown", "navy", "purple"),
        "pale": ("white", "ivory", "beige", "silver"),
    },
    "garment": {
        "coat": ("parka", "anorak", "cloak", "raincoat"),
        "hat": ("cap", "beret", "bonnet", "helmet"),
        "top": ("shirt", "blouse", "vest", "pullover"),
        "robe": ("gown", "kimono", "toga", "tunic"),
    },
    "thing": {
        "instrument": ("guitar", "violin", "drum", "flute"),
        "fruit": ("apple", "pear", "plum", "peach"),
        "text": ("book", "letter", "poem", "atlas"),
        "tool": ("hammer", "saw", "axe", "spade"),
        "flower": ("rose", "tulip", "lily", "daisy"),
        "toy": ("doll", "kite", "puppet", "puzzle"),
    },
    "place": {
        "seat": ("bench", "sofa", "chair", "stool"),
        "vehicle": ("bus", "train", "tram", "ferry"),
        "room": ("kitchen", "bedroom", "attic", "cellar"),
        "shop": ("bakery", "pharmacy", "grocery", "boutique"),
        "landscape": ("meadow", "forest", "desert", "valley"),
    },
})
"""Dimension → category → its leaves."""

VERBS: Mapping[str, str] = MappingProxyType({
    "instrument": "plays",
    "fruit": "eats",
    "text": "reads",
    "tool": "holds",
    "flower": "paints",
    "toy": "mends",
})
"""Category of the thing → the only verb that goes with it."""

PREPOSITIONS: Mapping[str, str] = MappingProxyType({
    "seat": "on",
    "vehicle": "on",
    "room": "in",
    "shop": "in",
    "landscape": "in",
})
"""Category of the place → the only preposition that goes with it. A garment is always "in"."""


def _parents() -> dict[str, str | None]:
    parents: dict[str, str | None] = {}
    for tree in TREES.values():
        for category, leaves in tree.items():
            for value, parent in ((category, None), *((leaf, category) for leaf in leaves)):
                assert value not in parents, f"the word {value!r} has two places in the lexicon"
                parents[value] = parent
    return parents


_PARENTS: Mapping[str, str | None] = MappingProxyType(_parents())
_VALUES: Mapping[str, tuple[str, ...]] = MappingProxyType({
    dimension: tuple(value for category, leaves in tree.items() for value in (category, *leaves))
    for dimension, tree in TREES.items()
})
DIMENSION_OF: Mapping[str, str] = MappingProxyType({
    value: dimension for dimension, values in _VALUES.items() for value in values
})
"""Value → its dimension. No word is in two dimensions."""


def values(dimension: str) -> tuple[str, ...]:
    """All values of a dimension, each category followed by its leaves."""
    return _VALUES[dimension]


def category(value: str) -> str:
    """The category a value belongs to; a category belongs to itself."""
    return _PARENTS[value] or value


def leaves(value: str) -> tuple[str, ...]:
    """The leaves a value stands for: those below a category, a leaf alone."""
    return (value,) if _PARENTS[value] else TREES[DIMENSION_OF[value]][value]


def is_category(value: str) -> bool:
    """Whether a value has leaves below it."""
    return _PARENTS[value] is None


def implies(value: str, other: str) -> bool:
    """Whether what is `value` is always `other`: they are equal, or `other` is the category of `value`."""
    return other in (value, category(value))


def compatible(value: str, other: str) -> bool:
    """Whether something can be both: one implies the other."""
    return implies(value, other) or implies(other, value)


def article(word: str) -> str:
    """"an" before a written vowel, else "a". The lexicon has no word where sound and letter differ."""
    return "an" if word[0] in "aeiou" else "a"
