import math
import random

import numpy as np
import pytest

from rlaif.config.checks import UserError
from rlaif.config.reward_parts import RewardPartConfig
from rlaif.config.train import RewardConfig
from rlaif.metrics import values as plain
from rlaif.rewards.combine import combine
from rlaif.rewards.plan import plan_rewards

NO_JUDGE = RewardConfig(model=None)     # type: ignore[arg-type]


def plan(*parts):
    return plan_rewards(NO_JUDGE, [RewardPartConfig(kind="bleu", **part) for part in parts])


def rewards_of(values, parts, group_ids=None):
    num_rows = len(next(iter(values.values())))
    return combine(values, group_ids or [0] * num_rows, list(range(num_rows)), plan(*parts))


def test_terms_are_added_by_weight_by_hand():
    found = rewards_of({"a": [1.0, -2.0], "b": [0.5, 4.0]}, [{"name": "a"}, {"name": "b", "weight": -0.5}])
    assert found.rewards == [0.75, -4.0]
    assert found.terms == {"a": [1.0, -2.0], "b": [0.5, 4.0]}


def test_a_part_of_weight_0_is_watched_and_not_added():
    found = rewards_of({"a": [1.0], "b": [5.0]}, [{"name": "a"}, {"name": "b", "weight": 0.0}])
    assert (found.rewards, found.terms) == ([1.0], {"a": [1.0]})
    assert plain(found.metrics) == {"absent_a": 0.0, "absent_b": 0.0, "rows_unjudged": 0.0}


def test_the_weights_of_the_others_make_up_for_a_part_that_did_not_judge():
    # W = 1 + 3 + |-2| = 6. Row 0: 6 / 4 * (2 + 3 * 4) = 21. Row 1 is whole: 2 + 12 - 2 = 12. Row 2: 6 / 2 * (-2 * 1).
    found = rewards_of({"a": [2.0, 2.0, None], "b": [4.0, 4.0, None], "c": [None, 1.0, 1.0]},
                       [{"name": "a"}, {"name": "b", "weight": 3.0}, {"name": "c", "weight": -2.0}])
    assert found.rewards == [21.0, 12.0, -6.0]
    assert found.terms["c"] == [None, 1.0, 1.0]
    measured = plain(found.metrics)
    assert (measured["absent_a"], measured["absent_b"], measured["absent_c"]) == (1.0, 1.0, 1.0)


def test_equal_terms_give_an_equal_reward_whoever_is_absent():
    parts = [{"name": "a", "weight": 0.3}, {"name": "b", "weight": 0.7}]
    found = rewards_of({"a": [2.0, 2.0, None], "b": [2.0, None, 2.0]}, parts)
    assert found.rewards == pytest.approx([2.0, 2.0, 2.0])


def test_transform_comes_before_gate_and_gate_before_weight():
    values = {"right": [1.0, 0.0, 1.0, 0.0], "style": [3.0, 9.0, 5.0, 7.0]}
    parts = [{"name": "right", "weight": 2.0},
             {"name": "style", "weight": 0.5, "transform": "rank", "gate": "positive_only", "gated_by": ["right"]}]
    found = rewards_of(values, parts, group_ids=[7, 7, 8, 8])
    assert found.terms["style"] == [0.0, 0.0, 0.0, 0.0]     # first of group 7 ranks last, second is shut out
    values["style"] = [9.0, 3.0, 5.0, 7.0]
    found = rewards_of(values, parts, group_ids=[7, 7, 8, 8])
    assert found.terms["style"] == [1.0, 0.0, 0.0, 0.0]
    assert found.rewards == [2.5, 0.0, 2.0, 0.0]
    assert plain(found.metrics)["gated_style"] == 1.0      # the 1 of row 3; row 1 was 0 anyway


def test_a_pure_gate_multiplies_the_others():
    found = rewards_of({"format": [1.0, 0.0, 0.5], "a": [2.0, 2.0, 2.0]},
                       [{"name": "format", "weight": 0.0}, {"name": "a", "gate": "multiply", "gated_by": ["format"]}])
    assert found.rewards == [2.0, 0.0, 1.0]


def test_a_gate_that_did_not_judge_makes_the_gated_part_absent():
    found = rewards_of({"a": [1.0, 1.0], "b": [4.0, 4.0], "right": [None, 1.0]},
                       [{"name": "a"}, {"name": "b", "gate": "positive_only", "gated_by": ["right"]},
                        {"name": "right", "weight": 0.0}])
    assert found.terms["b"] == [None, 4.0]
    assert found.rewards == [2.0, 5.0]      # 2 / 1 * 1: b's weight is made up for


def test_a_gates_own_gate_does_not_reach_further():
    found = rewards_of({"a": [1.0], "b": [2.0], "c": [0.0]},
                       [{"name": "a", "gate": "multiply", "gated_by": ["b"]},
                        {"name": "b", "gate": "multiply", "gated_by": ["c"]}, {"name": "c", "weight": 0.0}])
    assert found.terms == {"a": [2.0], "b": [0.0]}


def independent(values, weights, transforms, group_ids):
    """By loops over rows: terms, then the sum."""
    terms = {}
    for name, column in values.items():
        terms[name] = []
        for row, value in enumerate(column):
            others = [other for other, group in zip(column, group_ids, strict=True)
                      if group == group_ids[row] and other is not None]
            if value is None:
                terms[name].append(None)
            elif transforms[name] == "log_sigmoid":
                terms[name].append(-math.log(1 + math.exp(sum(others) / len(others) - value)))
            elif transforms[name] == "rank":
                lower = sum(other < value for other in others) + (sum(other == value for other in others) - 1) / 2
                terms[name].append(lower / (len(others) - 1) if len(others) > 1 else 0.5)
            else:
                terms[name].append(value)
    rewards = []
    for row in range(len(group_ids)):
        there = {name: terms[name][row] for name in values if terms[name][row] is not None}
        share = sum(abs(weights[name]) for name in there) / sum(map(abs, weights.values()))
        rewards.append(sum(weights[name] * term for name, term in there.items()) / share)
    return rewards


@pytest.mark.parametrize("seed", range(6))
def test_rewards_agree_with_plain_python(seed):
    draw = random.Random(seed)
    group_ids = [draw.randrange(4) for _ in range(20)]
    transforms = {"a": "none", "b": "log_sigmoid", "c": "rank"}
    weights = {"a": 1.0, "b": -0.5, "c": 2.0}
    values = {name: [draw.choice([None, draw.gauss(0, 2), 1.0]) if name != "a" else draw.gauss(0, 1)
                     for _ in group_ids] for name in transforms}
    found = rewards_of(values, [{"name": name, "weight": weights[name], "transform": transforms[name]}
                                for name in values], group_ids)
    assert found.rewards == pytest.approx(independent(values, weights, transforms, group_ids), abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_the_rows_changes_no_bit(seed):
    draw = np.random.default_rng(seed)
    group_ids = draw.integers(0, 5, 40).tolist()
    values = {"a": draw.normal(size=40).tolist(), "b": draw.normal(size=40).tolist()}
    parts = [{"name": "a", "weight": 0.1, "transform": "log_sigmoid"},
             {"name": "b", "weight": 0.3, "transform": "rank", "gate": "minimum", "gated_by": ["a"]}]
    whole = rewards_of(values, parts, group_ids).rewards
    order = draw.permutation(40).tolist()
    shuffled = rewards_of({name: [column[row] for row in order] for name, column in values.items()}, parts,
                          [group_ids[row] for row in order]).rewards
    assert shuffled == [whole[row] for row in order]


def test_a_batch_of_whole_groups_gives_what_the_whole_step_gives():
    values = {"a": [1.0, 2.0, 5.0, 3.0, 3.0, 9.0]}
    parts, group_ids = [{"name": "a", "transform": "log_sigmoid"}], [4, 4, 4, 5, 5, 5]
    halves = [rewards_of({"a": values["a"][part]}, parts, group_ids[part]).rewards for part in
              (slice(0, 3), slice(3, 6))]
    assert halves[0] + halves[1] == rewards_of(values, parts, group_ids).rewards


def test_a_row_that_no_part_judged_is_refused_by_name():
    with pytest.raises(UserError, match=r"rewards must judge every row by one part at least, got none in 2 of 3 rows, "
                                        r"first in row 1 \(group_id 0, sample 1\); add a part that always judges"):
        rewards_of({"a": [1.0, None, None]}, [{"name": "a"}])


def test_a_group_that_no_part_judged_is_refused_by_its_number():
    values = {"a": [1.0, 2.0, None, None]}
    with pytest.raises(UserError, match=r"got none in 2 of 4 rows, first in row 2 \(group_id 8, sample 2\); "):
        rewards_of(values, [{"name": "a", "max_skipped": 1}], group_ids=[7, 7, 8, 8])
    found = rewards_of(values, [{"name": "a", "max_skipped": 2}], group_ids=[7, 7, 8, 8])
    assert found.rewards == [1.0, 2.0, 0.0, 0.0], "equal: they teach nothing"


def test_skipped_rows_take_the_mean_of_their_group_and_are_counted():
    found = rewards_of({"a": [1.0, None, 4.0, None]}, [{"name": "a", "max_skipped": 2}], group_ids=[7, 7, 7, 8])
    assert found.rewards == [1.0, 2.5, 4.0, 0.0]
    assert plain(found.metrics)["rows_unjudged"] == 2.0
    assert found.terms == {"a": [1.0, None, 4.0, None]}
    with pytest.raises(UserError, match="got none in 2 of 4 rows"):
        rewards_of({"a": [1.0, None, 4.0, None]}, [{"name": "a", "max_skipped": 1}], group_ids=[7, 7, 7, 8])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_refused_by_part_and_row(value):
    with pytest.raises(UserError, match=rf"values of reward part b must be finite, got {value} in row 1 \(group_id 0, "
                                        r"sample 1\)"):
        rewards_of({"a": [1.0, 1.0], "b": [1.0, value]}, [{"name": "a"}, {"name": "b"}])


def test_a_sum_that_no_float32_holds_is_refused():
    with pytest.raises(UserError, match=r"reward must be at most 3.4e\+38, got 1e\+40 in row 0 .*; lower the weights"):
        rewards_of({"a": [1e30]}, [{"name": "a", "weight": 1e10}])
    with pytest.raises(UserError, match=r"term of reward part a must be at most 3.4e\+38, got -1e\+60 in row 0"):
        rewards_of({"a": [1e30], "b": [-1e30]}, [{"name": "a", "gate": "multiply", "gated_by": ["b"], "weight": 1e-30},
                                                {"name": "b", "weight": 0.0}])


def test_a_batch_without_rows_has_no_rewards():
    assert rewards_of({"a": []}, [{"name": "a"}]).rewards == []
