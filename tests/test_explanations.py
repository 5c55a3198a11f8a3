import pytest

from rlaif.config import ExplainerSourceConfig, UserError
from rlaif.explanations import check_template, explanation_prompt


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


def test_the_template_that_comes_by_default_is_a_good_one():
    check_template(ExplainerSourceConfig().template, "", "explainer.template")


def test_principles_without_their_field_are_refused() -> None:
    check_template("{principles} {prompt} {completion}", "Be kind.", "explainer.template")
    with pytest.raises(UserError, match=r"explainer.template must have the field \{principles\}"):
        check_template("{prompt} {completion}", "Be kind.", "explainer.template")
