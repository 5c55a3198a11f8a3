"""Ways from one scene to another, and from a sentence to a text that is probably none.

Each function draws from the `random.Random` it is given and from nothing else.
"""

from collections.abc import Callable
from random import Random

from rlaif.scenes.lexicon import (
    DIMENSION_OF,
    DIMENSIONS,
    PREPOSITIONS,
    TREES,
    VERBS,
    category,
    compatible,
    is_category,
    leaves,
    values,
)
from rlaif.scenes.sentence import Scene, write

CATEGORY_SHARE = 0.3
"""Of the facts said, those that say a category only."""
UNSAID_SHARE = 0.12
"""Of the facts that need not be said (colour, garment, place), those that are not."""


def draw_value(rng: Random, dimension: str) -> str:
    """A category in `CATEGORY_SHARE` of the draws, else a leaf; all categories are equally likely."""
    drawn = rng.choice(tuple(TREES[dimension]))
    return drawn if rng.random() < CATEGORY_SHARE else rng.choice(leaves(drawn))


def draw_scene(rng: Random) -> Scene:
    """Any scene, each dimension drawn on its own."""
    facts = {d: draw_value(rng, d) for d in DIMENSIONS}
    said = {d: v for d, v in facts.items() if d in ("subject", "thing") or rng.random() >= UNSAID_SHARE}
    return _scene(said)


def _scene(facts: dict[str, str]) -> Scene:
    return Scene(**{d: v for d, v in facts.items() if d != "colour" or "garment" in facts})


def generalise(rng: Random, scene: Scene) -> Scene | None:
    """The scene with one leaf made its category, or None where there is none."""
    facts = scene.facts()
    found = [d for d, v in facts.items() if not is_category(v)]
    return _replaced(rng, facts, found, lambda v: (category(v),))


def specialise(rng: Random, scene: Scene) -> Scene | None:
    """The scene with one category made one of its leaves, or None where there is none."""
    facts = scene.facts()
    found = [d for d, v in facts.items() if is_category(v)]
    return _replaced(rng, facts, found, leaves)


def replace(rng: Random, scene: Scene) -> Scene | None:
    """The scene with one value made an incompatible one, as often a sibling leaf as of another category."""
    facts = scene.facts()

    def others(value: str) -> tuple[str, ...]:
        siblings = [v for v in leaves(category(value)) if not compatible(v, value)]
        strangers = [v for v in values(DIMENSION_OF[value]) if category(v) != category(value)]
        return tuple(siblings if siblings and rng.random() < 0.5 else strangers)

    return _replaced(rng, facts, list(facts), others)


def drop(rng: Random, scene: Scene) -> Scene | None:
    """The scene with one fact left unsaid (a garment takes its colour along), or None where none can be."""
    facts = scene.facts()
    found = [d for d in facts if d not in ("subject", "thing")]
    if not found:
        return None
    del facts[rng.choice(found)]
    return _scene(facts)


def add(rng: Random, scene: Scene) -> Scene | None:
    """The scene with one unsaid fact said, or None where all are."""
    facts = scene.facts()
    found = [d for d in DIMENSIONS if d not in facts and (d != "colour" or "garment" in facts)]
    if not found:
        return None
    dimension = rng.choice(found)
    return _scene(facts | {dimension: draw_value(rng, dimension)})


def _replaced(
    rng: Random, facts: dict[str, str], dimensions: list[str], choices: Callable[[str], tuple[str, ...]]
) -> Scene | None:
    if not dimensions:
        return None
    dimension = rng.choice(dimensions)
    return _scene(facts | {dimension: rng.choice(choices(facts[dimension]))})


EDITS = {"generalise": generalise, "drop": drop, "specialise": specialise, "add": add, "replace": replace}


def _other(rng: Random, words: list[str], swaps: dict[str, tuple[str, ...]]) -> list[str]:
    """The words with one of those in `swaps` made another; unchanged where there is none."""
    found = [i for i, word in enumerate(words) if word in swaps]
    if not found:
        return words
    i = rng.choice(found)
    return [*words[:i], rng.choice(swaps[words[i]]), *words[i + 1:]]


def _others(words: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    return {word: tuple(other for other in words if other != word) for word in words}


_ARTICLES = {"a": ("an",), "an": ("a",), "A": ("An", "a"), "An": ("A", "an")}
_VERBS = _others(tuple(VERBS.values()))
_PREPOSITIONS = _others(tuple(dict.fromkeys(PREPOSITIONS.values())))
_ANY_WORD = (*DIMENSION_OF, *_VERBS, *_PREPOSITIONS, *_ARTICLES, ".")


def _tokens(scene: Scene) -> list[str]:
    return [*write(scene).removesuffix(".").split(), "."]


def join(words: list[str]) -> str:
    """The words with spaces between, and none before a full stop."""
    return " ".join(words).replace(" .", ".")


def _drop_word(rng: Random, words: list[str]) -> list[str]:
    i = rng.randrange(len(words))
    return words[:i] + words[i + 1:]


def _repeat_word(rng: Random, words: list[str]) -> list[str]:
    i = rng.randrange(len(words))
    return words[:i + 1] + words[i:]


def _swap_words(rng: Random, words: list[str]) -> list[str]:
    i = rng.randrange(len(words) - 1)
    return [*words[:i], words[i + 1], words[i], *words[i + 2:]]


def _replace_word(rng: Random, words: list[str]) -> list[str]:
    i = rng.randrange(len(words))
    return [*words[:i], rng.choice(_ANY_WORD), *words[i + 1:]]


def _run_together(rng: Random, words: list[str]) -> list[str]:
    return [*words[:rng.choice((-1, len(words)))], *_tokens(draw_scene(rng))]


def _shuffle(rng: Random, words: list[str]) -> list[str]:
    return rng.sample(words, len(words))


CORRUPTIONS: dict[str, Callable[[Random, list[str]], list[str]]] = {
    "drop_word": _drop_word,
    "repeat_word": _repeat_word,
    "swap_words": _swap_words,
    "replace_word": _replace_word,
    "wrong_verb": lambda rng, words: _other(rng, words, _VERBS),
    "wrong_article": lambda rng, words: _other(rng, words, _ARTICLES),
    "wrong_preposition": lambda rng, words: _other(rng, words, _PREPOSITIONS),
    "no_stop": lambda rng, words: words[:-1],
    "run_together": _run_together,
    "truncate": lambda rng, words: words[:rng.randrange(1, len(words) - 1)],
    "shuffle": _shuffle,
    "word_soup": lambda rng, words: rng.choices(_ANY_WORD, k=rng.randint(1, 20)),
    "empty": lambda rng, words: [],
}
"""Kind → what it does to the words of a sentence. Some are sentences by chance: the parser decides."""
SUBTLE_CORRUPTIONS = (
    "drop_word",
    "repeat_word",
    "swap_words",
    "replace_word",
    "wrong_verb",
    "wrong_article",
    "wrong_preposition",
    "run_together",
)
"""The kinds that leave most of a text in order: the hard ones to notice."""


def corrupt(rng: Random, scene: Scene, kind: str) -> str:
    """The text that a corruption of this kind makes of the sentence of the scene."""
    return join(CORRUPTIONS[kind](rng, _tokens(scene)))
