"""Rows to learn from and to be tested on, each a function of (table, seed, index) alone.

    prompts-{train,dev,test}     prompt, reference, relation
    policy-{train,dev}           prompt, completion; the completion is right in RIGHT_SHARE of the rows
    explainer-{train,dev}        prompt, completion, explanation
    judged-{train,dev,test}      prompt, completion, label
    pairs-{train,dev}            prompt, chosen, rejected; only chosen is in the relation asked for

Train, dev and test share no premise: the hash of a premise says which of them it is in. A prompts table has
no premise twice and asks for the three relations in turn. A longer table begins with the rows of a shorter.
"""

from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from itertools import islice
from random import Random

from rlaif.scenes.edits import (
    CORRUPTIONS,
    EDITS,
    SUBTLE_CORRUPTIONS,
    add,
    corrupt,
    draw_scene,
    generalise,
    replace,
    specialise,
)
from rlaif.scenes.edits import drop as leave_unsaid
from rlaif.scenes.judge import explain_answer, judge, write_prompt
from rlaif.scenes.semantics import RELATIONS, Relation, relation
from rlaif.scenes.sentence import Scene, write

RIGHT_SHARE = 0.6
"""Of the policy rows, those whose completion is in the relation asked for."""
ASKED_SHARE = 0.55
"""Of the sentences to explain and to judge, those that are in the relation their prompt asks for."""
TO_JUDGE = {"intended": 0.44, "wandering": 0.15, "copy": 0.03, "wild": 0.20, "corrupted": 0.18}
TO_EXPLAIN = {"intended": 0.32, "wandering": 0.15, "copy": 0.03, "wild": 0.15, "corrupted": 0.35}
"""Where the completions to judge and to explain come from: shares that add up to 1."""
SUBTLE_SHARE = 0.8
"""Of the corruptions, those drawn from the subtle kinds alone; the others are drawn from all kinds."""
MIN_NUM_FACTS = 4
"""What a premise says at least: enough that even an answer made by rule differs from premise to premise."""

_FIRST_EDIT: dict[Relation, tuple[Callable[[Random, Scene], Scene | None], ...]] = {
    "entailment": (generalise, leave_unsaid),
    "neutral": (specialise, add),
    "contradiction": (replace,),
}
_SECOND_EDIT: dict[Relation, tuple[Callable[[Random, Scene], Scene | None], ...]] = {
    "entailment": (generalise, leave_unsaid),
    "neutral": (generalise, leave_unsaid, specialise, add),
    "contradiction": tuple(EDITS.values()),
}


def split_of(premise: Scene) -> str:
    """"train", "dev" or "test": 90, 5 and 5 % of the premises, by a hash that is the same everywhere."""
    bucket = int.from_bytes(sha256(write(premise).encode()).digest()[:4], "big") % 20
    return {0: "dev", 1: "test"}.get(bucket, "train")


def draw_premise(rng: Random, split: str) -> Scene:
    """A premise of this split that leaves room for all three relations.

    Entailment without repeating it needs a fact that can be made more general or left out; neutral needs one
    that is a category or unsaid; a contradiction there always is.
    """
    while True:
        premise = draw_scene(rng)
        if len(premise.facts()) < MIN_NUM_FACTS or split_of(premise) != split:
            continue
        if all(any(edit(rng, premise) for edit in _FIRST_EDIT[wanted]) for wanted in RELATIONS):
            return premise


def draw_hypothesis(rng: Random, premise: Scene, wanted: Relation) -> Scene:
    """A scene in the relation wanted, other than the premise, by one or two edits meant to lead there."""
    while True:
        edits = [rng.choice(_FIRST_EDIT[wanted])]
        if rng.random() < 0.5:
            edits.append(rng.choice(_SECOND_EDIT[wanted]))
        hypothesis = _edited(rng, premise, edits)
        if hypothesis != premise and relation(premise, hypothesis) == wanted:
            return hypothesis


def _edited(rng: Random, scene: Scene, edits: list[Callable[[Random, Scene], Scene | None]]) -> Scene:
    for edit in edits:
        scene = edit(rng, scene) or scene
    return scene


def draw_completion(rng: Random, premise: Scene, shares: Mapping[str, float]) -> str:
    """A text to explain or to judge, from the mixture given."""
    source = rng.choices(tuple(shares), weights=tuple(shares.values()))[0]
    if source == "copy":
        return write(premise)
    if source == "wild" or (source == "corrupted" and rng.random() < 0.2):
        hypothesis = draw_scene(rng)
    elif source == "wandering":
        hypothesis = _edited(rng, premise, rng.choices(tuple(EDITS.values()), k=rng.randint(1, 5)))
    else:
        hypothesis = draw_hypothesis(rng, premise, rng.choice(RELATIONS))
    if source == "corrupted":
        kinds = SUBTLE_CORRUPTIONS if rng.random() < SUBTLE_SHARE else tuple(CORRUPTIONS)
        return corrupt(rng, hypothesis, rng.choice(kinds))
    return write(hypothesis)


def _other_relation(rng: Random, than: Relation) -> Relation:
    return rng.choice([relation for relation in RELATIONS if relation != than])


def _prompts(rng: Random, split: str) -> Iterator[dict[str, str]]:
    seen: set[Scene] = set()
    while True:
        asked = RELATIONS[len(seen) % len(RELATIONS)]
        premise = draw_premise(rng, split)
        if premise not in seen:
            seen.add(premise)
            reference = draw_hypothesis(rng, premise, asked)
            yield {"prompt": write_prompt(asked, premise), "reference": write(reference), "relation": asked}


def _policy(rng: Random, split: str) -> Iterator[dict[str, str]]:
    while True:
        premise, asked = draw_premise(rng, split), rng.choice(RELATIONS)
        told = asked if rng.random() < RIGHT_SHARE else _other_relation(rng, asked)
        hypothesis = draw_hypothesis(rng, premise, told)
        yield {"prompt": write_prompt(asked, premise), "completion": write(hypothesis)}


def _answers(rng: Random, split: str, shares: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    while True:
        premise = draw_premise(rng, split)
        completion = draw_completion(rng, premise, shares)
        asked = rng.choice(RELATIONS)
        told = judge(write_prompt(asked, premise), completion).relation
        if told is not None:
            asked = told if rng.random() < ASKED_SHARE else _other_relation(rng, told)
        yield write_prompt(asked, premise), completion


def _explainer(rng: Random, split: str) -> Iterator[dict[str, str]]:
    for prompt, completion in _answers(rng, split, TO_EXPLAIN):
        explanation = explain_answer(prompt, completion)
        yield {"prompt": prompt, "completion": completion, "explanation": explanation}


def _judged(rng: Random, split: str) -> Iterator[dict[str, str]]:
    for prompt, completion in _answers(rng, split, TO_JUDGE):
        yield {"prompt": prompt, "completion": completion, "label": judge(prompt, completion).label}


def _pairs(rng: Random, split: str) -> Iterator[dict[str, str]]:
    while True:
        premise, asked = draw_premise(rng, split), rng.choice(RELATIONS)
        chosen = draw_hypothesis(rng, premise, asked)
        rejected = draw_hypothesis(rng, premise, _other_relation(rng, asked))
        yield {"prompt": write_prompt(asked, premise), "chosen": write(chosen), "rejected": write(rejected)}


_TABLES: dict[str, Callable[[Random, str], Iterator[dict[str, str]]]] = {
    "prompts-train": _prompts, "prompts-dev": _prompts, "prompts-test": _prompts,
    "policy-train": _policy, "policy-dev": _policy,
    "explainer-train": _explainer, "explainer-dev": _explainer,
    "judged-train": _judged, "judged-dev": _judged, "judged-test": _judged,
    "pairs-train": _pairs, "pairs-dev": _pairs,
}
TABLES: tuple[str, ...] = tuple(_TABLES)


def rows(table: str, *, seed: int, num_rows: int) -> list[dict[str, str]]:
    """The first `num_rows` rows of a table. Raises ValueError for a table that is none of `TABLES`."""
    if table not in _TABLES:
        raise ValueError(f"table must be one of {', '.join(TABLES)}, got {table!r}")
    if num_rows < 0:
        raise ValueError(f"num_rows must be >= 0, got {num_rows}")
    split = table.rpartition("-")[2]
    return list(islice(_TABLES[table](Random(f"{table}/{seed}"), split), num_rows))
