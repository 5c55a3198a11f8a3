import json
import math
import re
from collections import Counter

import pytest

from rlaif.rewards.text_rules import (
    compiled,
    exact_match,
    format_tags,
    json_schema,
    length_penalty,
    read_schema,
    regex,
    repetition_penalty,
)


def matches(completion, reference, **options):
    return exact_match([completion], [reference], **options)[0]


@pytest.mark.parametrize(
    ("completion", "reference", "options", "value"),
    [
        ("four", "four", {}, 1.0), ("four", "five", {}, 0.0), ("four", None, {}, None), ("", "", {}, 1.0),
        ("  four \n legs", "four legs ", {}, 1.0), ("Four", "four", {}, 0.0),
        ("Four", "four", {"ignore_case": True}, 1.0), ("STRASSE", "straße", {"ignore_case": True}, 1.0),
        ("caf\u00e9", "cafe\u0301", {}, 1.0),      # one letter, and a letter with its accent behind it
        ('"four."', "four", {}, 0.0), ('"four."', "four", {"ignore_punctuation": True}, 1.0),
        ("«四»。", "四", {"ignore_punctuation": True}, 1.0), ("4.5", "45", {"ignore_punctuation": True}, 0.0),
        ("...", "", {"ignore_punctuation": True}, 1.0),
        ("so 3, no: <a>4</a>", "4", {"answer": compiled("<a>(.*?)</a>")}, 1.0),
        ("<a>3</a> then <a>4</a>", "4", {"answer": compiled("<a>(.*?)</a>")}, 1.0),         # the last one counts
        ("it is 4", "4", {"answer": compiled("<a>(.*?)</a>")}, 0.0),
        ("12 and 4", "work #### 4", {"answer": compiled(r"\d+")}, 1.0),                       # no groups: all of it
        ("it is 4", "none given", {"answer": compiled(r"\d+")}, 0.0),
    ],
)
def test_exact_match_by_hand(completion, reference, options, value):
    assert matches(completion, reference, **options) == value


def test_regex_finds_a_part_or_asks_for_all():
    texts = ["the answer is 42.", "42", "forty-two", ""]
    assert regex(texts, pattern=compiled(r"\d+")) == [1.0, 1.0, 0.0, 0.0]
    assert regex(texts, pattern=compiled(r"\d+"), is_whole=True) == [0.0, 1.0, 0.0, 0.0]
    assert regex(["A\nB"], pattern=compiled("(?is)a.b"), is_whole=True) == [1.0]


def test_a_pattern_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"pattern must be a regular expression, got '\(': missing \), unterminated"):
        compiled("(")


def test_length_penalty_by_hand():
    texts = [""] * 6
    found = length_penalty(texts, [10, 20, 22, 24, 30, 1000], longest=20, buffer=8)
    assert found == [0.0, 0.0, -0.25, -0.5, -1.0, -1.0]
    assert math.copysign(1, found[0]) == 1.0
    assert length_penalty(texts[:3], [0, 3, 4], shortest=4, buffer=4) == [-1.0, -0.25, 0.0]


def test_length_penalty_is_dapos_soft_punishment_shifted_by_its_buffer():
    longest_of_all, cache = 50, 20
    for length in range(80):
        dapo = 0 if length <= longest_of_all - cache else (
            (longest_of_all - cache - length) / cache if length <= longest_of_all else -1)
        found = length_penalty([""], [length], longest=longest_of_all - cache, buffer=cache)
        assert found == pytest.approx([dapo])


def test_length_is_counted_in_the_unit_asked_for():
    texts = ["two words", "ein Wort mehr"]
    assert length_penalty(texts, [9, 9], unit="words", longest=2, buffer=2) == [0.0, -0.5]
    assert length_penalty(texts, [0, 0], unit="characters", longest=9, buffer=4) == [0.0, -1.0]


def test_repetition_penalty_by_hand():
    # "a b a b a": a-b, b-a, a-b, b-a: 2 of 4 distinct; three words of "a a a": one pair of two distinct
    assert repetition_penalty(["a b a b a", "a a a", "a b c", "a"], size=2) == [-0.5, -0.5, 0.0, 0.0]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_repetition_penalty_agrees_with_a_count_of_what_comes_again(size):
    text = "the cat saw the cat and the dog saw the cat and slept"
    words = text.split()
    grams = Counter(" ".join(words[start : start + size]) for start in range(len(words) - size + 1))
    again = sum(count - 1 for count in grams.values())
    assert repetition_penalty([text], size=size) == pytest.approx([-again / sum(grams.values())])


@pytest.mark.parametrize(
    ("text", "is_right"),
    [
        ("<think>so</think><answer>4</answer>", True), (" <think>so\nso</think>\n<answer>4</answer>\n", True),
        ("<think>so</think>", False), ("<answer>4</answer><think>so</think>", False),
        ("<think>so</think> well <answer>4</answer>", False), ("<think>so</think><answer>4</answer>!", False),
        ("<think>so</think><answer> </answer>", False), ("<think>so<answer>4</answer>", False),
        ("<think>a</think><think>b</think><answer>4</answer>", False), ("<think>so<answer>4</think></answer>", False),
        ("<think>so</think><answer>4</answer></answer>", False), ("", False),
        ("<THINK>so</THINK><answer>4</answer>", False),
    ],
)
def test_format_tags_by_hand(text, is_right):
    assert format_tags([text], tags=["think", "answer"]) == [float(is_right)]


def test_text_outside_of_the_tags_can_be_allowed():
    text = "Well. <think>so</think> then <answer>4</answer>!"
    assert format_tags([text], tags=["think", "answer"], allow_text_outside=True) == [1.0]
    assert format_tags([text], tags=["answer"], allow_text_outside=True) == [1.0]


SCHEMA = {"type": "object", "required": ["name"],
          "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}}


def test_json_schema_by_hand():
    texts = ['{"name": "Ann"}', ' {"name": "Ann", "age": 7}\n', '{"name": 3}', "{}", "{name: Ann}", "", "NaN",
             '{"name": "A", "age": Infinity}', "[" * 100_000]
    found = json_schema(texts, validator=read_schema(SCHEMA, None), parsed_value=0.25)
    assert found == [1.0, 1.0, 0.25, 0.25, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_any_json_fits_no_schema():
    assert json_schema(["3", "[]", "x"], validator=read_schema({}, None)) == [1.0, 1.0, 0.0]


def test_a_schema_is_read_from_its_file(tmp_path):
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA))
    assert json_schema(['{"name": 3}'], validator=read_schema({}, str(path))) == [0.0]


def test_a_schema_refers_to_its_own_parts_and_to_nothing_outside():
    own = {"$defs": {"word": {"type": "string"}}, "items": {"$ref": "#/$defs/word"}}
    assert json_schema(['["a"]', "[1]"], validator=read_schema(own, None)) == [1.0, 0.0]
    outside = read_schema({"$ref": "http://127.0.0.1:9/schema.json"}, None)
    with pytest.raises(Exception, match="Unresolvable"):
        json_schema(["{}"], validator=outside)


def test_a_schema_that_recurs_without_end_is_not_fitted():
    endless = read_schema({"$ref": "#"}, None)
    assert json_schema(["{}"], validator=endless, parsed_value=0.5) == [0.5]


@pytest.mark.parametrize(
    ("schema", "content", "message"),
    [
        ({"type": "objekt"}, None, r"schema must be a JSON Schema, got one with 'objekt' is not valid .* at \$.type"),
        ({}, "{", "schema_file must hold a JSON Schema, got '.*schema.json': Expecting property name"),
        ({}, "", "schema_file must hold a JSON Schema"),
    ],
)
def test_a_schema_that_is_none_is_refused(tmp_path, schema, content, message):
    path = tmp_path / "schema.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_schema(schema, None if content is None else str(path))
    with pytest.raises(ValueError, match=r"schema_file must hold a JSON Schema, got .*: .*No such file"):
        read_schema({}, str(tmp_path / "absent.json"))


@pytest.mark.parametrize("rule", [
    lambda texts: exact_match(texts, texts[::-1]), lambda texts: regex(texts, pattern=re.compile("a")),
    lambda texts: length_penalty(texts, [1] * len(texts), unit="words", longest=1),
    lambda texts: repetition_penalty(texts), lambda texts: format_tags(texts, tags=["a"]),
    lambda texts: json_schema(texts, validator=read_schema({}, None))])
def test_odd_texts_are_judged_like_any_other(rule):
    odd = ["", " ", "\x00", "\ud800", "a\u2028b", "😀" * 1000, "<a>", "[MASK]", "\u202e}{"]
    assert len(rule(odd)) == len(odd)
