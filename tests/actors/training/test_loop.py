"""The loop with actors that are no Ray actors: what is trained on, when it is measured, when it ends."""

import asyncio
import dataclasses
import io
import json
from pathlib import Path

import pytest

from actors.faults.pool import InputsLost
from actors.training import loop
from actors.training.held_out import HeldOut, best_folder
from actors.training.loop import Trained, kl_controller, train
from actors.training.stages import STAGES
from rlaif.config.algorithm import AlgorithmConfig
from rlaif.config.evaluation import EvaluationConfig, StopConfig
from rlaif.config.pipeline import PipelineConfig
from rlaif.config.prompts import PromptsConfig
from rlaif.config.reward_parts import RewardPartConfig
from rlaif.config.train import ReportConfig, RewardConfig, RolloutConfig, TrainConfig
from rlaif.data.prompts import PromptStream, in_order
from rlaif.rewards.plan import RewardPlan
from rlaif.running.report import Report, Stopwatch
from tests.helpers.fake_fleet import FakeJudge, Learners, fake_fleet, judge_part

PLAN = RewardPlan((RewardPartConfig(kind="judge", name="esfp"),), (judge_part("esfp"),))
ROWS = [{"prompt": f"p{number}", "prompt_ids": [number], "source": "s", "reference": None, "sample_weight": 1.0}
        for number in range(64)]


def config(tmp_path, algorithm=None, evaluation=None, **changes):
    return TrainConfig(
        output_dir=str(tmp_path), prompts=PromptsConfig("a", "b"), reward=RewardConfig("r"), steps=4,
        rollout=RolloutConfig(groups_per_step=4, group_size=2), algorithm=algorithm or AlgorithmConfig(),
        evaluation=evaluation or EvaluationConfig(), **({"pipeline": PipelineConfig(portion_groups=1)} | changes))


def fleet_of(reward, **metrics):
    return fake_fleet(PLAN, {"esfp": FakeJudge("esfp", reward, gold=lambda row: 1.0)}, {},
                      learners=Learners(kl_per_token=0.1, **metrics))


def by_sample(row):
    return float(row["sample"])


def trained(fleet, settings, monkeypatch):
    """What a run came to, and its console."""
    monkeypatch.setattr(loop.ray, "put", lambda value: value)
    monkeypatch.setattr(loop.ray, "get", lambda future: future.result())
    console = io.StringIO()

    async def go():
        report, watch = Report(settings.output_dir, console), Stopwatch()
        held_out = HeldOut(fleet, in_order(ROWS[:6]), settings, report, watch)
        return await train(settings, fleet, PromptStream(ROWS, 0), held_out, [], report, watch, lambda: 0.0)

    return asyncio.run(go()), console.getvalue()


def lines(folder, name):
    return [json.loads(line) for line in (Path(folder) / name).read_text().splitlines()]


def test_every_step_trains_on_its_groups_and_is_told(tmp_path, monkeypatch):
    fleet, settings = fleet_of(by_sample, kl=0.25), config(tmp_path)
    result, console = trained(fleet, settings, monkeypatch)
    assert [groups for groups, _ in fleet.learners.trained] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11],
                                                                [12, 13, 14, 15]]
    assert isinstance(result, Trained) and (result.steps, result.stopped, result.tally.num_rollouts) == (4, None, 32)
    steps = lines(tmp_path, "metrics.jsonl")
    assert [step["step"] for step in steps] == [1, 2, 3, 4]
    for step in steps:
        assert (step["reward"], step["gold"], step["num_trained"], step["num_rollouts"]) == (0.5, 1.0, 8, 8)
        assert step["policy_version"] == step["step"] and step["checksum"] == f"{step['step']:016x}"
        assert step["kl_coefficient"] == 0.02 and step["equal_reward_group_share"] == 0.0
    assert [line["step"] for line in lines(tmp_path, "evaluations.jsonl")] == [0, 4]
    assert "test before: 6 prompts  reward 0.000  gold 1.000" in console and "test at step 4: " in console
    assert result.before.keys() == result.after.keys() == {"reward", "gold", "kl", "completion_tokens",
                                                           "max_logprob_gap", "identical_share"}


def test_after_the_last_round_groups_of_equal_rewards_fill_the_step_and_are_counted(tmp_path, monkeypatch):
    fleet = fleet_of(lambda row: float(row["sample"]) * (row["group_id"] == 1))
    settings = dataclasses.replace(
        config(tmp_path, AlgorithmConfig(dynamic_sampling="resample", max_resampling=1)), steps=1)
    trained(fleet, settings, monkeypatch)
    assert fleet.learners.trained[0][0] == [1, 4, 5, 6], "what the last round drew is taken as it is"
    step = lines(tmp_path, "metrics.jsonl")[0]
    assert (step["num_replaced_groups"], step["num_equal_groups_kept"], step["num_resampling_rounds"]) == (3, 3, 1)
    assert (step["num_rollouts"], step["num_trained"]) == (14, 8)
    assert step["equal_reward_group_share"] == pytest.approx(6 / 7), "of all that was rolled out"


def test_the_kl_coefficient_follows_the_kl_of_the_steps(tmp_path, monkeypatch):
    algorithm = AlgorithmConfig(kl_coefficient=0.1, kl_target=2.0, kl_horizon=8)
    fleet = fleet_of(by_sample, kl=4.0)
    trained(fleet, config(tmp_path, algorithm), monkeypatch)
    used = [coefficient for _, coefficient in fleet.learners.trained]
    # exp(0.2 * 8 / 8) a step: an error of 100 % is cut to 20 %
    assert used == pytest.approx([0.1, 0.1 * 1.2214, 0.1 * 1.4918, 0.1 * 1.8221], rel=1e-4)
    assert [step["kl_coefficient"] for step in lines(tmp_path, "metrics.jsonl")] == used
    assert kl_controller(AlgorithmConfig(kl_coefficient=0.1)).after(9.0, 8).coefficient == 0.1, "without a target"


def test_a_step_without_a_token_to_learn_leaves_the_kl_coefficient_as_it_is(tmp_path, monkeypatch):
    fleet = fleet_of(by_sample)
    trained(fleet, config(tmp_path, AlgorithmConfig(kl_coefficient=0.1, kl_target=2.0, kl_horizon=8)), monkeypatch)
    assert [coefficient for _, coefficient in fleet.learners.trained] == [0.1] * 4


def test_the_policy_is_measured_as_often_as_asked_and_the_best_weights_are_kept(tmp_path, monkeypatch):
    """The reward of the start is 1; after updates 1, 2, 3, 4 it is 2, 5, 3, 4."""
    fleet = fleet_of(lambda row: [1.0, 2.0, 5.0, 3.0, 4.0][len(fleet.learners.trained)])
    settings = config(tmp_path, evaluation=EvaluationConfig(every=1, select_by="reward"))
    result, console = trained(fleet, settings, monkeypatch)
    assert [line["reward"] for line in lines(tmp_path, "evaluations.jsonl")] == [1.0, 2.0, 5.0, 3.0, 4.0]
    assert result.best_step == 2 and len(fleet.learners.saved) == 3
    assert (best_folder(str(tmp_path)) / "version").read_text() == "2"
    assert sorted(path.name for path in Path(tmp_path).iterdir() if path.is_dir()) == ["best", "tensorboard"]
    assert [line.endswith("  best") for line in console.splitlines() if line.startswith("test ")] == [
        True, True, True, False, False]
    assert fleet.rollout.asked == [(6, 1, False)] + [(4, 2, False), (6, 1, False)] * 4


def test_both_modes_are_measured_and_greedy_figures_have_their_own_names(tmp_path, monkeypatch):
    fleet = fleet_of(by_sample, kl=0.5)
    settings = config(tmp_path, evaluation=EvaluationConfig(modes=["sampled", "greedy"], group_size=3))
    result, _ = trained(fleet, dataclasses.replace(settings, steps=1), monkeypatch)
    assert fleet.rollout.asked[:2] == [(6, 3, False), (6, 1, True)]
    assert (result.after["reward"], result.after["greedy_reward"], result.after["kl"]) == (1.0, 0.0, 0.5)
    assert "greedy_kl" not in result.after, "greedy completions are no sample of the policy"


@pytest.mark.parametrize(
    ("stop", "rewards", "kl", "reason"),
    [
        (StopConfig(patience=2), [1.0, 2.0, 2.0, 1.5, 9.0], 0.0,
         "reward was not higher than 2 of step 1 in 2 evaluations"),
        (StopConfig(kl_limit=3.0), [1.0, 2.0, 3.0, 4.0, 5.0], 3.5,
         "kl of 3.5 nats is above evaluation.stop.kl_limit 3"),
    ],
)
def test_a_run_ends_early_and_says_why(tmp_path, monkeypatch, stop, rewards, kl, reason):
    fleet = fleet_of(lambda row: rewards[len(fleet.learners.trained)], kl=0.0)
    settings = config(tmp_path, evaluation=EvaluationConfig(every=1, select_by="reward", stop=stop))
    update = fleet.learners.update_policy

    async def drifting(*asked):
        found = await update(*asked)
        fleet.learners.metrics["kl"] = kl if len(fleet.learners.trained) == 3 else 0.0
        return found

    fleet.learners.update_policy = drifting
    result, console = trained(fleet, settings, monkeypatch)
    assert (result.steps, result.stopped) == (3, reason)
    assert f"ends after step 3 of 4: {reason}" in console
    assert [line["step"] for line in lines(tmp_path, "evaluations.jsonl")] == [0, 1, 2, 3]


def test_what_an_attempt_before_kept_as_best_is_removed(tmp_path):
    settings = config(tmp_path)
    best_folder(settings.output_dir).mkdir()
    HeldOut(None, in_order(ROWS[:1]), settings, None, None).begin()
    assert not best_folder(settings.output_dir).exists()


def test_rows_that_no_learner_can_read_any_more_are_rolled_out_anew(tmp_path, monkeypatch):
    fleet, settings = fleet_of(by_sample), config(tmp_path)
    update, asked = fleet.learners.update_policy, []

    async def second_fails(*arguments):
        asked.append(True)
        if len(asked) == 2:
            raise InputsLost("gone with its node")
        return await update(*arguments)

    fleet.learners.update_policy = second_fails
    result, _ = trained(fleet, settings, monkeypatch)
    assert [groups for groups, _ in fleet.learners.trained] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11],
                                                                [12, 13, 14, 15]]
    assert result.steps == 4
    assert [step["portions_retried"] for step in lines(tmp_path, "metrics.jsonl")] == [0, 1, 0, 0]


@pytest.mark.parametrize("staleness", [0, 2])
def test_every_step_says_how_stale_it_is_and_what_every_stage_took(tmp_path, monkeypatch, staleness):
    fleet = fleet_of(by_sample)
    trained(fleet, config(tmp_path, pipeline=PipelineConfig(max_staleness=staleness)), monkeypatch)
    assert [groups for groups, _ in fleet.learners.trained] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11],
                                                                [12, 13, 14, 15]]
    for step in lines(tmp_path, "metrics.jsonl"):
        assert 0 <= step["staleness_mean"] <= step["staleness_max"] <= min(staleness, step["step"] - 1)
        assert step["groups_in_flight"] + step["groups_buffered"] <= 4 * (staleness + 1)
        assert (step["groups_discarded"], step["groups_skipped"], step["portions_retried"]) == (0, 0, 0)
    for step in lines(tmp_path, "timings.jsonl"):
        for stage in STAGES:
            assert step[f"{stage}_s"] >= 0 and 0 <= step[f"{stage}_idle_s"] <= step["step_s"]


def test_an_evaluation_whose_rows_went_with_their_node_begins_anew(tmp_path, monkeypatch):
    whole, lossy = fleet_of(by_sample, kl=0.25), fleet_of(by_sample, kl=0.25)
    drift, calls = lossy.learners.drift, []

    async def lost_once(scored):
        calls.append(len(scored))
        if len(calls) == 1:
            raise InputsLost("rows are lost: node 7 is gone")
        return await drift(scored)

    lossy.learners.drift = lost_once
    results = [trained(fleet, config(tmp_path / name), monkeypatch)[0] for name, fleet in (
        ("whole", whole), ("lossy", lossy))]
    assert results[0].before == results[1].before and results[0].after == results[1].after
    assert len(calls) == 3 and lossy.budget.total == 1, "it is counted"


def test_samples_that_went_with_their_node_are_missed_and_the_run_goes_on(tmp_path, monkeypatch):
    async def gone(reference):
        raise InputsLost("rows are lost: node 7 is gone")

    monkeypatch.setattr(loop, "here", gone)
    result, console = trained(fleet_of(by_sample), config(tmp_path, report=ReportConfig(samples_every=2)), monkeypatch)
    assert result.steps == 4 and console.count("  no samples: rows are lost: node 7 is gone") == 2
