import json
import math

import numpy as np
import pytest

from rlaif.esfp.calibration import reliability
from rlaif.reward_evaluation.metrics import label_metrics, pair_metrics
from rlaif.reward_evaluation.report import markdown, write_evaluation
from rlaif.statistics import Interval, bootstrap, by_group

PNG = b"\x89PNG\r\n\x1a\n"


def test_an_evaluation_becomes_tables():
    page = markdown({
        "model": "tiny", "num_rows": 7, "accuracy": 0.75, "interval": Interval(0.5, 1.0, 0.95, 1000, 0),
        "by_source": {"a": {"num_rows": 3, "accuracy": 2 / 3}, "b": {"num_rows": 4, "accuracy": None, "ties": 1}},
        "length": {"excess": 1e-5, "strata": {"short": {"n": 1}}},
        "empty": {},
    })
    assert page == [
        "# Evaluation", "",
        "|  | value |", "| --- | ---: |", "| model | tiny |", "| num_rows | 7 |", "| accuracy | 0.750 |",
        "| interval | 0.500 to 1.000 |", "",
        "## by_source", "",
        "|  | num_rows | accuracy | ties |", "| --- | ---: | ---: | ---: |",
        "| a | 3 | 0.667 |  |", "| b | 4 | – | 1 |", "",
        "## length", "",
        "|  | value |", "| --- | ---: |", "| excess | 1e-05 |", "",
        "### strata", "",
        "|  | n |", "| --- | ---: |", "| short | 1 |", "",
        "## empty", "", "nothing",
    ]


def test_no_name_or_text_can_end_its_cell_or_line():
    page = markdown({"a|b\nc": "x|y\n# z\\", "s|\n": {"| k": {"v": True}}})
    assert "| a\\|b c | x\\|y # z\\\\ |" in page and "## s\\|" in page and "| \\| k | True |" in page


def test_figures_survive_json_and_what_json_cannot_hold_is_text(tmp_path):
    evaluation = {"loss": math.inf, "nan": np.float32("nan"), "count": np.int64(3), "share": np.float32(0.5),
                  "none": None, "array": {"interval": Interval(0.0, 1.0, 0.95, 10, 0)}, 2: {"gold": 1.0}}
    paths = write_evaluation(tmp_path / "new" / "folder", evaluation)
    assert [path.name for path in paths] == ["evaluation.json", "evaluation.md"]

    def refuse(name):
        raise AssertionError(name)

    got = json.loads(paths[0].read_text(), parse_constant=refuse)
    assert got == {"loss": "inf", "nan": "nan", "count": 3, "share": 0.5, "none": None, "2": {"gold": 1.0},
                   "array": {"interval": {"low": 0.0, "high": 1.0, "level": 0.95, "num_resamples": 10,
                                          "num_undefined": 0}}}
    text = paths[1].read_text()
    assert "| loss | inf |" in text and "| interval | 0.000 to 1.000 |" in text and text.endswith("|\n")


def test_a_whole_evaluation_is_written_with_its_plots(tmp_path):
    rng = np.random.default_rng(0)
    probabilities, labels = rng.dirichlet([1, 1, 1], 60), rng.integers(0, 3, 60)
    margins, sources = rng.standard_normal(60), rng.choice(["chat", "nli"], 60).tolist()
    evaluation = {"labels": label_metrics(probabilities, labels, ["no", "maybe", "yes"]),
                  "pairs": pair_metrics(margins, np.ones(60)),
                  "accuracy": bootstrap(lambda rows: float((margins[rows] > 0).mean()), 60, num_resamples=20),
                  "by_source": by_group(sources, lambda rows: pair_metrics(margins[rows], np.ones(len(rows))))}
    bins = reliability(probabilities, labels)
    paths = write_evaluation(tmp_path, evaluation, bins=bins,
                             scores={"_preferred$": margins, "other": -margins, "none": []})
    assert [path.name for path in paths] == ["evaluation.json", "evaluation.md", "reliability.png", "scores.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in paths)
    assert all(path.read_bytes()[:8] == PNG and path.stat().st_size > 5000 for path in paths[2:])
    content = json.loads(paths[0].read_text())
    assert len(content["reliability"]) == 15 and sum(part["count"] for part in content["reliability"]) == 60
    assert content["pairs"]["num_rows"] == 60
    text = paths[1].read_text()
    assert "### classes" in text and "| yes | " in text and "| chat | " in text
    # A later evaluation of the same folder leaves no plot of this one behind.
    assert [path.name for path in write_evaluation(tmp_path, {"a": 1})] == sorted(
        path.name for path in tmp_path.iterdir())


def test_equal_scores_and_one_row_can_be_plotted(tmp_path):
    paths = write_evaluation(tmp_path, {}, bins=reliability([1.0], [1]), scores={"all": [2.0, 2.0]})
    assert len(paths) == 4 and all(path.read_bytes()[:8] == PNG for path in paths[2:])


@pytest.mark.parametrize(("evaluation", "scores", "message"), [
    ({"a": [1, 2, 3]}, None, r"an evaluation must hold no lists of figures, got \[1, 2, 3\]"),
    ({"a": {1, 2}}, None, "an evaluation must hold numbers, texts, lists and mappings, got set"),
    ({"reliability": 1}, None, "evaluation must not have the name 'reliability'"),
    ({"a": {"b": {"c": {"d": {"e": {"f": {"g": 1}, "x": 1}, "x": 1}, "x": 1}, "x": 1}, "x": 1}}, None,
     "evaluation must be at most 5 mappings deep"),
    ({}, {"all": [1.0, math.nan]}, "scores of all must be finite, got nan"),
])
def test_what_cannot_be_shown_is_refused_before_anything_is_written(tmp_path, evaluation, scores, message):
    with pytest.raises(ValueError, match=message):
        write_evaluation(tmp_path / "folder", evaluation, scores=scores)
    assert not (tmp_path / "folder").exists()
