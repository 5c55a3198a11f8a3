from collections import Counter
from itertools import product
from random import Random

import pytest

from rlaif.scenes.edits import EDITS, draw_scene
from rlaif.scenes.lexicon import DIMENSIONS
from rlaif.scenes.semantics import RELATIONS, relation
from rlaif.scenes.sentence import Scene, parse
from tests.scenes.worlds import allowed, relation_by_worlds

PREMISE = "A woman in a red coat plays a guitar on a bench."


def scene(text: str) -> Scene:
    parsed = parse(text)
    assert parsed is not None, text
    return parsed


@pytest.mark.parametrize(("premise", "hypothesis", "expected"), [
    (PREMISE, PREMISE, "entailment"),
    (PREMISE, "An adult plays an instrument.", "entailment"),
    (PREMISE, "A woman in a bright coat plays a guitar on a seat.", "entailment"),
    (PREMISE, "A woman in a red parka plays a guitar on a bench.", "neutral"),
    (PREMISE, "A man in a red coat plays a guitar on a bench.", "contradiction"),
    (PREMISE, "A woman in a dark coat plays a guitar.", "contradiction"),
    (PREMISE, "A woman plays a drum.", "contradiction"),
    (PREMISE, "An adult eats a fruit.", "contradiction"),
    (PREMISE, "A woman plays a guitar on a train.", "contradiction"),
    ("A woman plays a guitar.", "A woman plays a guitar in a meadow.", "neutral"),
    ("A woman plays a guitar.", "A man plays a guitar in a meadow.", "contradiction"),
    ("An adult in a coat reads a text.", "A woman in a coat reads a text.", "neutral"),
    ("An adult in a coat reads a text.", "An adult in a black coat reads a text.", "neutral"),
])
def test_relation_of_two_sentences(premise: str, hypothesis: str, expected: str) -> None:
    assert relation(scene(premise), scene(hypothesis)) == expected


def near_and_far_pairs(num: int) -> list[tuple[Scene, Scene]]:
    rng = Random(1)
    pairs = []
    for i in range(num):
        premise = hypothesis = draw_scene(rng)
        for _ in range(i % 5):
            hypothesis = rng.choice(tuple(EDITS.values()))(rng, hypothesis) or hypothesis
        pairs.append((premise, hypothesis if i % 6 else draw_scene(rng)))
    return pairs


def test_relation_agrees_with_the_sets_of_possible_worlds() -> None:
    pairs = near_and_far_pairs(20_000)
    seen = Counter(relation(premise, hypothesis) for premise, hypothesis in pairs)
    assert all(relation(*pair) == relation_by_worlds(*pair) for pair in pairs)
    assert min(seen[r] for r in RELATIONS) > 1000


def test_worlds_by_the_product_agree_with_worlds_one_by_one() -> None:
    for premise, hypothesis in near_and_far_pairs(60):
        mine, theirs = (set(product(*(allowed(s, d) for d in DIMENSIONS))) for s in (premise, hypothesis))
        expected = "contradiction" if not mine & theirs else "entailment" if mine <= theirs else "neutral"
        assert relation(premise, hypothesis) == expected


def test_a_contradiction_goes_both_ways_and_mutual_entailment_is_equality() -> None:
    for premise, hypothesis in near_and_far_pairs(5000):
        there, back = relation(premise, hypothesis), relation(hypothesis, premise)
        assert (there == "contradiction") == (back == "contradiction")
        assert (there == back == "entailment") == (premise == hypothesis)
