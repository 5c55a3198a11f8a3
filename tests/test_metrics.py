import json
import math
import pickle

import pytest

from rlaif.metrics import Max, Mean, Min, Sum, as_json, from_json, merge, values


def test_a_merged_mean_weighs_every_item_once():
    # 3 items of mean 2 and 1 item of mean 10: the mean of means would be 6
    merged = Mean(6.0, 3).merge(Mean(10.0, 1))
    assert merged.value == 4.0


def test_each_metric_reduces_by_its_own_rule():
    parts = [
        {"mean": Mean(2.0, 4), "sum": Sum(1.0), "max": Max(3.0), "min": Min(3.0)},
        {"mean": Mean(4.0, 2), "sum": Sum(2.5), "max": Max(-1.0), "min": Min(-1.0)},
    ]
    assert values(merge(parts)) == {"mean": 1.0, "sum": 3.5, "max": 3.0, "min": -1.0}


def test_merging_does_not_depend_on_how_the_items_were_split():
    items = [0.5, 2.0, -1.0, 4.0, 8.0]
    parts = [{"mean": Mean(x, 1), "sum": Sum(x), "max": Max(x), "min": Min(x)} for x in items]
    whole = merge(parts)
    assert merge([merge(parts[:2]), merge(parts[2:])]) == whole
    assert merge(reversed(parts)) == whole


def test_a_metric_without_items_has_no_value_and_is_left_out():
    empty = {"mean": Mean(0.0, 0), "max": Max(None), "min": Min(None), "sum": Sum(0.0)}
    assert values(empty) == {"sum": 0.0}
    full = {"mean": Mean(3.0, 2), "max": Max(1.0), "min": Min(1.0), "sum": Sum(3.0)}
    assert merge([empty, full]) == merge([full, empty]) == full


def test_a_name_may_be_absent_from_some_parts():
    assert values(merge([{"a": Sum(1.0)}, {"b": Sum(2.0)}, {"a": Sum(3.0)}])) == {"a": 4.0, "b": 2.0}
    assert merge([]) == {}


def test_nan_survives_a_merge_in_either_order():
    for kind in (Max, Min):
        assert math.isnan(kind(math.nan).merge(kind(1.0)).value)
        assert math.isnan(kind(1.0).merge(kind(math.nan)).value)


def test_one_name_with_two_reductions_is_refused():
    with pytest.raises(AssertionError, match=r"metric a must have one reduction"):
        merge([{"a": Sum(1.0)}, {"a": Max(1.0)}])


def test_metrics_survive_pickling():
    metrics = {"mean": Mean(1.0, 2), "sum": Sum(1.0), "max": Max(None), "min": Min(2.0)}
    assert pickle.loads(pickle.dumps(metrics)) == metrics


def test_json_holds_metrics_without_loss():
    metrics = {"mean": Mean(1 / 3, 7), "none": Mean(0.0, 0), "sum": Sum(1e-300), "max": Max(None), "min": Min(-0.1)}
    assert from_json(json.loads(json.dumps(as_json(metrics)))) == metrics
