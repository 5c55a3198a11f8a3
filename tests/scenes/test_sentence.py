from random import Random

import pytest

from rlaif.scenes.edits import draw_scene
from rlaif.scenes.sentence import Scene, parse, split_words, write

FULL = Scene(subject="woman", colour="red", garment="parka", thing="guitar", place="bench")


@pytest.mark.parametrize(("scene", "text"), [
    (FULL, "A woman in a red parka plays a guitar on a bench."),
    (Scene(subject="owl", thing="apple"), "An owl eats an apple."),
    (Scene(subject="adult", garment="anorak", thing="text"), "An adult in an anorak reads a text."),
    (Scene(subject="boy", colour="orange", garment="hat", thing="axe", place="attic"),
     "A boy in an orange hat holds an axe in an attic."),
    (Scene(subject="girl", thing="toy", place="vehicle"), "A girl mends a toy on a vehicle."),
])
def test_a_scene_and_its_sentence(scene: Scene, text: str) -> None:
    assert write(scene) == text
    assert parse(text) == scene
    assert parse(f"\n  {text} ") == scene


def test_parse_reads_back_what_write_wrote() -> None:
    rng = Random(0)
    scenes = [draw_scene(rng) for _ in range(5000)]
    assert all(parse(write(scene)) == scene for scene in scenes)
    assert len({write(scene) for scene in scenes}) == len(set(scenes)) > 4500


@pytest.mark.parametrize("text", [
    "",
    ".",
    "A woman.",
    "A woman plays.",
    "Plays a guitar.",
    "A woman plays a guitar",
    "A woman plays a guitar .",
    "A woman plays a guitar..",
    "A woman plays a guitar!",
    "a woman plays a guitar.",
    "An woman plays a guitar.",
    "A owl plays a guitar.",
    "A woman plays an guitar.",
    "A woman plays guitar.",
    "A woman eats a guitar.",
    "A woman has a guitar.",
    "A woman plays a piano.",
    "A woman plays  a guitar.",
    "A woman plays a guitar in a bench.",
    "A woman plays a guitar on a kitchen.",
    "A woman plays a guitar on bench.",
    "A woman in a red plays a guitar.",
    "A woman in a parka red plays a guitar.",
    "A woman on a parka plays a guitar.",
    "A woman on a bench plays a guitar.",
    "A woman plays a guitar in a red parka.",
    "A woman in a parka in a parka plays a guitar.",
    "A woman woman plays a guitar.",
    "A woman man plays a guitar.",
    "A guitar plays a woman.",
    "A woman plays a guitar. A man eats a plum.",
    "A woman plays a guitar. A woman plays a guitar.",
    "Yes, a woman plays a guitar.",
    "yes",
    "Say something that must be true: A woman plays a guitar.",
])
def test_anything_else_is_no_sentence(text: str) -> None:
    assert parse(text) is None


@pytest.mark.parametrize(("facts", "message"), [
    ({"subject": "guitar", "thing": "guitar"}, "subject must be a subject of the lexicon, got 'guitar'"),
    ({"subject": None, "thing": "guitar"}, "subject must be"),
    ({"subject": "man", "thing": "guitar", "place": "moon"}, "place must be a place of the lexicon, got"),
    ({"subject": "man", "thing": "guitar", "colour": "red"}, "colour must be None where no garment is said"),
])
def test_an_impossible_scene_is_refused(facts: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scene(**facts)


def test_facts_come_in_the_order_of_the_sentence() -> None:
    assert list(FULL.facts().items()) == [
        ("subject", "woman"),
        ("colour", "red"),
        ("garment", "parka"),
        ("thing", "guitar"),
        ("place", "bench"),
    ]


def test_split_words_keeps_case_and_splits_every_mark() -> None:
    assert split_words("A man.. , says:\n a") == ["A", "man", ".", ".", ",", "says", ":", "a"]
