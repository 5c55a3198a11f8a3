import pytest

from rlaif.scenes.judge import Verdict, explain_answer, judge, parse_prompt, write_prompt
from rlaif.scenes.semantics import RELATIONS
from rlaif.scenes.sentence import Scene

PREMISE = "A man in a pale shirt eats a fruit."
MUST = f"Say something that must be true: {PREMISE}"
MIGHT = f"Say something that might be true: {PREMISE}"
CANNOT = f"Say something that cannot be true: {PREMISE}"


@pytest.mark.parametrize(("completion", "relation", "labels"), [
    ("A man in a shirt eats a fruit.", "entailment", ("yes", "no", "no")),
    (PREMISE, "entailment", ("yes", "no", "no")),
    ("A man in a pale shirt eats a pear.", "neutral", ("no", "yes", "no")),
    ("A man in a pale shirt eats a fruit in a bakery.", "neutral", ("no", "yes", "no")),
    ("A woman in a pale shirt eats a fruit.", "contradiction", ("no", "no", "yes")),
    ("A woman in a shirt eats a pear.", "contradiction", ("no", "no", "yes")),
    ("A man in a pale shirt eats a fruit", None, ("garbled", "garbled", "garbled")),
    ("yes", None, ("garbled", "garbled", "garbled")),
    ("", None, ("garbled", "garbled", "garbled")),
])
def test_verdicts(completion: str, relation: str | None, labels: tuple[str, str, str]) -> None:
    for prompt, label in zip((MUST, MIGHT, CANNOT), labels, strict=True):
        verdict = judge(prompt, f" {completion}\n")
        assert verdict == Verdict(label, relation)
        assert verdict.reward == (1.0 if label == "yes" else 0.0)


def test_explain_answer_is_the_same_whatever_is_asked() -> None:
    for prompt in (MUST, MIGHT, CANNOT):
        explanation = explain_answer(prompt, "A boy eats a fruit.")
        assert explanation == "A boy: man is not boy, eats a fruit: fruit is fruit."
        assert explain_answer(prompt, "A boy eat a fruit.") == "A boy: man is not boy, then nonsense."


def test_a_prompt_is_read_back() -> None:
    premise = Scene(subject="man", colour="pale", garment="shirt", thing="fruit")
    for relation, prompt in zip(RELATIONS, (MUST, MIGHT, CANNOT), strict=True):
        assert write_prompt(relation, premise) == prompt
        assert parse_prompt(prompt) == (relation, premise)


@pytest.mark.parametrize(
    "prompt", ["", PREMISE, "Say something that must be true:", "Say something: " + PREMISE, MUST[:-1]]
)
def test_another_prompt_is_refused(prompt: str) -> None:
    with pytest.raises(ValueError, match="prompt must be an instruction and a sentence of the scenes, got"):
        judge(prompt, PREMISE)
