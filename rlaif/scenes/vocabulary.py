"""Every word a prompt, a sentence, an explanation or a label can hold."""

from rlaif.scenes.explanation import BREAK, COMPARISONS, UNSAID
from rlaif.scenes.judge import INSTRUCTIONS, LABELS
from rlaif.scenes.lexicon import DIMENSION_OF, PREPOSITIONS, VERBS
from rlaif.scenes.sentence import split_words


def vocabulary(*extra: str) -> tuple[str, ...]:
    """The closed vocabulary, each word once and always in the same order.

    `extra` are texts whose words are added behind: what frames the parts ("Answer:", a template's own words).
    """
    texts = (
        "A An a an . , :", *VERBS.values(), *PREPOSITIONS.values(), *DIMENSION_OF, *INSTRUCTIONS.values(),
        *UNSAID, *(word for words in COMPARISONS.values() for word in words), BREAK, *LABELS, *extra,
    )
    return tuple(dict.fromkeys(word for text in texts for word in split_words(text)))
