from random import Random

import pytest

from rlaif.scenes.edits import CORRUPTIONS, EDITS, corrupt, draw_scene
from rlaif.scenes.lexicon import DIMENSIONS, category
from rlaif.scenes.semantics import relation
from rlaif.scenes.sentence import Scene, parse, write

SCENE = Scene(subject="owl", colour="red", garment="coat", thing="guitar", place="bench")
ALWAYS_BROKEN = {"repeat_word", "wrong_verb", "wrong_article", "no_stop", "truncate", "empty"}


@pytest.mark.parametrize(("kind", "expected"), [
    ("generalise", "entailment"), ("drop", "entailment"), ("specialise", "neutral"), ("add", "neutral"),
    ("replace", "contradiction"),
])
def test_an_edit_leads_where_it_is_meant_to(kind: str, expected: str) -> None:
    rng = Random(kind)
    edited = [(scene, EDITS[kind](rng, scene)) for scene in (draw_scene(rng) for _ in range(3000))]
    done = [(scene, result) for scene, result in edited if result is not None]
    assert len(done) > 500
    assert all(relation(scene, result) == expected and scene != result for scene, result in done)


def test_an_edit_that_cannot_be_made_is_none() -> None:
    assert EDITS["add"](Random(0), SCENE) is None
    bare = Scene(subject="animal", thing="instrument")
    assert EDITS["drop"](Random(0), bare) is None
    assert EDITS["generalise"](Random(0), bare) is None
    assert EDITS["specialise"](Random(0), Scene(subject="owl", thing="guitar")) is None


def test_a_dropped_garment_takes_its_colour_along() -> None:
    scene = Scene(subject="owl", colour="red", garment="coat", thing="guitar")
    results = {write(EDITS["drop"](Random(i), scene)) for i in range(30)}
    assert results == {"An owl plays a guitar.", "An owl in a coat plays a guitar."}


def test_replace_draws_siblings_and_strangers() -> None:
    things = [EDITS["replace"](Random(i), Scene(subject="owl", thing="guitar")).facts() for i in range(400)]
    changed = [facts["thing"] for facts in things if facts["thing"] != "guitar"]
    siblings = [thing for thing in changed if category(thing) == "instrument"]
    assert 0.4 < len(siblings) / len(changed) < 0.6
    assert set(siblings) == {"violin", "drum", "flute"}


@pytest.mark.parametrize("kind", sorted(CORRUPTIONS))
def test_corruptions(kind: str) -> None:
    rng = Random(kind)
    scenes = [draw_scene(rng) for _ in range(1000)]
    texts = [corrupt(rng, scene, kind) for scene in scenes]
    num_broken = sum(parse(text) is None for text in texts)
    changed = sum(text != write(scene) for scene, text in zip(scenes, texts, strict=True))
    assert num_broken > 700
    if kind in ALWAYS_BROKEN:
        assert num_broken == 1000
    if kind == "wrong_preposition":  # a bare "A boy eats a plum." has none to get wrong
        bare = sum(scene.garment is None and scene.place is None for scene in scenes)
        assert num_broken == 1000 - bare
    assert changed >= num_broken


@pytest.mark.parametrize(("kind", "possible"), [
    ("no_stop", {"An owl eats a plum"}),
    ("wrong_article", {"A owl eats a plum.", "an owl eats a plum.", "An owl eats an plum."}),
    ("empty", {""}),
    ("truncate", {"An", "An owl", "An owl eats", "An owl eats a"}),
    ("repeat_word", {"An An owl eats a plum.", "An owl owl eats a plum.", "An owl eats eats a plum.",
                     "An owl eats a a plum.", "An owl eats a plum plum.", "An owl eats a plum.."}),
])
def test_corruptions_of_one_sentence(kind: str, possible: set[str]) -> None:
    assert {corrupt(Random(i), Scene(subject="owl", thing="plum"), kind) for i in range(200)} == possible


def test_scenes_say_leaves_categories_and_nothing() -> None:
    rng = Random(0)
    scenes = [draw_scene(rng) for _ in range(3000)]
    for dimension in DIMENSIONS:
        said = [getattr(scene, dimension) for scene in scenes]
        unsaid = said.count(None) / len(said)
        general = sum(value is not None and value == category(value) for value in said) / len(said)
        assert unsaid == 0 if dimension in ("subject", "thing") else 0.08 < unsaid < 0.26
        assert 0.2 < general < 0.34
