import dataclasses

import pytest

from rlaif.config.checks import UserError
from rlaif.config.reward import SlotConfig, TemplateConfig
from rlaif.esfp.slots import Slot, SlotTemplate
from rlaif.esfp.templates import slot_template

WORDS = [["good"], ["fair"], ["poor"]]
RUBRIC = SlotConfig("quality", "rubric", WORDS, weight=3.0, criteria={
    "helpful": "Is it helpful?", "honest": "Is it honest?", "brief": "Is it brief?"})
VERDICT = SlotConfig("verdict", classes=[["yes"], ["no"]])


def made(*slots, **changes):
    return slot_template(TemplateConfig(slots=list(slots), **changes))


def test_a_rubric_is_spelt_out_with_one_slot_a_criterion():
    template = made(RUBRIC, VERDICT, text="{prompt} {completion} [quality] So [verdict].",
                    without_explanation="{completion} [quality] [verdict]")
    spelt = ("Is it helpful? [quality_helpful] Is it honest? [quality_honest] Is it brief? [quality_brief]")
    assert template == SlotTemplate(
        f"{{prompt}} {{completion}} {spelt} So [verdict].",
        [*(Slot(f"quality_{name}", WORDS, [1.0, 0.5, 0.0], weight=1.0) for name in ("helpful", "honest", "brief")),
         Slot("verdict", [["yes"], ["no"]], [1.0, 0.0])],
        max_tokens=256, without_explanation=f"{{completion}} {spelt} [verdict]")


def test_the_criteria_of_a_rubric_share_its_weight_whatever_their_number():
    for count in (1, 2, 5):
        rubric = dataclasses.replace(RUBRIC, criteria={f"c{number}": "Is it so?" for number in range(count)})
        template = made(rubric, text="{completion} [quality]")
        assert sum(slot.weight for slot in template.slots) == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("kind", "size", "values"),
    [
        ("verdict", 2, [1.0, 0.0]), ("verdict", 3, [1.0, 0.5, 0.0]), ("verdict", 5, [1.0, 0.75, 0.5, 0.25, 0.0]),
        ("ordinal", 2, [1.0, 2.0]), ("ordinal", 5, [1.0, 2.0, 3.0, 4.0, 5.0]),
        ("pairwise", 2, [1.0, 0.0]), ("pairwise", 3, [1.0, 0.5, 0.0]),
    ],
)
def test_the_values_of_a_kind_where_none_are_given(kind, size, values):
    classes = [[f"w{number}"] for number in range(size)]
    text = "{completion} {other} [s]" if kind == "pairwise" else "{completion} [s]"
    assert made(SlotConfig("s", kind, classes), text=text).slots[0].values == values
    given = [number + 7.0 for number in range(size)]
    given = given[::-1] if kind == "pairwise" else given
    assert made(SlotConfig("s", kind, classes, given), text=text).slots[0].values == given


def test_a_template_keeps_what_the_configuration_says():
    slot = SlotConfig("s", "ordinal", WORDS, [0.0, 1.0, 5.0], weight=-2.0, score="margin")
    template = made(slot, text="{completion} [s]", max_tokens=17)
    assert template == SlotTemplate("{completion} [s]", [Slot("s", WORDS, [0.0, 1.0, 5.0], -2.0, "ordinal", "margin")],
                                    max_tokens=17)
    assert made(text="{completion}", head="scalar") == SlotTemplate("{completion}", [], 256, head="scalar")
    assert made(VERDICT, text="{completion}", head="classes").head == "classes"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: made(), "template.slots must name at least one slot, got none; add one or set template.head=scalar"),
        (lambda: made(text="{completion}", head="classes"), "template.slots must name at least one slot, got none"),
        (lambda: made(VERDICT, text="{completion}"), "text must have a slot, got '{completion}'; add one as [name] "
                                                     "(under template)"),
        (lambda: made(VERDICT, text="[verdict]", head="classes"), "text must name declared slots only, got [verdict]"),
        (lambda: made(RUBRIC, text="{completion} [verdict]"), "slots must all be in the text, got quality_helpful "),
        (lambda: made(RUBRIC, text="[quality] [quality]"), "text must name each slot once, got [quality_helpful] 2"),
        (lambda: made(dataclasses.replace(RUBRIC, criteria={}), text="[quality]"),
         "criteria of slot quality must be given with kind rubric and no other, got 0 with kind rubric"),
        (lambda: made(dataclasses.replace(VERDICT, criteria={"a": "so?"}), text="[verdict]"),
         "criteria of slot verdict must be given with kind rubric and no other, got 1 with kind verdict"),
        (lambda: made(dataclasses.replace(RUBRIC, criteria={"a": "Is [it] so?"}), text="[quality]"),
         "criterion a of slot quality must be plain text, got 'Is [it] so?'; the slot comes behind it by itself"),
        (lambda: made(dataclasses.replace(RUBRIC, criteria={"a": "Is {prompt} so?"}), text="[quality]"),
         "criterion a of slot quality must be plain text"),
        (lambda: made(dataclasses.replace(RUBRIC, criteria={"a b": "so?"}), text="[quality]"),
         "name of a slot must be letters, digits and _, got 'quality_a b'"),
        (lambda: made(SlotConfig("s"), text="[s]"), "classes of slot s must be at least two, got 0"),
        (lambda: made(SlotConfig("s", classes=WORDS, values=[1.0]), text="[s]"), "values of slot s must be one a "),
        (lambda: made(VERDICT, text="{completion} [verdict]", max_tokens=0), "max_tokens must be >= 1, got 0"),
        (lambda: made(VERDICT, VERDICT, text="[verdict]"), "slots must have distinct names, got verdict twice"),
    ],
)
def test_what_cannot_be_filled_is_refused_in_one_line_that_names_the_key(make, message):
    with pytest.raises(UserError) as caught:
        make()
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
    assert "template" in str(caught.value)


def test_the_key_is_named_as_it_is_given():
    with pytest.raises(UserError, match=r"\(under judge.template\)$"):
        slot_template(TemplateConfig(text="so", slots=[VERDICT]), "judge.template")
