"""The explanation of an answer: the answer read aloud, each fact of it held against the premise.

    premise       A woman in a red coat plays an instrument on a bench.
    answer        An adult in a dark coat plays a guitar in a red.
    explanation   An adult: woman is adult, in a dark: red is not dark, coat: coat is coat,
                  plays a guitar: instrument may be guitar, in a then nonsense.

Every word depends on a few words near it in the answer and one in the premise, and a comparison comes when both
its words have been read: whoever writes it from left to right copies, compares, and stops where the text breaks.
"""

from collections.abc import Sequence

from rlaif.scenes.lexicon import DIMENSION_OF, PREPOSITIONS, VERBS, article, category, values
from rlaif.scenes.semantics import Relation, fact_relation
from rlaif.scenes.sentence import Scene, parse, split_words

COMPARISONS: dict[Relation, tuple[str, ...]] = {
    "entailment": ("is",), "neutral": ("may", "be"), "contradiction": ("is", "not")}
"""Between the premise's word and the answer's."""
UNSAID = ("nothing", "says")
"""Before the answer's word where the premise has none."""
BREAK = "then nonsense."
"""Ends the explanation of a text that is no sentence, after its last word in order."""


def may_follow(words: Sequence[str]) -> tuple[str, ...]:
    """The words that may come next after words that were in order; none after the full stop.

    "a" and "an" are judged with the noun they stand before, not before it.
    """
    if not words:
        return ("A", "An")
    last = words[-1]
    if last in ("A", "An", "a", "an"):
        return tuple(noun for noun in _nouns(words[:-1]) if article(noun) == last.lower())
    match DIMENSION_OF.get(last):
        case "subject":
            return ("in", *VERBS.values())
        case "colour":
            return values("garment")
        case "garment":
            return tuple(VERBS.values())
        case "thing":
            return (".", *dict.fromkeys(PREPOSITIONS.values()))
        case "place":
            return (".",)
    return () if last == "." else ("a", "an")


def _nouns(words: Sequence[str]) -> tuple[str, ...]:
    """What may be named behind the article that follows these words."""
    if not words:
        return values("subject")
    last = words[-1]
    if last in VERBS.values():
        return tuple(thing for thing in values("thing") if VERBS[category(thing)] == last)
    if any(DIMENSION_OF.get(word) == "thing" for word in words):
        return tuple(place for place in values("place") if PREPOSITIONS[category(place)] == last)
    return (*values("colour"), *values("garment"))


def explain(premise: Scene, text: str) -> str:
    """The text as far as it is a sentence, each fact followed by how the premise's word relates to it.

    A sentence is read to its full stop; any other text ends in `BREAK`.
    """
    said = premise.facts()
    read: list[str] = []
    told: list[str] = []
    for word in split_words(text):
        if word not in may_follow(read):
            break
        read.append(word)
        told.append(word)
        if word in DIMENSION_OF:
            mine = said.get(DIMENSION_OF[word])
            why = (mine, *COMPARISONS[fact_relation(mine, word)]) if mine else UNSAID
            told += [":", *why, word, ","]
        elif word == "." and told[-2] == ",":
            del told[-2]
    if parse(text) is None:
        told.append(BREAK)
    return " ".join(told).replace(" ,", ",").replace(" .", ".").replace(" :", ":")
