import itertools
import math

import numpy as np
import pytest

from rlaif.statistics import (
    bootstrap,
    by_group,
    columns,
    concordance,
    kendall,
    length_buckets,
    mean,
    pearson,
    ratio,
    rows_by_key,
    spearman,
)


def plain_pearson(xs, ys):
    mx, my = sum(xs) / len(xs), sum(ys) / len(ys)
    sxy = sum((x - mx) * (y - my) for x, y in zip(xs, ys, strict=True))
    return sxy / math.sqrt(sum((x - mx) ** 2 for x in xs) * sum((y - my) ** 2 for y in ys))


def plain_ranks(xs):
    return [sum(y < x for y in xs) + (sum(y == x for y in xs) + 1) / 2 for x in xs]


def plain_pairs(xs, ys):
    """Alike, contrary, tied in the first only, tied in the second only; pair by pair."""
    counts = [0, 0, 0, 0]
    for i, j in itertools.combinations(range(len(xs)), 2):
        dx, dy = xs[i] - xs[j], ys[i] - ys[j]
        if dx and dy:
            counts[0 if dx * dy > 0 else 1] += 1
        elif dx or dy:
            counts[2 if dy else 3] += 1
    return tuple(counts)


def example(seed, rows=300, values=12):
    """Two columns with many ties that go together somewhat."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, values, rows)
    return first, first + rng.integers(0, values, rows)


def test_correlations_by_hand():
    assert pearson([1, 2, 3], [2, 4, 7]) == pytest.approx(5 / math.sqrt(2 * 38 / 3))
    # ranks 1, 2, 3, 4 against 1, 3, 2, 4: 1 - 6 * 2 / (4 * 15); five pairs alike, one contrary
    assert spearman([1, 2, 3, 4], [1, 30, 20, 400]) == pytest.approx(0.8)
    assert kendall([1, 2, 3, 4], [1, 30, 20, 400]) == pytest.approx(4 / 6)
    # pairs (1,1) tied in the second, (1,2) and (1,2) alike: 2 / sqrt(3 * 2)
    assert kendall([1, 2, 3], [1, 1, 2]) == pytest.approx(2 / math.sqrt(6))


@pytest.mark.parametrize("seed", range(4))
def test_correlations_agree_with_plain_python(seed):
    first, second = example(seed, rows=(2, 30, 65, 300)[seed])
    xs, ys = first.tolist(), second.tolist()
    alike, contrary, only_first, only_second = plain_pairs(xs, ys)
    assert concordance(first, second) == (alike, contrary, only_first, only_second)
    if seed:
        assert pearson(first, second) == pytest.approx(plain_pearson(xs, ys))
        assert spearman(first, second) == pytest.approx(plain_pearson(plain_ranks(xs), plain_ranks(ys)))
        ordered = alike + contrary
        want = (alike - contrary) / math.sqrt((ordered + only_first) * (ordered + only_second))
        assert kendall(first, second) == pytest.approx(want)


@pytest.mark.parametrize("correlation", [spearman, kendall])
def test_rank_correlations_see_the_order_alone(correlation):
    first, second = example(7)
    once = correlation(first, second)
    assert 0.2 < once < 0.9
    assert correlation(np.exp(first / 3), second**3) == once
    assert correlation(second, first) == pytest.approx(once)
    assert correlation(-first, second) == pytest.approx(-once)
    order = np.random.default_rng(0).permutation(len(first))
    assert correlation(first[order], second[order]) == pytest.approx(once)


@pytest.mark.parametrize("correlation", [pearson, spearman, kendall])
def test_a_correlation_of_nothing_is_none_and_of_equal_columns_is_one(correlation):
    assert correlation([1.0], [2.0]) is None
    assert correlation([0.1] * 3, [1, 2, 3]) is None and correlation([1, 2, 3], [0.1] * 3) is None
    first, _ = example(0)
    assert correlation(first, first) == pytest.approx(1) and correlation(first, -first) == pytest.approx(-1)
    assert correlation([1e-200, 2e-200, 1e200], [0, 1, 2]) is not None


def test_groups_are_measured_alone_and_sorted():
    values = np.array([1.0, 2.0, 3.0, 4.0])
    table = by_group(["b", "a", "b", "a"], lambda rows: {"num_rows": len(rows), "mean": mean(values[rows])})
    assert list(table.items()) == [("a", {"num_rows": 2, "mean": 3.0}), ("b", {"num_rows": 2, "mean": 2.0})]
    assert {key: rows.tolist() for key, rows in rows_by_key("xyx", 3).items()} == {"x": [0, 2], "y": [1]}
    with pytest.raises(ValueError, match="there must be one key a row, got 2 for 3 rows"):
        rows_by_key("xy", 3)


def test_length_buckets_are_about_equally_full_and_named_by_their_ends():
    assert length_buckets(np.arange(1, 9)) == [f"{n}: {low}..{low + 1}" for n, low in enumerate((1, 3, 5, 7), 1)
                                               for _ in range(2)]
    names = length_buckets(np.random.default_rng(0).integers(0, 500, 1000), 5)
    assert all(150 < names.count(name) < 250 for name in set(names)) and len(set(names)) == 5
    assert sorted(length_buckets(np.arange(24), 12))[-1] == "12: 22..23"


def test_rows_of_one_length_share_a_bucket():
    assert length_buckets([7, 7, 7]) == ["1: 7..7"] * 3
    assert length_buckets([1] * 9 + [5]) == ["1: 1..1"] * 9 + ["2: 5..5"]
    with pytest.raises(ValueError, match="lengths must be integers, at least one, got float64"):
        length_buckets([1.5])
    with pytest.raises(ValueError, match="num_buckets must be >= 1, got 0"):
        length_buckets([1], 0)


def test_the_interval_of_a_mean_is_about_two_standard_errors_wide():
    values = np.random.default_rng(0).standard_normal(400)
    interval = bootstrap(lambda rows: mean(values[rows]), 400)
    error = values.std() / 20
    assert interval.low == pytest.approx(values.mean() - 1.96 * error, abs=0.25 * error)
    assert interval.high == pytest.approx(values.mean() + 1.96 * error, abs=0.25 * error)
    assert (interval.level, interval.num_resamples, interval.num_undefined) == (0.95, 1000, 0)
    narrow = bootstrap(lambda rows: mean(values[rows]), 400, level=0.5)
    assert interval.low < narrow.low < narrow.high < interval.high


def test_the_interval_repeats_with_its_seed_and_covers_the_truth():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(100):
        values = rng.random(60) < 0.7
        interval = bootstrap(lambda rows, values=values: mean(values[rows]), 60, num_resamples=200)
        covered += interval.low <= 0.7 <= interval.high
    assert 88 <= covered <= 99
    assert bootstrap(mean, 9) == bootstrap(mean, 9) != bootstrap(mean, 9, seed=1)


def test_rows_that_are_all_of_one_cluster_are_drawn_singly():
    values = np.random.default_rng(3).random(200)
    alone = bootstrap(lambda rows: mean(values[rows]), 200)
    together = bootstrap(lambda rows: mean(values[rows]), 200, clusters=["the same"] * 200)
    assert together == alone and together.high - together.low > 0.05


def test_clusters_are_drawn_whole_and_copies_of_a_row_add_no_certainty():
    values = np.random.default_rng(0).standard_normal(50)
    copies, prompts = np.repeat(values, 10), np.repeat(np.arange(50), 10)
    alone = bootstrap(lambda rows: mean(values[rows]), 50)
    clustered = bootstrap(lambda rows: mean(copies[rows]), 500, clusters=prompts.tolist())
    assert (clustered.low, clustered.high) == pytest.approx((alone.low, alone.high))
    rowwise = bootstrap(lambda rows: mean(copies[rows]), 500)
    assert rowwise.high - rowwise.low < (alone.high - alone.low) / 2.5


def test_resamples_without_a_value_are_counted():
    first, second = np.array([1.0, 1.0, 2.0]), np.array([1.0, 3.0, 2.0])
    interval = bootstrap(lambda rows: pearson(first[rows], second[rows]), 3, num_resamples=100)
    assert interval.num_undefined > 10 and interval.num_undefined + interval.num_resamples == 100
    nothing = bootstrap(lambda rows: None, 3, num_resamples=5)
    assert (nothing.low, nothing.high, nothing.num_undefined) == (None, None, 5)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"num_rows": 0}, "num_rows must be >= 1, got 0"),
    ({"num_rows": 2, "level": 1.0}, "level must be between 0 and 1, got 1.0"),
    ({"num_rows": 2, "num_resamples": 0}, "num_resamples must be >= 1, got 0"),
    ({"num_rows": 2, "clusters": ["a"]}, "there must be one key a row, got 1 for 2 rows"),
])
def test_bad_bootstraps_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        bootstrap(mean, **arguments)


def test_columns_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match=r"scores and gold must be lists of one length >= 1, got .*\(2,\)"):
        columns(scores=[1], gold=[1, 2])
    with pytest.raises(ValueError, match="scores must be lists of one length >= 1"):
        columns(scores=[])
    with pytest.raises(ValueError, match="gold must be finite, got nan in row 1"):
        columns(scores=[1, 2], gold=[1, math.nan])
    assert ratio(1, 0) is None and ratio(1, 4) == 0.25 and mean(np.array([])) is None
