import re
from random import Random

import pytest

from rlaif.scenes.edits import CORRUPTIONS, corrupt, draw_scene
from rlaif.scenes.explanation import BREAK, explain, may_follow
from rlaif.scenes.generate import rows
from rlaif.scenes.judge import LABELS, explain_answer, judge
from rlaif.scenes.semantics import RELATIONS
from rlaif.scenes.sentence import Scene, parse, split_words, write

PREMISE = Scene(subject="woman", garment="coat", thing="instrument", place="bench")


@pytest.mark.parametrize(("text", "explanation"), [
    ("An adult in a red coat plays a guitar on a train.",
     "An adult: woman is adult, in a red: nothing says red, coat: coat is coat, "
     "plays a guitar: instrument may be guitar, on a train: bench is not train."),
    ("A man eats a plum.", "A man: woman is not man, eats a plum: instrument is not plum."),
    ("", "then nonsense."),
    ("a woman plays a drum.", "then nonsense."),
    ("A adult plays a drum.", "A then nonsense."),
    ("A woman", "A woman: woman is woman, then nonsense."),
    ("A woman in a red plays a drum.",
     "A woman: woman is woman, in a red: nothing says red, then nonsense."),
    ("A woman plays an drum.", "A woman: woman is woman, plays an then nonsense."),
    ("A woman eats a drum.", "A woman: woman is woman, eats a then nonsense."),
    ("A woman plays drum.", "A woman: woman is woman, plays then nonsense."),
    ("A woman plays a drum",
     "A woman: woman is woman, plays a drum: instrument may be drum, then nonsense."),
    ("A woman plays a drum in a seat.",
     "A woman: woman is woman, plays a drum: instrument may be drum, in a then nonsense."),
    ("A woman plays a drum. A man",
     "A woman: woman is woman, plays a drum: instrument may be drum. then nonsense."),
    ("A woman plays a drum .",
     "A woman: woman is woman, plays a drum: instrument may be drum. then nonsense."),
    ("A woman, yes, plays a drum.", "A woman: woman is woman, then nonsense."),
    ("A dragon plays a drum.", "A then nonsense."),
])
def test_explanations(text: str, explanation: str) -> None:
    assert explain(PREMISE, text) == explanation


def test_every_sentence_is_read_to_its_end_word_by_word() -> None:
    rng = Random(0)
    for _ in range(3000):
        words = split_words(write(draw_scene(rng)))
        assert all(word in may_follow(words[:i]) for i, word in enumerate(words))
        assert may_follow(words) == ()


def test_words_in_order_up_to_a_full_stop_are_a_sentence() -> None:
    rng = Random(0)
    for _ in range(3000):
        words: list[str] = []
        while choices := may_follow(words):
            words.append(rng.choice(choices))
        text = " ".join(words[:-1]) + words[-1]
        is_ended = words[-1] == "."
        assert (parse(text) is not None) == is_ended
        assert is_ended or words[-1] == "an"  # "paints an": no flower begins with a vowel


@pytest.mark.parametrize("kind", sorted(CORRUPTIONS))
def test_the_break_is_said_if_and_only_if_the_text_is_no_sentence(kind: str) -> None:
    rng = Random(kind)
    for _ in range(500):
        text = corrupt(rng, draw_scene(rng), kind)
        explanation = explain(PREMISE, text)
        assert explanation.endswith(BREAK) == (parse(text) is None)
        assert "\n" not in explanation and len(split_words(explanation)) < 48


def test_the_explanation_decides_the_relation_and_never_names_a_label() -> None:
    for row in rows("explainer-train", seed=5, num_rows=5000):
        words = re.findall(r"\w+", row["explanation"])
        assert not set(words) & {*LABELS, *RELATIONS, "true", "must", "might", "cannot", "broken"}
        signs = {"entailment": r" is ", "neutral": r"may be|nothing says", "contradiction": r"is not"}
        read = [relation for relation in RELATIONS if re.search(signs[relation], row["explanation"])]
        expected = None if words[-1] == "nonsense" else max(read, key=RELATIONS.index)
        assert judge(row["prompt"], row["completion"]).relation == expected
        assert row["explanation"] == explain_answer(row["prompt"], row["completion"])


def test_the_sentence_can_be_read_back_from_its_explanation() -> None:
    rng = Random(0)
    for _ in range(1000):
        text = write(draw_scene(rng))
        assert re.sub(r": (\w+ (is not|is|may be)|nothing says) \w+,?", "", explain(PREMISE, text)) == text
