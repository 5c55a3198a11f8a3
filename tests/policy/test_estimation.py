import dataclasses
import math
import random
import statistics

import pytest
import torch

from rlaif.config.algorithm import GROUP_ADVANTAGES, AlgorithmConfig
from rlaif.metrics import values
from rlaif.policy.controllers import MovingBaseline
from rlaif.policy.estimation import ESTIMATORS, AdvantageInputs, estimate, overlong_penalty

EPS = 1e-6


def inputs(**changes):
    """Two groups, one of three rows and one of two; 8 tokens."""
    return AdvantageInputs(**{
        "rewards": [1.0, 0.0, 2.0, 5.0, 3.0], "group_index": [4, 4, 4, 9, 9], "num_tokens": [2, 1, 1, 3, 1],
        "is_cut": [False, False, False, True, False], "max_tokens": 3} | changes)


def example(seed=0, num_rows=17):
    generator = random.Random(seed)
    sizes = [generator.randrange(0, 6) for _ in range(num_rows)]
    tokens = lambda: [[-3 * generator.random() for _ in range(size)] for size in sizes]  # noqa: E731
    terms = [{"a": generator.gauss(0, 1)} | ({"b": generator.gauss(5, 9)} if generator.random() < 0.8 else {})
             for _ in range(num_rows)]
    return AdvantageInputs(
        rewards=[generator.gauss(1, 2) for _ in range(num_rows)],
        group_index=[generator.randrange(5) * 100 for _ in range(num_rows)], num_tokens=sizes,
        is_cut=[size == 5 for size in sizes], max_tokens=5, kl_coefficient=0.3, reward_terms=terms,
        term_weights={"a": 1.0, "b": 0.25}, proximal_logprobs=tokens(), reference_logprobs=tokens(), values=tokens())


OPTIONS = {name: {"advantage": name} for name in ESTIMATORS} | {
    "kl_grpo": {"advantage": "grpo", "kl_in": "reward", "kl_estimator": "k1"},
    "kl_reinforce_pp": {"advantage": "reinforce_pp", "kl_in": "reward", "kl_estimator": "k3", "gamma": 0.9},
    "ppo": {"advantage": "gae", "kl_in": "reward", "kl_estimator": "k2", "gamma": 0.9, "lam": 0.7, "whiten": "batch"},
    "gdpo": {"parts": "separate", "whiten": "batch"},
    "overlong_penalty": {"advantage": "rloo", "overlong": "penalty", "overlong_buffer": 2, "overlong_penalty": 0.5},
    "overlong_mask": {"advantage": "dr_grpo", "overlong": "mask", "whiten": "batch"},
    "masked_reinforce": {"advantage": "reinforce", "overlong": "mask", "baseline_decay": 0.5},
    "limited": {"advantage": "dr_grpo", "advantage_limit": 1.2},
}


def plain(given, options, baseline):
    """Advantages and kept rows once more in plain Python."""
    rows = range(len(given.rewards))
    sizes = given.num_tokens
    reward = list(given.rewards)
    if options.overlong == "penalty":
        buffer = options.overlong_buffer
        reward = [r - options.overlong_penalty * min(max((n - given.max_tokens + buffer) / buffer, 0), 1)
                  for r, n in zip(reward, sizes, strict=True)]
    kept = [not (options.overlong == "mask" and given.is_cut[i]) for i in rows]
    kl = [[0.0] * n for n in sizes]
    if options.kl_in == "reward":
        for i in rows:
            for t in range(sizes[i]):
                d = given.reference_logprobs[i][t] - given.proximal_logprobs[i][t]
                kl[i][t] = given.kl_coefficient * {"k1": -d, "k2": d * d / 2, "k3": math.exp(d) - d - 1}[
                    options.kl_estimator]
    whole = [reward[i] - sum(kl[i]) for i in rows]
    token_rewards = [[-kl[i][t] + (reward[i] if t == sizes[i] - 1 else 0) for t in range(sizes[i])] for i in rows]
    mates = lambda i: [j for j in rows if given.group_index[j] == given.group_index[i]]  # noqa: E731

    def deviations(i, column):
        group = [column[j] for j in mates(i) if column[j] is not None]
        if column[i] is None or len(group) < 2:
            return 0.0
        return (column[i] - statistics.mean(group)) / (statistics.stdev(group) + EPS)

    def per_row(i):
        group = [whole[j] for j in mates(i)]
        if options.advantage == "reinforce":
            others = [whole[j] for j in rows if j != i and kept[j]]
            return whole[i] - (statistics.mean(others) if baseline is None else baseline)
        if options.parts == "separate":
            return sum(weight * deviations(i, [terms.get(name) for terms in given.reward_terms])
                       for name, weight in given.term_weights.items())
        if len(group) == 1:
            return 0.0
        if options.advantage == "grpo":
            return deviations(i, whole)
        if options.advantage == "rloo":
            return whole[i] - statistics.mean(whole[j] for j in mates(i) if j != i)
        return whole[i] - statistics.mean(group)        # dr_grpo, reinforce_pp_baseline

    def per_token(i, t):
        if options.advantage == "reinforce_pp":
            return sum(options.gamma ** (s - t) * token_rewards[i][s] for s in range(t, sizes[i]))
        v = [*given.values[i], 0.0]
        return sum((options.gamma * options.lam) ** (s - t)
                   * (token_rewards[i][s] + options.gamma * v[s + 1] - v[s]) for s in range(t, sizes[i]))

    is_whitened = options.whiten == "batch" or options.advantage in ("reinforce_pp", "reinforce_pp_baseline")
    normal = lambda x, seen: (x - statistics.mean(seen)) / (statistics.stdev(seen) + EPS)  # noqa: E731
    if options.advantage in ("reinforce_pp", "gae"):
        out = [[per_token(i, t) for t in range(sizes[i])] for i in rows]
        seen = [x for i in rows if kept[i] for x in out[i]]
        return [[normal(x, seen) if is_whitened else x for x in row] for row in out], kept
    one = [per_row(i) for i in rows]
    if is_whitened:
        seen = [one[i] for i in rows if kept[i]]
        alone = options.advantage == "reinforce_pp_baseline"
        one = [0.0 if alone and len(mates(i)) == 1 else normal(one[i], seen) for i in rows]
    if options.advantage_limit is not None:
        seen = [one[i] for i in rows if kept[i]]
        kept = [kept[i] and abs(normal(one[i], seen)) <= options.advantage_limit for i in rows]
    return [[one[i]] * sizes[i] for i in rows], kept


def flat(rows):
    return [x for row in rows for x in row]


@pytest.mark.parametrize("baseline", [MovingBaseline(), MovingBaseline(0.5, 0.4)])
@pytest.mark.parametrize("name", OPTIONS)
def test_estimates_agree_with_plain_python(name, baseline):
    options = AlgorithmConfig(**OPTIONS[name])
    for seed in range(3):
        given = example(seed)
        got = estimate(given, options, baseline)
        want, kept = plain(given, options, baseline.value)
        assert [len(row) for row in got.advantages] == given.num_tokens
        assert flat(got.advantages) == pytest.approx(flat(want), rel=1e-9, abs=1e-9)
        assert got.kept == kept
    assert name != "limited" or not all(kept)


@pytest.mark.parametrize("name", OPTIONS)
def test_neither_the_order_of_rows_nor_the_numbers_of_groups_matter(name):
    options, given = AlgorithmConfig(**OPTIONS[name]), example()
    got = estimate(given, options, MovingBaseline(0.5, 0.4))
    order = random.Random(1).sample(range(17), 17)
    taken = {field.name: [value[i] for i in order] for field in dataclasses.fields(given)
             if isinstance(value := getattr(given, field.name), list)}
    taken["group_index"] = [7 - 3 * group for group in taken["group_index"]]
    again = estimate(dataclasses.replace(given, **taken), options, MovingBaseline(0.5, 0.4))
    assert again.kept == [got.kept[i] for i in order]
    for place, i in enumerate(order):
        assert again.advantages[place] == pytest.approx(got.advantages[i], rel=1e-9, abs=1e-9)
        if got.returns is not None:
            assert again.returns[place] == pytest.approx(got.returns[i], rel=1e-9, abs=1e-9)
    assert values(again.metrics) == pytest.approx(values(got.metrics))
    assert again.state.total == pytest.approx(got.state.total)


def test_group_advantages_by_hand():
    get = lambda name: estimate(inputs(), AlgorithmConfig(advantage=name), MovingBaseline()).advantages  # noqa: E731
    assert get("dr_grpo") == [[0.0, 0.0], [-1.0], [1.0], [1.0, 1.0, 1.0], [-1.0]]
    assert get("rloo") == [[0.0, 0.0], [-1.5], [1.5], [2.0, 2.0, 2.0], [-2.0]]
    a = 1 / (math.sqrt(2) + EPS)
    assert flat(get("grpo")) == pytest.approx([0, 0, -1 / (1 + EPS), 1 / (1 + EPS), a, a, a, -a])


def test_a_kl_in_the_reward_by_hand():
    logprobs = {"proximal_logprobs": [[-1.0, -1.0], [-1.0], [-1.0], [-1.0, -1.0, -1.0], [-1.0]],
                "reference_logprobs": [[-1.0, -3.0], [-1.0], [-1.0], [-1.0, -2.0, -1.0], [-1.0]],
                "kl_coefficient": 0.5}
    options = AlgorithmConfig(advantage="dr_grpo", kl_in="reward", kl_estimator="k1")
    got = estimate(inputs(**logprobs), options, MovingBaseline())
    # rewards 1 - 0.5 * 2 = 0, 0, 2 and 5 - 0.5 * 1 = 4.5, 3
    assert flat(got.advantages) == pytest.approx([-2 / 3, -2 / 3, -2 / 3, 4 / 3, 0.75, 0.75, 0.75, -0.75])
    assert values(got.metrics)["reward_kl"] == pytest.approx(3 / 5)     # nats a completion
    # token by token: what a token cost itself and after it, and the reward at the end
    options = AlgorithmConfig(advantage="reinforce_pp", kl_in="reward", kl_estimator="k1")
    got = flat(estimate(inputs(**logprobs), options, MovingBaseline()).advantages)
    to_go = [0.0, 0.0, 0.0, 2.0, 4.5, 4.5, 5.0, 3.0]
    mean, std = statistics.mean(to_go), statistics.stdev(to_go) + EPS
    assert got == pytest.approx([(x - mean) / std for x in to_go])
    # a coefficient of zero needs no logprobs
    assert estimate(inputs(), options, MovingBaseline()).kept == [True] * 5


def test_the_overlong_penalty_by_hand():
    lengths = torch.tensor([5, 8, 9, 10, 12])
    assert overlong_penalty(lengths, 12, 4, 2.0).tolist() == [0.0, 0.0, 0.5, 1.0, 2.0]
    assert overlong_penalty(lengths, 12, None, 1.0).tolist() == [0.0, 0.0, 0.0, 0.0, 1.0]       # a fifth: 2 tokens
    assert overlong_penalty(torch.tensor([1, 2]), 2, None, 1.0).tolist() == [0.0, 1.0]      # at least one token
    with pytest.raises(ValueError, match=r"overlong_buffer must be in 1\.\.12, rollout.max_tokens, got 13; lower it"):
        overlong_penalty(lengths, 12, 13, 1.0)
    options = AlgorithmConfig(advantage="dr_grpo", overlong="penalty", overlong_buffer=2)
    got = estimate(inputs(), options, MovingBaseline())
    # lengths 2, 1, 1, 3, 1 of 3 cost 0.5, 0, 0, 1, 0: rewards 0.5, 0, 2, 4, 3
    assert flat(got.advantages) == pytest.approx([-1 / 3, -1 / 3, -5 / 6, 7 / 6, 0.5, 0.5, 0.5, -0.5])
    assert values(got.metrics)["overlong_penalty"] == pytest.approx(1.5 / 5)


def test_cut_completions_are_masked_but_compared_with():
    got = estimate(inputs(), AlgorithmConfig(advantage="dr_grpo", overlong="mask"), MovingBaseline())
    assert got.kept == [True, True, True, False, True]
    assert got.advantages[4] == [-1.0]
    assert values(got.metrics)["cut_share"] == 1 / 5
    assert estimate(inputs(), AlgorithmConfig(), MovingBaseline()).kept == [True] * 5


def test_outliers_are_masked_out():
    rewards, groups = [0.0] * 9 + [10.0], list(range(5)) * 2        # advantages 0, but -5 and 5 in the last group
    given = AdvantageInputs(rewards, groups, [1] * 10, [False] * 10, 4)
    got = estimate(given, AlgorithmConfig(advantage="dr_grpo", advantage_limit=2.0), MovingBaseline())
    # mean 0, sample deviation sqrt(50 / 9) = 2.36: both lie 2.12 off
    assert got.kept == [True] * 4 + [False] + [True] * 4 + [False]
    assert values(got.metrics)["outlier_share"] == 0.2
    assert all(estimate(given, AlgorithmConfig(advantage="dr_grpo", advantage_limit=2.2), MovingBaseline()).kept)


def test_the_moving_baseline_learns_from_the_step_only_after_it():
    options = AlgorithmConfig(advantage="reinforce", baseline_decay=0.5)
    first = estimate(inputs(), options, MovingBaseline())
    # nothing is known yet: the mean of the others, of 11 in all
    assert [row[0] for row in first.advantages] == pytest.approx([1 - 10 / 4, 0 - 11 / 4, 2 - 9 / 4, 5 - 6 / 4,
                                                                  3 - 8 / 4])
    assert "baseline" not in values(first.metrics) and first.state.value == pytest.approx(11 / 5)
    second = estimate(inputs(), options, first.state)
    assert [row[0] for row in second.advantages] == pytest.approx([r - 2.2 for r in (1, 0, 2, 5, 3)])
    assert values(second.metrics)["baseline"] == pytest.approx(2.2)
    assert estimate(inputs(), AlgorithmConfig(), first.state).state == first.state


def test_rows_that_are_masked_for_their_length_are_no_part_of_the_moving_baseline():
    options = AlgorithmConfig(advantage="reinforce", overlong="mask", baseline_decay=0.5)
    given = AdvantageInputs([1.0, 1.0, 0.0, 0.0], [0, 0, 1, 1], [1] * 4, [False, False, True, True], 1)
    first = estimate(given, options, MovingBaseline())
    assert first.kept == [True, True, False, False]
    assert flat(first.advantages) == [0.0, 0.0, -1.0, -1.0]     # the mean of the others that are kept
    assert first.state.value == 1.0
    second = estimate(dataclasses.replace(given, rewards=[3.0, 2.0, 0.0, 9.0]), options, first.state)
    assert flat(second.advantages) == [2.0, 1.0, -1.0, 8.0]
    assert (second.state.total, second.state.weight) == (0.5 * 0.5 + 0.5 * 2.5, 0.75)
    # where every row is cut nothing is learnt, nor remembered
    third = estimate(dataclasses.replace(given, is_cut=[True] * 4), options, second.state)
    assert third.state == second.state and not any(third.kept)


def test_the_critic_by_hand():
    given = inputs(values=[[0.5, 1.0], [0.0], [1.0], [1.0, 1.0, 4.0], [3.0]])
    options = AlgorithmConfig(advantage="gae", lam=0.0)
    got = estimate(given, options, MovingBaseline())
    assert got.advantages == [[0.5, 0.0], [0.0], [1.0], [0.0, 3.0, 1.0], [0.0]]
    assert got.returns == [[1.0, 1.0], [0.0], [2.0], [1.0, 4.0, 5.0], [3.0]]
    errors, returns = flat(got.advantages), flat(got.returns)
    assert values(got.metrics)["explained_variance"] == pytest.approx(
        1 - statistics.pvariance(errors) / statistics.pvariance(returns))
    # whitened advantages leave the returns as they are
    whitened = estimate(given, dataclasses.replace(options, whiten="batch"), MovingBaseline())
    assert whitened.returns == got.returns
    assert statistics.mean(flat(whitened.advantages)) == pytest.approx(0.0)
    assert statistics.stdev(flat(whitened.advantages)) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("name", GROUP_ADVANTAGES)
def test_equal_rewards_and_groups_of_one_teach_nothing_and_are_counted(name):
    given = AdvantageInputs([0.1] * 3 + [7.0] + [0.0, 1.0], [0, 0, 0, 1, 2, 2], [2] * 6, [False] * 6, 4)
    got = estimate(given, AlgorithmConfig(advantage=name), MovingBaseline())
    assert flat(got.advantages[:4]) == [0.0] * 8 and min(map(abs, flat(got.advantages[4:]))) > 0
    assert values(got.metrics)["equal_reward_group_share"] == 2 / 3
    assert all(got.kept)


@pytest.mark.parametrize("name", OPTIONS)
def test_no_rows_rows_without_tokens_and_all_rows_masked(name):
    options = AlgorithmConfig(**OPTIONS[name])
    nothing = AdvantageInputs([], [], [], [], 4, 0.1, [], {"a": 1.0}, [], [], [])
    got = estimate(nothing, options, MovingBaseline())
    assert (got.advantages, got.kept, got.state) == ([], [], MovingBaseline())
    silent = AdvantageInputs([1.0, 2.0], [0, 0], [0, 0], [True, True], 4, 0.1, [{"a": 1.0}, {}], {"a": 1.0}, [[], []],
                             [[], []], [[], []])
    got = estimate(silent, options, MovingBaseline())
    assert got.advantages == [[], []]
    one = AdvantageInputs([1.0], [0], [1], [True], 4, 0.1, [{"a": 1.0}], {"a": 1.0}, [[-1.0]], [[-1.0]], [[0.5]])
    assert math.isfinite(estimate(one, options, MovingBaseline()).advantages[0][0])


def test_what_is_not_finite_is_refused_with_its_row_and_token():
    with pytest.raises(ValueError, match=r"rewards must be finite, got nan in row 1; mend its reward function"):
        estimate(inputs(rewards=[0.0, math.nan, 0.0, 0.0, 0.0]), AlgorithmConfig(), MovingBaseline())
    for bad in (math.nan, math.inf):
        values_ = [[0.0, 0.0], [0.0], [0.0], [0.0, bad, 0.0], [0.0]]
        with pytest.raises(ValueError, match=f"values must be finite, got {bad} in row 3, token 1; the model that"):
            estimate(inputs(values=values_), AlgorithmConfig(advantage="gae"), MovingBaseline())
    with pytest.raises(ValueError, match=r"reward_terms must be finite, got inf of a in row 0; mend its reward"):
        estimate(inputs(reward_terms=[{"a": math.inf}] + [{}] * 4, term_weights={"a": 1.0}),
                 AlgorithmConfig(parts="separate"), MovingBaseline())


def test_a_nan_where_nothing_asks_for_it_does_no_harm():
    rotten = [[math.nan] * n for n in (2, 1, 1, 3, 1)]
    given = inputs(values=rotten, reference_logprobs=rotten, proximal_logprobs=rotten, kl_coefficient=0.1)
    assert estimate(given, AlgorithmConfig(), MovingBaseline()) == estimate(inputs(), AlgorithmConfig(),
                                                                            MovingBaseline())
