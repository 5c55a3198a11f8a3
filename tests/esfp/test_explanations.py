import pytest

from rlaif.config.checks import UserError
from rlaif.esfp.explanations import (
    FAILED,
    INPUT_CUT,
    LENGTH,
    STOP,
    check_template,
    explanation_metrics,
    explanation_prompt,
    usable,
    usable_or_refuse,
)
from rlaif.metrics import merge, values

TEXTS = [["so", "cut o"], ["", "because"], [" \n", ""], [], ["whole, of a cut question"]]
REASONS = [[STOP, LENGTH], [FAILED, STOP], [STOP, FAILED], [], [INPUT_CUT]]


def test_a_template_is_filled_in():
    template = "{principles}Q: {prompt} A: {completion} {{so}}"
    check_template(template, "", "explainer.template")
    assert explanation_prompt(template, "p", "c", "Be kind. ") == "Be kind. Q: p A: c {so}"


@pytest.mark.parametrize("text", ["{prompt}", "{", "}}", "{0} {completion!r}", "%s ${x}"])
def test_what_a_text_holds_is_never_read_as_a_field(text):
    assert explanation_prompt("{prompt}|{completion}|{principles}", text, text, text) == f"{text}|{text}|{text}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("Why? {completion}", "must have the field {prompt}, got 'Why? {completion}'"),
        ("{prompt}", "must have the field {completion}, got '{prompt}'"),
        ("{prompt} {completion} {label}", "must use the fields prompt, completion, principles only, got {label}"),
        ("{prompt} {completion} {}", "must use the fields prompt, completion, principles only, got {}"),
        ("{prompt} {completion} {prompt:d}", "must use the fields prompt, completion, principles only, got {prompt:d}"),
        ("{prompt!r} {completion}", "must use the fields prompt, completion, principles only, got {prompt!r}"),
        ("{prompt} {completion} {prompt.x}", "must use the fields prompt, completion, principles only, got {prompt.x}"),
        ("{prompt} {completion", "must be a template, got '{prompt} {completion'"),
    ],
)
def test_a_bad_template_is_refused_before_anything_is_asked(template, message):
    with pytest.raises(UserError) as caught:
        check_template(template, "", "explainer.template")
    assert str(caught.value).startswith(f"explainer.template {message}")


def test_principles_without_their_field_are_refused() -> None:
    check_template("{principles} {prompt} {completion}", "Be kind.", "explainer.template")
    with pytest.raises(UserError, match=r"explainer.template must have the field \{principles\}"):
        check_template("{prompt} {completion}", "Be kind.", "explainer.template")


def test_usable_is_what_ended_by_itself_and_is_not_blank():
    assert usable(TEXTS, REASONS) == [["so"], ["because"], [], [], ["whole, of a cut question"]]
    assert usable([], []) == []


def test_a_row_without_a_usable_explanation_is_left_without_or_stops_the_run():
    assert usable_or_refuse(TEXTS, REASONS, "without") == usable(TEXTS, REASONS)
    with pytest.raises(UserError) as caught:
        usable_or_refuse(TEXTS, REASONS, "error")
    assert str(caught.value) == (
        "explainer must write an explanation that ends and is not blank, got none of 2 in row 2 (ended by stop, "
        "failed); raise explainer.max_tokens or set explainer.on_unusable=without")


def test_a_row_of_which_no_explanation_was_asked_is_no_error():
    assert usable_or_refuse([[], ["so"]], [[], [STOP]], "error") == [[], ["so"]]


def test_explanations_are_counted_by_how_they_ended():
    got = values(explanation_metrics(TEXTS, REASONS, [7, 3, 1, 0, 4]))
    assert got == {"num_explanations": 7, "explanation_tokens": 15 / 7, "explanations_cut": 1,
                   "explanations_failed": 2, "explanations_empty": 1, "explainer_inputs_cut": 1}


def test_counts_of_parts_add_up_to_those_of_the_whole():
    tokens = [7, 3, 1, 0, 4]
    parts = [explanation_metrics(TEXTS[a:b], REASONS[a:b], tokens[a:b]) for a, b in ((0, 2), (2, 3), (3, 5))]
    assert merge(parts) == explanation_metrics(TEXTS, REASONS, tokens)
    assert values(explanation_metrics([], [], []))["num_explanations"] == 0


def test_a_row_without_a_usable_explanation_is_called_by_its_number():
    with pytest.raises(UserError, match="got none of 1 in row 1031 "):
        usable_or_refuse([["a"], [" "]], [["stop"], ["stop"]], "error", numbers=[7, 1031])
