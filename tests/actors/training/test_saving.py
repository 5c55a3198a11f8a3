"""The loop written down and taken up again, with actors that are no Ray actors and files that are files."""

import asyncio
import io
import json
import random
from pathlib import Path

import pytest
import ray

from actors.faults.ending import Ending
from actors.training.held_out import HeldOut, best_folder
from actors.training.loop import train
from actors.training.progress import Progress, Tally
from actors.training.saving import Saver, checkpoints_of, find, forget
from actors.training.stored_portions import read_portion, write_portion
from rlaif.batch import SCORED
from rlaif.config.algorithm import AlgorithmConfig
from rlaif.config.checkpoint import CheckpointConfig
from rlaif.config.checks import UserError
from rlaif.config.evaluation import EvaluationConfig, StopConfig
from rlaif.config.pipeline import PipelineConfig
from rlaif.config.prompts import CurriculumConfig
from rlaif.data.prompts import PromptStream, in_order
from rlaif.metrics import Max, Mean, Min, Sum
from rlaif.pipeline.ledger import Ledger
from rlaif.pipeline.portions import ScoredPortion
from rlaif.policy.controllers import KlController
from rlaif.running.manifest import entries_of
from rlaif.running.report import Report, Stopwatch
from tests.actors.training.test_loop import PLAN, ROWS, by_sample, config
from tests.helpers.batch_examples import table
from tests.helpers.fake_fleet import FakeJudge, Learners, fake_fleet

MADE_OF = {"config": "seed: 0\nsteps: 4\n", "tokenizer": "ab", "policy": "folder cd", "versions": {"torch": "2"}}


class Kept(Learners):
    """Learners whose weights are the groups that they were trained on."""

    async def update_policy(self, chosen, kl_coefficient, scored):
        return await super().update_policy(await chosen, kl_coefficient, scored)

    async def save_state(self, folder):
        Path(folder, "state").mkdir(parents=True)
        Path(folder, "state", "trained.json").write_text(json.dumps(self.trained))
        return entries_of(Path(folder), ["state/trained.json"])

    async def load_state(self, folder):
        found = json.loads(Path(folder, "state", "trained.json").read_text())
        self.trained = [(groups, coefficient) for groups, coefficient in found]


def reference(value):
    ready = asyncio.get_running_loop().create_future()
    ready.set_result(value)
    return ready


class Attempts:
    """One run in several processes, so to speak. `delay` may kill it, or ask it to end."""

    def __init__(self, settings, monkeypatch, reward=by_sample, curriculum=None):
        self.settings, self._reward, self._curriculum = settings, reward, curriculum
        monkeypatch.setattr(ray, "put", reference)
        monkeypatch.setattr(ray, "get", lambda future: future.result())
        self.console = io.StringIO()
        self.fleet = self.ending = self.saver = self._task = None

    def go(self, delay=None):
        """One attempt; what the training came to."""
        async def at_once(stage):
            await asyncio.sleep(0)

        async def attempt():
            self._task = asyncio.current_task()
            self.fleet = fake_fleet(PLAN, {"esfp": FakeJudge("esfp", self._reward, gold=lambda row: 1.0)}, {},
                                    learners=Kept(kl_per_token=0.1, kl=0.3), delay=delay or at_once)
            self.ending, watch = Ending(), Stopwatch()
            report = Report(self.settings.output_dir, self.console)
            find(self.settings, report.say)
            forget(self.settings, report.say)
            held_out = HeldOut(self.fleet, in_order(ROWS[:6]), self.settings, report, watch)
            self.saver = Saver(self.settings, self.fleet, report, watch, MADE_OF, self.ending)
            rows = ROWS[:6] if self._curriculum else ROWS     # several epochs
            stream = PromptStream(rows, 0, curriculum=self._curriculum)
            try:
                return await train(self.settings, self.fleet, stream, held_out, [], report, watch, lambda: 0.0,
                                   self.saver)
            finally:
                report.close()

        return asyncio.run(attempt())

    def kill(self):
        """Whatever it waits for, it goes no further."""
        self._task.cancel()

    def left(self):
        """What must be the same however often a run was killed."""
        folder = Path(self.settings.output_dir)
        files = {name: (folder / name).read_bytes() for name in ("metrics.jsonl", "evaluations.jsonl")}
        best = best_folder(self.settings.output_dir) / "version"
        return files | {"best": best.read_text() if best.exists() else None, "trained": self.fleet.learners.trained}


def at(moment, what, only=None):
    """A delay that does `what` the n-th time that any stage begins, or the one that is given."""
    count = 0

    async def delay(stage):
        nonlocal count
        is_one = only in (None, stage)
        count += is_one
        mine = count        # others begin meanwhile
        await asyncio.sleep(0)
        if is_one and mine == moment:
            what()

    return delay


SETTINGS = {
    "plain": {}, "resampling": {"algorithm": AlgorithmConfig(dynamic_sampling="resample", max_resampling=2)},
    "adaptive": {"algorithm": AlgorithmConfig(kl_target=0.1, kl_coefficient=0.05)},
    "best": {"evaluation": EvaluationConfig(every=1, select_by="reward", export="best")},
    "early": {"evaluation": EvaluationConfig(every=1, select_by="reward", stop=StopConfig(patience=2))},
}


@pytest.mark.parametrize("case", SETTINGS)
@pytest.mark.parametrize("curriculum", [None, CurriculumConfig(prefer="bounds", high=0.5)])
def test_a_run_that_is_killed_at_any_moment_ends_as_if_it_had_not_been(tmp_path, monkeypatch, case, curriculum):
    """Metrics, evaluations, the best weights and what was trained on: byte by byte."""
    def reward(row):
        return float(row["sample"]) * (row["group_id"] % 3 > 0)

    def run(name):
        settings = config(tmp_path / name, checkpoint=CheckpointConfig(every=1 + len(case) % 2), **SETTINGS[case])
        (tmp_path / name).mkdir()
        return Attempts(settings, monkeypatch, reward, curriculum)

    whole = run("whole")
    result = whole.go()
    chance = random.Random(case)
    for number in range(2):
        killed, num_kills = run(f"killed-{number}"), 0
        while True:
            try:
                again = killed.go(at(chance.randint(1, 60), killed.kill))
                break
            except asyncio.CancelledError:
                num_kills += 1
                assert num_kills < 200
        assert killed.left() == whole.left(), (case, number, num_kills)
        assert (again.steps, again.stopped, again.before, again.after, again.best_step) == (
            result.steps, result.stopped, result.before, result.after, result.best_step)
        assert (again.tally.num_rollouts, again.tally.max_logprob_gap) == (
            result.tally.num_rollouts, result.tally.max_logprob_gap)


@pytest.mark.parametrize("moment", [1, 9, 20, 33])
def test_a_run_that_is_asked_to_end_saves_the_last_whole_step_and_goes_on(tmp_path, monkeypatch, moment):
    for name in ("whole", "asked"):
        (tmp_path / name).mkdir()
    evaluation = EvaluationConfig(every=2)
    whole = Attempts(config(tmp_path / "whole", evaluation=evaluation), monkeypatch)
    whole.go()
    asked = Attempts(config(tmp_path / "asked", evaluation=evaluation), monkeypatch)
    first = asked.go(at(moment, lambda: asked.ending.ask("SIGTERM")))
    assert first.steps < 4 and asked.saver.ends == first.stopped == "SIGTERM"
    store = checkpoints_of(asked.settings)
    assert store.steps == ([first.steps] if first.steps else [])
    assert asked.go().steps == 4
    if first.steps:
        assert f"goes on after step {first.steps}" in asked.console.getvalue()
    assert asked.left() == whole.left()


@pytest.mark.parametrize(("case", "step"), [("best", 2), ("plain", 4)])
def test_an_evaluation_that_is_given_up_is_made_by_the_run_that_goes_on(tmp_path, monkeypatch, case, step):
    """In the middle, and the last one: a run without it is not complete."""
    def run(name):
        (tmp_path / name).mkdir()
        settings = config(tmp_path / name, **({"evaluation": EvaluationConfig(every=2)} | SETTINGS[case]))
        return Attempts(settings, monkeypatch)

    whole, asked = run("whole"), run("asked")
    result = whole.go()

    async def delay(stage):
        await asyncio.sleep(0)
        if stage == "rollout" and len(asked.fleet.learners.trained) == step:    # the next step's begin after it
            asked.ending.ask("SIGTERM")

    first = asked.go(delay)
    assert (first.steps, first.stopped, asked.saver.ends) == (step, "SIGTERM", "SIGTERM")
    again = asked.go()
    assert asked.left() == whole.left()
    assert (again.stopped, again.after, again.best_step) == (None, result.after, result.best_step)


def test_one_that_runs_ahead_goes_on_with_what_was_scored(tmp_path, monkeypatch):
    """Every group once: those in the checkpoint are not rolled out again, those in flight are."""
    (tmp_path / "run").mkdir()
    settings = config(tmp_path / "run", pipeline=PipelineConfig(max_staleness=2, portion_groups=1),
                      checkpoint=CheckpointConfig(every=1, keep=9))
    run = Attempts(settings, monkeypatch)
    chance, trained, num_kills = random.Random(3), [], 0
    while True:
        try:
            result = run.go(at(chance.randint(2, 3), run.kill, "learn"))
            break
        except asyncio.CancelledError:
            num_kills += 1
    trained = [group for groups, _ in run.fleet.learners.trained for group in groups]
    assert num_kills > 1 and trained == list(range(16)) and result.steps == 4
    contents = [json.loads((checkpoints_of(settings).path(step) / "run.json").read_text()) for step in (1, 2, 3)]
    assert any(content["num_portions"] for content in contents)
    for content in contents:
        assert content["ledger"]["totals"]["trained"] == 4 * content["step"]


def test_the_run_is_begun_anew_where_that_is_asked(tmp_path, monkeypatch):
    settings = config(tmp_path, checkpoint=CheckpointConfig(every=1))
    run = Attempts(settings, monkeypatch)
    with pytest.raises(asyncio.CancelledError):
        run.go(at(4, run.kill, "learn"))
    assert checkpoints_of(settings).steps
    settings.checkpoint.resume = "never"
    run.go(at(1000, run.kill))
    assert "checkpoint.resume is never: 2 checkpoints in " in run.console.getvalue()
    assert "goes on" not in run.console.getvalue() and len(run.fleet.learners.trained) == 4


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, monkeypatch):
    settings = config(tmp_path, checkpoint=CheckpointConfig(every=1))
    run = Attempts(settings, monkeypatch)
    with pytest.raises(asyncio.CancelledError):
        run.go(at(4, run.kill, "learn"))
    store = checkpoints_of(settings)
    before, newest = store.steps
    path = store.path(newest) / "learner" / "state" / "trained.json"
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)
    run.go()
    assert (f"checkpoint {store.path(newest)} is refused: learner/state/trained.json is not the file that was written"
            in run.console.getvalue())
    assert f"goes on after step {before}" in run.console.getvalue() and len(run.fleet.learners.trained) == 4


def test_damage_to_the_best_weights_of_the_newest_leaves_those_of_the_one_before(tmp_path, monkeypatch):
    evaluation = EvaluationConfig(every=1, select_by="reward")      # the first stays the best
    run = Attempts(config(tmp_path, checkpoint=CheckpointConfig(every=1), evaluation=evaluation), monkeypatch)
    with pytest.raises(asyncio.CancelledError):
        run.go(at(4, run.kill, "learn"))
    store = checkpoints_of(run.settings)
    before, newest = store.steps
    (store.path(newest) / "best" / "version").write_text("9")
    run.go()
    assert f"checkpoint {store.path(newest)} is refused: best/version is not" in run.console.getvalue()
    assert f"goes on after step {before}" in run.console.getvalue()
    assert (best_folder(run.settings.output_dir) / "version").read_text() == "0"


@pytest.mark.parametrize(("changed", "words"), [
    ({"config": "seed: 1\nsteps: 4\n"}, r"checkpoint must be of the same run, got .* \(seed is 0 there and 1 here\)"),
    ({"tokenizer": "xy"}, r"tokenizer must be that of the run that is resumed \(ab\), got another \(xy\)"),
    ({"policy": "folder xy"}, r"policy must be that of the run that is resumed \(folder cd\)"),
])
def test_a_checkpoint_of_another_run_is_refused_naming_what_differs(tmp_path, monkeypatch, changed, words):
    run = Attempts(config(tmp_path, checkpoint=CheckpointConfig(every=1)), monkeypatch)
    with pytest.raises(asyncio.CancelledError):
        run.go(at(4, run.kill, "learn"))
    monkeypatch.setitem(globals(), "MADE_OF", MADE_OF | changed)
    with pytest.raises(UserError, match=words):
        run.go()


def test_other_prompts_are_refused_and_other_versions_told(tmp_path, monkeypatch):
    run = Attempts(config(tmp_path, checkpoint=CheckpointConfig(every=1)), monkeypatch)
    with pytest.raises(asyncio.CancelledError):
        run.go(at(4, run.kill, "learn"))
    with monkeypatch.context() as patch:
        patch.setitem(globals(), "ROWS", [row | {"prompt": "another"} for row in ROWS])
        with pytest.raises(UserError, match="prompts must be those of the run that is resumed"):
            run.go()
    monkeypatch.setitem(globals(), "MADE_OF", MADE_OF | {"versions": {"torch": "3"}})
    run.go()
    assert "goes on with torch 3 in place of 2: numbers may differ" in run.console.getvalue()


def test_numbers_that_were_changed_by_hand_are_told(tmp_path, monkeypatch):
    run = Attempts(config(tmp_path, checkpoint=CheckpointConfig(every=1)), monkeypatch)
    with pytest.raises(asyncio.CancelledError):
        run.go(at(4, run.kill, "learn"))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text("".join(lines[1:]))
    run.go()
    assert " bytes of " in run.console.getvalue() and "metrics.jsonl has " in run.console.getvalue()


def test_a_full_disk_ends_the_run_with_one_line_and_leaves_no_half_checkpoint(tmp_path, monkeypatch):
    run = Attempts(config(tmp_path, checkpoint=CheckpointConfig(every=1)), monkeypatch)

    async def full(self, folder):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Kept, "save_state", full)
        with pytest.raises(UserError, match="must take what the run writes, got 'No space left on device"):
            run.go()
    assert list(checkpoints_of(run.settings).folder.iterdir()) == []
    assert run.go().steps == 4


def test_a_portion_comes_back_as_it_was(tmp_path, monkeypatch):
    scored = table(SCORED, {"group_id": 3, "sample": 0}, {"group_id": 3, "sample": 1})
    metrics = {"a": Mean(0.1 + 0.2, 3), "b": Sum(7), "c": Max(1e-300), "d": Min(None)}

    async def there_and_back():
        monkeypatch.setattr(ray, "put", reference)
        for number, summary in enumerate((scored.select(["group_id"]), None)):
            portion = ScoredPortion([3], [reference(scored)] * (2 - number), summary, 2, 99, metrics)
            await write_portion(tmp_path / str(number), portion)
            found = read_portion(tmp_path / str(number))
            assert [await each for each in found.tables] == [scored] * (2 - number)
            assert (found.group_ids, found.summary, found.num_rows, found.num_bytes, found.metrics) == (
                [3], summary, 2, 99, metrics)

    asyncio.run(there_and_back())


def test_a_portion_whose_rows_went_with_their_node_is_left_out_and_rolled_out_again(tmp_path, monkeypatch):
    run = Attempts(config(tmp_path, checkpoint=CheckpointConfig(every=1)), monkeypatch)
    run.go()
    ledger = Ledger()
    ledger.draw([0, 1])
    ledger.score([0, 1])
    held_out = HeldOut(run.fleet, in_order(ROWS[:6]), run.settings, None, None)
    scored = table(SCORED, {"group_id": 1, "sample": 0})

    async def there_and_back():
        saver = Saver(run.settings, run.fleet, Report(tmp_path, io.StringIO()), Stopwatch(), MADE_OF, Ending())
        gone = asyncio.get_running_loop().create_future()
        gone.set_exception(ray.exceptions.ObjectLostError("ab" * 28, None, ""))
        checkpoints_of(run.settings).clear()
        buffered = [ScoredPortion([0], [gone], None, 1), ScoredPortion([1], [reference(scored)], scored, 1)]
        await saver.save(Progress(1, PromptStream(ROWS, 0), ledger, KlController(0.5), held_out, Tally(), buffered))
        return await saver.restore(Progress(0, PromptStream(ROWS, 0), Ledger(), KlController(0.1), held_out, Tally()))

    found = asyncio.run(there_and_back())
    assert (found.ledger.in_flight, found.ledger.scored) == ([0], [1])
    assert [portion.group_ids for portion in found.buffered] == [[1]]


def test_what_was_scored_and_is_not_in_the_checkpoint_is_rolled_out_again(tmp_path, monkeypatch):
    """A step that was given up while it replaced groups has taken some of them already."""
    run = Attempts(config(tmp_path, checkpoint=CheckpointConfig(every=1)), monkeypatch)
    run.go()
    ledger = Ledger()
    ledger.draw([0, 1, 2])
    ledger.score([0, 1])
    held_out = HeldOut(run.fleet, in_order(ROWS[:6]), run.settings, None, None)

    async def there_and_back():
        report = Report(tmp_path, io.StringIO())
        saver = Saver(run.settings, run.fleet, report, Stopwatch(), MADE_OF, Ending())
        progress = Progress(1, PromptStream(ROWS, 0), ledger, KlController(0.5), held_out, Tally(1.5, 3, 0.25))
        checkpoints_of(run.settings).clear()
        await saver.save(progress)
        fresh = Progress(0, PromptStream(ROWS, 0), Ledger(), KlController(0.1), held_out, Tally())
        return await saver.restore(fresh)

    found = asyncio.run(there_and_back())
    assert (found.step, found.controller, found.tally) == (1, KlController(0.5), Tally(1.5, 3, 0.25))
    assert found.ledger.in_flight == [0, 1, 2] and found.ledger.scored == []
