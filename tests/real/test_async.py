"""Generation ahead of learning, on the real stack; and the same bytes from the same seed where it is not."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from tests.real.conftest import Run, run_short

STEPS = 8
AHEAD = (f"steps={STEPS}", "pipeline.max_staleness=1", "report.samples_every=0", "evaluation.every=0")


@pytest.fixture(scope="module")
def ahead(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_short(tmp_path_factory.mktemp("ahead") / "run", *AHEAD)


def test_it_runs_to_the_end_and_trains_every_group_once(ahead: Run) -> None:
    assert ahead.summary["steps"] == STEPS == len(ahead.steps)
    for line in ahead.steps:
        assert line["num_trained"] == line["num_rollouts"] == 16
        assert line["policy_version"] == line["step"]
    assert len({line["checksum"] for line in ahead.steps}) == STEPS


def test_rollouts_are_stale_by_a_step_at_most_and_some_are(ahead: Run) -> None:
    staleness = [line["staleness_max"] for line in ahead.steps]
    assert max(staleness) == 1 and min(line["staleness_mean"] for line in ahead.steps) == 0
    assert all(0 <= line["staleness_mean"] <= line["staleness_max"] for line in ahead.steps)


def test_the_policy_is_no_worse_than_it_was(ahead: Run) -> None:
    """24 test prompts: a standard error of 0.1 before and after."""
    assert ahead.summary["gold_after"] > ahead.summary["gold_before"] - 0.3
    assert statistics.mean(line["gold"] for line in ahead.steps) > 0.2


def test_engine_and_learner_differ_by_the_staleness_alone(ahead: Run) -> None:
    """The first step's rollouts are of the weights that it trains."""
    assert ahead.steps[0]["max_logprob_gap"] <= 1e-4 < max(line["max_logprob_gap"] for line in ahead.steps)


def test_same_seed_same_bytes(short_run: Run, tmp_path: Path) -> None:
    again = run_short(tmp_path / "again")
    assert again.summary["weights_checksum"] == short_run.summary["weights_checksum"]
    assert [line["checksum"] for line in again.steps] == [line["checksum"] for line in short_run.steps]
    for first, second in zip(short_run.steps, again.steps, strict=True):
        for name in ("reward", "gold", "completion_tokens", "num_completion_tokens", "explanation_tokens"):
            assert first[name] == second[name], (first["step"], name)
    names = ("policy/model.safetensors", "evaluations.jsonl")
    for name in names:
        assert (again.output_dir / name).read_bytes() == (short_run.output_dir / name).read_bytes(), name
    evaluated = [json.loads(line) for line in (again.output_dir / "evaluations.jsonl").read_text().splitlines()]
    assert [line["step"] for line in evaluated] == [0, 3]
