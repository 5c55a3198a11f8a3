"""Function parts side by side: rules here, a user's function and a pattern each in a real process."""

import sys

import pytest

from actors.judging.function_parts import FunctionParts, check_functions
from rlaif.batch import PARTS, ROLLOUT, check
from rlaif.config.checks import UserError
from rlaif.config.reward_parts import RewardPartConfig
from rlaif.metrics import Sum, values
from tests.helpers.batch_examples import table

ROWS = table(ROLLOUT, {"completion": "so it is"}, {"sample": 1, "completion": "so so so so"})
MODULE = """
def words(completions, *, unit=1.0):
    return [unit * len(text.split()) for text in completions]

def refuses_repetition(completions):
    if any(len(set(text.split())) == 1 for text in completions):
        raise ValueError("nothing new")
    return [1.0] * len(completions)
"""


@pytest.fixture(scope="module", autouse=True)
def users_module(tmp_path_factory):
    folder = tmp_path_factory.mktemp("users")
    (folder / "parts_of_a_user.py").write_text(MODULE)
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))


def part(kind, **fields):
    return RewardPartConfig(kind=kind, **fields)


def words(**fields):
    return part("function", name="words", function="parts_of_a_user:words", **fields)


@pytest.fixture
def started():
    """Makes FunctionParts of parts, starts and ends them."""
    made = []

    def make(*parts):
        made.append(FunctionParts(parts, 60.0))
        made[-1].start()
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_every_part_answers_every_row_in_the_order_of_the_plan(started):
    parts = started(words(options={"unit": 0.5}), part("repetition_penalty", options={"size": 1}),
                    part("exact_match"), part("regex", options={"pattern": "it"}))
    found, metrics = parts.values(ROWS)
    rows = check(found, PARTS).to_pylist()
    assert [(row["part"], row["sample"], row["value"]) for row in rows] == [
        ("words", 0, 1.5), ("words", 1, 2.0), ("repetition_penalty", 0, 0.0), ("repetition_penalty", 1, -0.75),
        ("exact_match", 0, None), ("exact_match", 1, None), ("regex", 0, 1.0), ("regex", 1, 0.0)]
    assert {row["group_id"] for row in rows} == {7}
    assert len({row["reward_version"] for row in rows}) == 1
    assert metrics["skipped_words"] == Sum(0) and values(metrics)["seconds_regex"] > 0


def test_a_row_that_is_skipped_is_not_judged_and_counted(started):
    parts = started(part("function", name="new", function="parts_of_a_user:refuses_repetition", max_skipped=1))
    found, metrics = parts.values(ROWS)
    assert found["value"].to_pylist() == [1.0, None]
    assert metrics["skipped_new"] == Sum(1)
    with pytest.raises(UserError, match=r"reward part new must not raise, got ValueError: nothing new .* in row 1 "
                                        r"\(group_id 7, sample 1\); mend it, or let max_skipped rows pass \(1 may, 2 "):
        parts.values(ROWS)


def test_the_version_follows_the_functions_and_not_the_order_of_calls(started):
    first, other = started(words()), started(part("function", name="b", function="rlaif.rewards.text_rules:regex",
                                                  options={"pattern": "it"}))
    version = first.values(ROWS)[0]["reward_version"][0]
    assert first.values(ROWS)[0]["reward_version"].unique().to_pylist() == [version.as_py()]
    assert first.start() == version.as_py() != other.start()


def test_functions_are_checked_without_being_kept():
    check_functions([words(), part("bleu"), part("regex", options={"pattern": "it"})], 60.0)
    with pytest.raises(UserError, match="reward part words: options must be arguments of the function"):
        check_functions([words(options={"units": 1})], 60.0)
