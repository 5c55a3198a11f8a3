"""A scene and its one sentence.

    A|An <subject> [in a|an [<colour>] <garment>] <verb> a|an <thing> [on|in a|an <place>].
"""

import re
from dataclasses import dataclass

from rlaif.scenes.lexicon import DIMENSION_OF, DIMENSIONS, PREPOSITIONS, VERBS, article, category


@dataclass(frozen=True, slots=True)
class Scene:
    """What is said of a scene: one value a dimension, None where nothing is said.

    Raises ValueError for a value of another dimension and for a colour without a garment.
    """

    subject: str
    thing: str
    colour: str | None = None
    garment: str | None = None
    place: str | None = None

    def __post_init__(self) -> None:
        for dimension in DIMENSIONS:
            value = getattr(self, dimension)
            if value is None and dimension not in ("subject", "thing"):
                continue
            if DIMENSION_OF.get(value) != dimension:
                raise ValueError(f"{dimension} must be a {dimension} of the lexicon, got {value!r}")
        if self.colour is not None and self.garment is None:
            raise ValueError(f"colour must be None where no garment is said, got {self.colour!r}")

    def facts(self) -> dict[str, str]:
        """Dimension → value of what is said, in the order of the sentence."""
        said = {dimension: getattr(self, dimension) for dimension in DIMENSIONS}
        return {dimension: value for dimension, value in said.items() if value is not None}


def _noun(*words: str | None) -> list[str]:
    said = [word for word in words if word is not None]
    return [article(said[0]), *said]


def write(scene: Scene) -> str:
    """The sentence that says just these facts: "A woman in a red coat plays a guitar on a bench."."""
    words = _noun(scene.subject)
    if scene.garment is not None:
        words += ["in", *_noun(scene.colour, scene.garment)]
    words += [VERBS[category(scene.thing)], *_noun(scene.thing)]
    if scene.place is not None:
        words += [PREPOSITIONS[category(scene.place)], *_noun(scene.place)]
    text = " ".join(words) + "."
    return text[0].upper() + text[1:]


def parse(text: str) -> Scene | None:
    """The scene whose sentence this text is, or None where it is no sentence.

    A text is a sentence if and only if it is what `write` writes for the facts it names: so a wrong verb,
    article or preposition, an unknown, missing, repeated or misplaced word, a missing stop and a second
    sentence all give None. Only whitespace around the sentence is forgiven.
    """
    text = text.strip()
    facts: dict[str, str] = {}
    for word in text.removesuffix(".").split(" "):
        if word in DIMENSION_OF and facts.setdefault(DIMENSION_OF[word], word) != word:
            return None
    try:
        scene = Scene(**facts)
    except (TypeError, ValueError):
        return None
    return scene if write(scene) == text else None


def split_words(text: str) -> list[str]:
    """The words and punctuation marks of a text, in order, case kept."""
    return re.findall(r"\w+|[^\w\s]", text)
