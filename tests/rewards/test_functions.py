import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from rlaif.batch import ROLLOUT
from rlaif.config.checks import UserError
from rlaif.rewards.columns import columns_of
from rlaif.rewards.functions import (
    COLUMNS,
    Answer,
    Lost,
    Raised,
    Skips,
    ask,
    described,
    find_function,
    read_answer,
    source_version,
    wanted_columns,
)
from tests.helpers.batch_examples import table

# Eight rows of two groups.
ROWS = {"group_ids": [7] * 4 + [9] * 4, "samples": [0, 1, 2, 3] * 2, "completions": list("abcdefgh")}


def answering(function):
    """`function` as the other side of a process would call it; `calls` are the completions it was given."""
    calls = []

    def call(columns):
        calls.append("".join(columns["completions"]))
        try:
            returned = function(columns["completions"])
        except ZeroDivisionError as error:
            raise Raised(f"must not raise, got {error}") from error
        return read_answer(returned, len(columns["group_ids"]))

    call.calls = calls
    return call


def raising_at(letters):
    def function(completions):
        if set(letters) & set(completions):
            raise ZeroDivisionError("division by zero")
        return [float(ord(text)) for text in completions]

    return answering(function)


def test_functions_see_columns_of_plain_values_by_name():
    columns = columns_of(table(ROLLOUT, {}, {"sample": 1, "reference": "so", "completion_ids": [4],
                                             "rollout_logprobs": [-1.0]}))
    assert set(columns) == set(COLUMNS)
    assert columns == {
        "prompts": ["say so"] * 2, "completions": ["so it is"] * 2, "references": [None, "so"],
        "sources": ["scenes:prompts-train"] * 2, "finish_reasons": ["stop"] * 2, "group_ids": [7, 7], "samples": [0, 1],
        "num_tokens": [3, 1]}


def some(completions, references=None, *, unit=1.0): ...
def everything(**columns): ...
def nothing(): ...
def only_by_place(completions, /): ...


@pytest.mark.parametrize(
    ("function", "options", "names"),
    [(some, {}, ["completions", "references"]), (some, {"unit": 2}, ["completions", "references"]),
     (everything, {"unit": 2}, list(COLUMNS)), (nothing, {}, [])])
def test_a_function_gets_the_columns_that_it_names(function, options, names):
    assert wanted_columns(function, options) == names


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (lambda answers: 1, {}, "arguments of the function must be of prompts, .* or in options, got answers"),
        (only_by_place, {}, "arguments of the function must be of .*, got completions"),
        (some, {"units": 2}, "options must be arguments of the function other than columns, got units"),
        (some, {"references": ["a"]}, "options must be arguments of the function other than columns, got references"),
        (everything, {"prompts": 2}, "options must be arguments of the function other than columns, got prompts"),
    ],
)
def test_a_function_that_cannot_be_called_is_refused(function, options, message):
    with pytest.raises(ValueError, match=message):
        wanted_columns(function, options)


def test_functions_are_found_by_their_path():
    assert find_function("math:sqrt") is math.sqrt
    assert find_function("rlaif.rewards.functions:Answer.__init__") is Answer.__init__


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_module:f", "function must be importable, got 'no_such_module:f': ModuleNotFoundError: No module"),
        ("math:sqroot", "function must be importable, got 'math:sqroot': AttributeError: module 'math' has no"),
        ("math:pi", "function must name something to call, got 'math:pi', float"),
    ],
)
def test_what_is_no_function_is_refused_in_one_line(path, message):
    with pytest.raises(ValueError, match=message) as refused:
        find_function(path)
    assert "\n" not in str(refused.value)


def test_a_module_that_raises_is_named_with_its_line(tmp_path, monkeypatch):
    (tmp_path / "raises_at_import.py").write_text("import math\nraise RuntimeError('not today\\nnor tomorrow')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"RuntimeError: not today \(raises_at_import.py, line 2\)$"):
        find_function("raises_at_import:f")


def test_the_version_follows_the_source(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for name, body in (("one_way", "1"), ("other_way", "2"), ("same_way", "1")):
        (tmp_path / f"{name}.py").write_text(f"def f(): return {body}\n")
    one, other, same = (source_version(find_function(f"{name}:f")) for name in ("one_way", "other_way", "same_way"))
    assert one == same != other and len(one) == 16
    assert source_version(math.sqrt) != source_version(math.cos)      # written in no file


@pytest.mark.parametrize("returned", [
    [1, 0.5, None, True], (1, 0.5, None, True), np.array([1, 0.5, None, True], dtype=object),
    [np.float32(1), np.float64(0.5), None, np.int64(1)], [torch.tensor(1), torch.tensor(0.5), None, np.bool_(True)],
    [Fraction(1), Fraction(1, 2), None, 1]])
def test_numbers_of_every_kind_are_read(returned):
    assert read_answer(returned, 4) == Answer([1.0, 0.5, None, 1.0])


@pytest.mark.parametrize("returned", [np.array([1.0, 2.0]), np.array([1, 2], dtype=np.int8), torch.tensor([1.0, 2.0]),
                                      torch.tensor([1, 2], dtype=torch.int32)])
def test_arrays_and_tensors_are_read(returned):
    assert read_answer(returned, 2) == Answer([1.0, 2.0])


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, r"must return a list with a number or None a row, got None \(NoneType\)"),
        ("good", r"must return a list with a number or None a row, got 'good' \(str\)"),
        (0.5, r"got 0.5 \(float\)"), (torch.tensor(0.5), r"got tensor\(0.5000\) \(Tensor\)"),
        ({"a": 1}, r"got \{'a': 1\} \(dict\)"), ((n for n in [1, 2]), r"got <generator .* \(generator\)"),
        ([1.0], "must return a number or None for each of 2 rows, got 1"),
        ([1.0] * 3, "must return a number or None for each of 2 rows, got 3"),
        ([], "must return a number or None for each of 2 rows, got 0"),
    ],
)
def test_an_answer_that_is_not_one_entry_a_row_is_lost(returned, message):
    with pytest.raises(Lost, match=message):
        read_answer(returned, 2)


@pytest.mark.parametrize(
    ("entry", "shown"),
    [(math.nan, "nan (float)"), (math.inf, "inf (float)"), (-math.inf, "-inf (float)"), ("good", "'good' (str)"),
     ("0.5", "'0.5' (str)"), ([1.0], "[1.0] (list)"), (1e39, "1e+39 (float)"), (10**400, f"1{'0' * 56}... (int)"),
     (Decimal("0.5"), "Decimal('0.5') (Decimal)"), (1j, "1j (complex)"),
     (np.float32("nan"), "np.float32(nan) (float32)")])
def test_an_entry_that_is_no_number_is_a_fault_of_its_row(entry, shown):
    assert read_answer([1.0, entry], 2) == Answer([1.0, None], {1: f"must return finite numbers or None, got {shown}"})


def test_answers_are_taken_as_they_are():
    call = answering(lambda completions: [None if text == "c" else ord(text) for text in completions])
    values, num_skipped = ask(call, ROWS, "mine", Skips(0))
    assert values == [97.0, 98.0, None, 100.0, 101.0, 102.0, 103.0, 104.0]
    assert (num_skipped, call.calls) == (0, ["abcdefgh"])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda texts: [0.0, 0.0, 0.0, 0.0, 0.0, math.nan, 0.0, 0.0],
         r"reward part mine must return finite numbers or None, got nan \(float\) in row 5 \(group_id 9, sample 1\); "
         r"mend it, or let max_skipped rows pass \(0 may, 1 would\)"),
        (lambda texts: ["good"] * 8, r"reward part mine .* got 'good' \(str\) in 8 rows from row 0 \(group_id 7, "
                                     r"sample 0\) to row 7 \(group_id 9, sample 3\)"),
        (lambda texts: [0.0, "a", math.inf] + [0.0] * 5, r"got 'a' \(str\) in row 1 \(group_id 7, sample 1\)"),
        (lambda texts: [0.0] * 7, "reward part mine must return a number or None for each of 8 rows, got 7 in 8 rows"),
        (lambda texts: None, r"reward part mine must return a list with a number or None a row, got None"),
    ],
)
def test_an_answer_that_cannot_be_used_is_refused_by_part_and_row(function, message):
    with pytest.raises(UserError, match=message):
        ask(answering(function), ROWS, "mine", Skips(0))


@pytest.mark.parametrize("row", range(8))
def test_the_row_that_makes_a_function_raise_is_found_by_halves(row):
    call = raising_at("abcdefgh"[row])
    with pytest.raises(UserError, match=rf"reward part mine must not raise, got division by zero in row {row} "
                                        rf"\(group_id {ROWS['group_ids'][row]}, sample {ROWS['samples'][row]}\)"):
        ask(call, ROWS, "mine", Skips(0))
    assert len(call.calls) <= 5     # the whole, three halvings, the row alone


def test_rows_that_make_a_function_raise_are_skipped_and_the_others_asked_again_together():
    call, skips = raising_at("bg"), Skips(2)
    values, num_skipped = ask(call, ROWS, "mine", skips)
    assert values == [97.0, None, 99.0, 100.0, 101.0, 102.0, None, 104.0]
    assert (num_skipped, skips.used, call.calls[-1]) == (2, 2, "acdefh")
    with pytest.raises(UserError, match=r"in row 1 \(group_id 7, sample 1\); .* \(2 may, 3 would\)"):
        ask(raising_at("b"), ROWS, "mine", skips)      # they are counted over all batches


def test_rows_without_a_number_are_skipped_without_a_second_call():
    call, skips = answering(lambda texts: ["?" if text in "ah" else 1.0 for text in texts]), Skips(3)
    assert ask(call, ROWS, "mine", skips) == ([None] + [1.0] * 6 + [None], 2)
    assert (len(call.calls), skips.used) == (1, 2)


def test_a_function_that_raises_for_a_whole_batch_only_is_refused_for_all_its_rows():
    def function(texts):
        if len(texts) == 8:
            raise ZeroDivisionError("too many")
        return [1.0] * len(texts)

    with pytest.raises(UserError, match=r"must not raise, got too many in 8 rows from row 0 .* to row 7"):
        ask(answering(function), ROWS, "mine", Skips(7))
    assert ask(answering(function), ROWS, "mine", Skips(8)) == ([None] * 8, 8)


def test_a_batch_without_an_answer_is_refused_or_skipped_as_a_whole():
    def call(columns):
        raise Lost("must answer within timeout_s = 1 s, got nothing")

    with pytest.raises(UserError, match=r"reward part mine must answer within timeout_s = 1 s, got nothing in 8 rows "
                                        r"from row 0 .* to row 7 .*\(7 may, 8 would\)"):
        ask(call, ROWS, "mine", Skips(7))
    assert ask(call, ROWS, "mine", Skips(8)) == ([None] * 8, 8)


def test_a_function_that_hangs_while_the_row_at_fault_is_looked_for_is_refused_for_its_batch():
    def call(columns):
        raise Raised("must not raise, got it") if len(columns["group_ids"]) == 8 else Lost("must answer, got nothing")

    with pytest.raises(UserError, match="must not raise, got it in 8 rows"):
        ask(call, ROWS, "mine", Skips(0))


def test_no_rows_are_not_asked():
    assert ask(lambda columns: 1 / 0, {"group_ids": [], "samples": []}, "mine", Skips(0)) == ([], 0)


def test_an_exception_is_told_in_one_line():
    try:
        raise KeyError("first\nsecond")
    except KeyError as error:
        assert described(error).startswith("KeyError: 'first\\nsecond' (test_functions.py, line ")
    assert described(ValueError()) == "ValueError: no message"
