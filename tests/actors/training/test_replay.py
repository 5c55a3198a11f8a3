"""A part of the loop alone, with actors that are no Ray actors: what is stored, and what is trained on from it."""

import asyncio
import io
import json
from types import SimpleNamespace

import pytest

from actors.training import loop, replay
from actors.training.absent import NoLearners
from actors.training.held_out import HeldOut
from actors.training.replay import Replay, ReplayStream
from actors.training.stages import Stages
from actors.training.storing import Storing, rollouts_folder
from actors.training.unmeasured import Unmeasured
from rlaif.config.algorithm import AlgorithmConfig
from rlaif.config.checks import UserError
from rlaif.config.pipeline import PipelineConfig
from rlaif.config.prompts import PromptsConfig
from rlaif.config.reward_parts import RewardPartConfig
from rlaif.config.stored import StoredConfig
from rlaif.config.train import RewardConfig, RolloutConfig, TrainConfig
from rlaif.data.prompts import PromptStream, in_order
from rlaif.pipeline.ledger import Ledger
from rlaif.policy.training_batch import training_rows
from rlaif.rewards.plan import RewardPlan
from rlaif.running.report import Report, Stopwatch
from rlaif.running.rollout_store import StoredRollouts
from tests.helpers.fake_fleet import FakeJudge, Learners, fake_fleet, judge_part

PLAN = RewardPlan((RewardPartConfig(kind="judge", name="esfp"),), (judge_part("esfp"),))
ROWS = [{"prompt": f"p{number}", "prompt_ids": [number], "source": "s", "reference": None, "sample_weight": 1.0}
        for number in range(64)]
MADE_OF = {"tokenizer": "ab", "temperature": 1.0, "weights": {"esfp": 1.0}}
FIGURES = ("reward", "gold", "num_rollouts", "num_trained", "completion_tokens", "num_completion_tokens", "checksum",
           "staleness_max", "equal_reward_group_share")


class Reading(Learners):
    """Learners that note the rows that they read, whole."""

    def __init__(self):
        super().__init__(kl_per_token=0.1)
        self.rows = []

    async def update_policy(self, chosen, kl_coefficient, scored):
        self.rows.append(training_rows([await each for each in scored], chosen))
        return await super().update_policy(chosen, kl_coefficient, scored)


@pytest.fixture(autouse=True)
def here(monkeypatch):
    def put(value):
        future = asyncio.get_running_loop().create_future()
        future.set_result(value)
        return future

    monkeypatch.setattr(loop, "ray", SimpleNamespace(put=lambda value: value, get=lambda future: future.result()))
    monkeypatch.setattr(replay, "ray", SimpleNamespace(put=put))


def config(folder, mode="train", read=None, write=False, steps=4, algorithm=None, staleness=0, groups=4):
    folder.mkdir(exist_ok=True)
    return TrainConfig(
        output_dir=str(folder), mode=mode, stored=StoredConfig(write, None if read is None else str(read)), steps=steps,
        prompts=PromptsConfig("a", "b"), reward=RewardConfig("r"), algorithm=algorithm or AlgorithmConfig(),
        pipeline=PipelineConfig(max_staleness=staleness), rollout=RolloutConfig(groups_per_step=groups, group_size=2))


def every_other(row):
    return float(row["sample"]) * (row["group_id"] % 2)


def fleet_of(reward=lambda row: row["sample"] + 0.1 * row["group_id"]):
    return fake_fleet(PLAN, {"esfp": FakeJudge("esfp", reward, gold=lambda row: 1.0)}, {}, learners=Reading())


def without_learners():
    """As a fleet that no weights are brought to."""
    async def sync(version):
        return ""

    fleet = fleet_of()
    fleet.learners, fleet.sync = NoLearners(), sync
    return fleet


def trained(settings, fleet=None):
    """A run's fleet, what it came to, its steps and its console."""
    console, stored = io.StringIO(), settings.stored.read
    fleet = fleet or fleet_of()

    async def go():
        report, watch = Report(settings.output_dir, console), Stopwatch()
        stream = PromptStream(ROWS, 0) if stored is None else ReplayStream(StoredRollouts(stored))
        held_out = Unmeasured()
        if settings.mode == "train":
            held_out = HeldOut(fleet, in_order(ROWS[:6]), settings, report, watch)
        result = await loop.train(settings, fleet, stream, held_out, [], report, watch, lambda: 0.0,
                                  storing=Storing(settings, MADE_OF))
        report.close()
        return result

    result = asyncio.run(go())
    with open(f"{settings.output_dir}/metrics.jsonl") as file:
        return fleet, result, [json.loads(line) for line in file], console.getvalue()


@pytest.mark.parametrize("case", ["plain", "resampled", "ahead"])
def test_stored_rollouts_train_the_same_rows_step_by_step_as_the_run_that_stored_them(tmp_path, case):
    resampled = AlgorithmConfig(dynamic_sampling="resample", max_resampling=3)
    more = {"plain": {}, "resampled": {"algorithm": resampled}, "ahead": {"staleness": 2}}[case]
    fleet = fleet_of(every_other) if case == "resampled" else fleet_of()
    first, whole, steps, _ = trained(config(tmp_path / "first", write=True, **more), fleet)
    folder = rollouts_folder(str(tmp_path / "first"))
    second, again, replayed, _ = trained(config(tmp_path / "second", "replay", folder, **more))
    assert [rows.equals(other) for rows, other in zip(first.learners.rows, second.learners.rows, strict=True)] == [
        True] * 4
    assert first.learners.trained == second.learners.trained
    if case != "resampled":     # there, groups are left out that are not trained on
        for one, other in zip(steps, replayed, strict=True):
            assert {name: one[name] for name in FIGURES} == {name: other[name] for name in FIGURES}
    assert second.rollout.asked == [] and again.after == {} and again.steps == whole.steps == 4
    assert again.ledger["totals"]["trained"] == 16 and again.ledger["in_flight"] == []


@pytest.mark.parametrize("staleness", [0, 2])
def test_rolling_out_alone_stores_every_group_once_and_asks_no_learners(tmp_path, staleness):
    _, result, steps, console = trained(
        config(tmp_path / "run", "rollout", staleness=staleness), without_learners())
    stored = StoredRollouts(rollouts_folder(str(tmp_path / "run")))
    assert stored.groups == [(step, group) for step in (1, 2, 3, 4) for group in range(4 * step - 4, 4 * step)]
    assert (result.steps, result.tally.num_rollouts, result.before, result.after) == (4, 32, {}, {})
    assert [step["reward"] for step in steps] == pytest.approx([0.65, 1.05, 1.45, 1.85])
    assert "none: 0% of groups equal" in console and "test before" not in console
    assert all("grad_norm" not in step for step in steps)


def test_another_number_of_groups_a_step_takes_them_in_the_same_order(tmp_path):
    trained(config(tmp_path / "first", "rollout"), without_learners())
    fleet, _, _, _ = trained(config(tmp_path / "second", "replay", rollouts_folder(str(tmp_path / "first")),
                                     steps=2, groups=6))
    assert [groups for groups, _ in fleet.learners.trained] == [list(range(6)), list(range(6, 12))]


def test_a_file_that_was_changed_ends_the_replay_where_it_is_needed(tmp_path):
    trained(config(tmp_path / "first", "rollout"), without_learners())
    folder = rollouts_folder(str(tmp_path / "first"))
    (folder / "step-000000003.parquet").write_bytes(b"else")
    fleet = fleet_of()
    with pytest.raises(UserError, match=r"step-000000003.parquet must have blake2b"):
        trained(config(tmp_path / "second", "replay", folder), fleet)
    assert len(fleet.learners.trained) == 2


def test_a_replay_goes_on_where_it_was_with_what_it_had_in_flight(tmp_path):
    trained(config(tmp_path / "first", "rollout"), without_learners())
    settings = config(tmp_path / "second", "replay", rollouts_folder(str(tmp_path / "first")))

    async def half():
        stream = ReplayStream(StoredRollouts(settings.stored.read))
        feeder = Replay(None, stream, settings, Stages())
        feeder.grow(0)
        first = await feeder.take()
        feeder.trained(first)
        second = await feeder.take()        # taken and not trained; the third is being read
        state = feeder.ledger.state(), stream.state()
        await feeder.close()
        return first.kept + second.kept, state

    async def rest(ledger, state):
        stream = ReplayStream(StoredRollouts(settings.stored.read))
        stream.restore(state)
        ledger = Ledger.restore(ledger)
        ledger.redo(ledger.scored)
        feeder, found = Replay(None, stream, settings, Stages(), ledger), []
        for version in (1, 2, 3):
            feeder.grow(version)
            chosen = await feeder.take()
            if version == 1:
                feeder.again(chosen)        # no learner could read it
                chosen = await feeder.take()
            feeder.trained(chosen)
            found.append(chosen.kept)
        assert feeder.ledger.num_trained == 16 and feeder.ledger.num_waiting == 0
        await feeder.close()
        return found

    taken, (ledger, state) = asyncio.run(half())
    assert taken == list(range(8)) and json.loads(json.dumps(state)) == state
    assert asyncio.run(rest(ledger, state)) == [[4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
    with pytest.raises(UserError, match=r"stored.read must be the rollouts of the run that is resumed"):
        ReplayStream(StoredRollouts(settings.stored.read)).restore(state | {"content": "other"})
