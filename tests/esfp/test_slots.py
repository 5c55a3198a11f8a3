import math
import pickle

import pytest

from rlaif.esfp.slots import Slot, SlotTemplate, fields_of, parse
from tests.helpers.slot_examples import LEVEL, TEXT, VERDICT

BETTER = Slot("better", [["first"], ["equal"], ["second"]], [1.0, 0.5, 0.0], kind="pairwise")
PAIR = "{prompt} {completion} {other} [better]"


def edited(slot=VERDICT, **changes):
    return Slot(**(slot.__dict__ | changes))


def template(text=TEXT, slots=(VERDICT,), **changes):
    return SlotTemplate(text, list(slots), **({"max_tokens": 32} | changes))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: edited(name="my slot"), "name of a slot must be letters"),
        (lambda: edited(values=[1.0, 0.0]), r"values of slot verdict must be one a class \(3\), got 2"),
        (lambda: edited(values=[1.0, math.nan, 0.0]), "values of slot verdict must be finite"),
        (lambda: edited(classes=[["yes"]], values=[1.0]), "classes of slot verdict must be at least two, got 1"),
        (lambda: edited(classes=[["yes"], []]), "classes of slot verdict must be lists of label words"),
        (lambda: edited(classes=["yes", "no"]), "classes of slot verdict must be lists of label words"),
        (lambda: edited(classes=[["yes"], [" "], ["no"]]), "classes of slot verdict must be lists of label words"),
        (lambda: edited(weight=math.inf), "weight of slot verdict must be finite"),
        (lambda: edited(kind="rubric"), "kind of slot verdict must be one of verdict, ordinal, pairwise, got 'rubric'"),
        (lambda: edited(score="best"), "score of slot verdict must be one of expected, margin, got 'best'"),
        (lambda: edited(kind="ordinal"), "values of slot verdict must rise from class to class in an ordinal slot"),
        (lambda: edited(LEVEL, kind="ordinal", values=[2.0, 2.0]), "values of slot level must rise"),
        (lambda: edited(BETTER, values=[0.0, 0.5, 1.0]), "values of slot better must fall evenly"),
        (lambda: edited(BETTER, values=[1.0, 0.9, 0.0]), "values of slot better must fall evenly"),
        (
            lambda: Slot("better", [["a"], ["b"], ["c"], ["d"]], [3.0, 2.0, 1.0, 0.0], kind="pairwise"),
            "values of slot better must fall evenly over two or three classes",
        ),
        (lambda: edited(values=[2.0, 2.0, 2.0], score="margin"), "values of slot verdict must differ for the score"),
    ],
)
def test_a_bad_slot_is_refused_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: template("{prompt} the answer"), "text must have a slot"),
        (lambda: template("[verdict] [other]"), r"text must name declared slots only, got \[other\]"),
        (lambda: template("[verdict] [MASK]"), r"text must name declared slots only, got \[MASK\]"),
        (lambda: template("[verdict]", (VERDICT, LEVEL)), r"slots must all be in the text, got level"),
        (lambda: template("[verdict] [verdict]"), r"text must name each slot once, got \[verdict\] 2 times"),
        (lambda: template("[verdict]", (VERDICT, VERDICT)), "slots must have distinct names, got verdict twice"),
        (lambda: template("{answer} [verdict]"), r"text must use the fields .* only, got \{answer\}"),
        (lambda: template("{prompt [verdict]"), "text must use braces and brackets for .* got '{' at character 0"),
        (lambda: template(max_tokens=0), "max_tokens must be >= 1, got 0"),
        (lambda: template(temperature=0.0), "temperature must be > 0 and finite, got 0.0"),
        (lambda: template(temperature=math.inf), "temperature must be > 0 and finite, got inf"),
        (lambda: template(head="mask"), "head must be one of slot, classes, scalar, got 'mask'"),
        (lambda: template(head="classes"), r"text must name declared slots only, got \[verdict\]; head classes reads"),
        (lambda: template("{prompt}", (), head="classes"), "slots must be 1 with head classes, got 0"),
        (lambda: template("{prompt}", (VERDICT,), head="scalar"), "slots must be 0 with head scalar, got 1"),
        (lambda: template("{prompt} [v]", (), head="scalar"), r"text must name declared slots only, got \[v\]"),
        (
            lambda: template(without_explanation="{prompt} {explanation} [verdict]"),
            r"without_explanation must do without \{explanation\}",
        ),
        (lambda: template(without_explanation="{prompt}"), "without_explanation must have a slot, got '{prompt}'"),
        (
            lambda: template("[verdict] [level]", (VERDICT, LEVEL), without_explanation="[verdict]"),
            r"slots must all be in the without_explanation, got level without \[level\]",
        ),
        (lambda: template("{prompt} [better]", (BETTER,)), r"text must have \{other\} for a pairwise slot"),
        (lambda: template("{other} [verdict]"), r"text must use \{other\} with pairwise slots only"),
        (lambda: template("{other_explanation} [verdict]"), r"text must use \{other_explanation\} with pairwise slots"),
        (lambda: template(PAIR + " [verdict]", (BETTER, VERDICT)), "slots must all be pairwise or none of them"),
    ],
)
def test_a_bad_template_is_refused_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_text_is_read_as_literals_fields_and_slots_in_order():
    assert parse("Is {prompt}\n good? [verdict].{sep}") == [
        ("literal", "Is "), ("field", "prompt"), ("literal", "\n good? "), ("slot", "verdict"), ("literal", "."),
        ("field", "sep")]
    assert parse("") == []
    assert fields_of(TEXT) == {"prompt", "completion", "explanation"}


@pytest.mark.parametrize("stray", ["{", "}", "[", "]", "{ prompt }", "[a b]", "{}", "[]", "{{prompt}}"])
def test_a_bracket_that_marks_nothing_is_refused(stray):
    with pytest.raises(ValueError, match=r"text must use braces and brackets for \{field\} and \[slot\] only, got "):
        parse(f"so {stray} so")


def test_what_a_template_says_of_itself():
    assert not template().is_pairwise and template(PAIR, (BETTER,)).is_pairwise
    assert template().reads_explanations and not template("{prompt} [verdict]").reads_explanations
    assert template("{other} {other_explanation} [better]", (BETTER,)).reads_explanations
    assert template("{prompt}", head="classes").num_classes == 3
    assert template("{prompt}", (), head="scalar").num_classes == 1


def test_slots_and_templates_survive_pickling():
    for made in (template(), template(PAIR, (BETTER,)), template("{prompt}", (), head="scalar")):
        assert pickle.loads(pickle.dumps(made)) == made
