import io
import json
import shutil
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlaif.config.checks import UserError
from rlaif.running.report import Report, Stopwatch, before_after_table, sample_lines, stage_lines, write_json
from tests.helpers.disks import small_disk

VALUES = {
    "reward": 0.5, "gold": 0.25, "fluent": 1.0, "kl_per_token": 0.125, "max_logprob_gap": 1e-6,
    "completion_tokens": 10.5, "num_trained": 12,
    "step_s": 2.0, "num_rollouts": 16, "num_completion_tokens": 168, "num_cut": 1, "explanation_tokens": 30.25,
    "num_explanations": 48.0, "explanations_cut": 2.0, "explanations_failed": 0.0, "explanations_empty": 0.0,
    "slot_inputs_cut": 3.0, "judged_without_explanation": 2.0, "equal_reward_group_share": 0.5, "grad_norm": 1.5,
    "policy_version": 7, "checksum": "0123456789abcdef",
    "rollout_s": 0.5, "explain_s": 0.75, "score_s": 0.25, "learn_s": 1.0, "sync_s": 0.125,
}
ROW = {"prompt": "Say\n  so", "completion": "so", "explanations": ["x" * 300], "slot_probabilities": [0.75, 0.25],
       "reward": 0.75, "reward_parts": [("esfp", 0.75)], "judge_verdicts": [("gold", 1.0)]}


def test_a_step_is_shown_stage_by_stage():
    assert stage_lines(7, 80, VALUES) == [
        "step  7/80  reward 0.500  gold 0.250  fluent 1.000  kl 0.125  gap 1e-06  length 10.5  2.00 s",
        "  rollout   0.50 s  16 completions, 168 tokens, 1 cut",
        "  explain   0.75 s  48 explanations, 30.2 tokens each, 2 cut",
        "  score     0.25 s  16 rewards, 3 inputs cut, 2 without explanation",
        "  learn     1.00 s  12 rows, 50% of groups equal, gradient norm 1.50",
        "  sync      0.12 s  weights 7 01234567",
    ]


def test_figures_that_a_run_does_not_have_are_left_out_of_the_headline():
    values = {name: value for name, value in VALUES.items() if name not in ("gold", "fluent", "kl_per_token")}
    assert stage_lines(1, 9, values)[0] == "step 1/9  reward 0.500  gap 1e-06  length 10.5  2.00 s"


def test_groups_that_were_replaced_are_told_where_the_run_replaces_them():
    values = VALUES | {"num_replaced_groups": 5, "num_resampling_rounds": 3, "num_equal_groups_kept": 1}
    assert stage_lines(1, 9, values)[4] == (
        "  learn     1.00 s  12 rows, 50% of groups equal (5 replaced in 3 rounds, 1 kept), gradient norm 1.50")


def test_explanations_that_are_missing_are_shown_where_there_are_some():
    bad = VALUES | {"explanations_failed": 3.0, "explanations_empty": 1.0}
    assert stage_lines(1, 9, bad)[2] == (
        "  explain   0.75 s  48 explanations, 30.2 tokens each, 2 cut, 3 failed, 1 empty")
    without = {name: value for name, value in VALUES.items() if not name.startswith("explanation")}
    assert stage_lines(1, 9, without)[2] == "  explain   0.75 s  none asked for"


def test_a_sample_is_shown_from_prompt_to_gold_a_line_each():
    lines = sample_lines([ROW, ROW | {"judge_verdicts": []}], ["verdict:yes", "verdict:no"])
    assert lines[:5] == [
        "  | prompt       Say so", "  | completion   so", "  | explanation  " + "x" * 157 + "...",
        "  | slots        verdict:yes 0.75  verdict:no 0.25  reward 0.75  gold 1", "  |"]
    assert lines[-1] == "  | slots        verdict:yes 0.75  verdict:no 0.25  reward 0.75"
    assert sample_lines([], ["verdict:yes"]) == []


def test_a_sample_has_a_line_for_each_of_its_explanations_and_none_without():
    several, none = (sample_lines([ROW | {"explanations": texts}], ["verdict:yes", "verdict:no"])
                     for texts in (["so", "and so"], []))
    assert several[2:4] == ["  | explanation  so", "  | explanation  and so"] and len(several) == 5
    assert [line.split()[1] for line in none] == ["prompt", "completion", "slots"]


def test_a_sample_shows_the_parts_of_its_reward_where_it_has_several_and_slots_where_there_are_some():
    row = ROW | {"reward_parts": [("esfp", 0.75), ("length", -0.5)], "reward": 0.25}
    assert sample_lines([row], ["verdict:yes", "verdict:no"])[3:] == [
        "  | parts        esfp 0.75  length -0.50",
        "  | slots        verdict:yes 0.75  verdict:no 0.25  reward 0.25  gold 1"]
    rules = row | {"slot_probabilities": [], "explanations": [], "judge_verdicts": []}
    assert sample_lines([rules], [])[-1] == "  | reward 0.25"


def test_a_reward_without_a_judge_has_no_inputs_to_cut():
    values = {name: value for name, value in VALUES.items()
              if name not in ("slot_inputs_cut", "judged_without_explanation")}
    assert stage_lines(1, 9, values)[3] == "  score     0.25 s  16 rewards"
    assert stage_lines(1, 9, values | {"rows_unjudged": 2.0})[3] == (
        "  score     0.25 s  16 rewards, 2 not judged by any part")


def test_a_slot_without_its_label_is_an_error():
    with pytest.raises(ValueError):
        sample_lines([ROW], ["verdict:yes"])


def test_the_table_holds_what_was_measured_before_and_after():
    before = {"reward": 0.5, "kl": 0.0, "only": 1.0, "completion_tokens": 12.5, "max_logprob_gap": 0.0}
    after = {"reward": 0.75, "kl": 0.1234, "new": 1.0, "completion_tokens": 13.25, "max_logprob_gap": 1.5e-5}
    assert before_after_table(before, after) == [
        "                            before     after",
        "  reward                     0.500     0.750",
        "  kl                         0.000     0.123",
        "  length                    12.500    13.250",
        "  max_logprob_gap            0.000     2e-05",
    ]


def test_metrics_have_one_object_a_step_and_the_console_what_was_said(tmp_path):
    console = io.StringIO()
    report = Report(tmp_path, console)
    report.say("all actors ready")
    for step in (1, 2):
        report.step(step, {"reward": 0.5 * step, "checksum": "ab", "num_cut": step})
        # written at once: a run that is killed keeps its steps
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == [
            {"step": n, "reward": 0.5 * n, "checksum": "ab", "num_cut": n} for n in range(1, step + 1)]
    report.close()
    assert console.getvalue() == "all actors ready\n"


def test_what_a_clock_says_has_a_file_of_its_own_and_tensorboard_has_all(tmp_path):
    """The other file is the same in every run of a configuration, byte by byte."""
    report = Report(tmp_path, io.StringIO())
    report.step(1, {"reward": 0.5, "step_s": 2.0, "peak_gb": 3.5, "num_is_s_no_suffix": 1}, {"queue_depth": 4})
    report.rewind(1)
    report.step(2, {"reward": 0.25})
    assert report.sizes() == {"metrics.jsonl": (tmp_path / "metrics.jsonl").stat().st_size}
    report.close()
    assert (tmp_path / "metrics.jsonl").read_text() == (
        '{"step": 1, "reward": 0.5, "num_is_s_no_suffix": 1}\n{"step": 2, "reward": 0.25}\n')
    assert (tmp_path / "timings.jsonl").read_text() == '{"step": 1, "step_s": 2.0, "peak_gb": 3.5, "queue_depth": 4}\n'
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert {"reward", "step_s", "peak_gb", "queue_depth"} <= set(board.Tags()["scalars"])


def test_a_rewind_ends_at_the_first_line_that_is_none(tmp_path):
    """As a power cut may leave it: what comes after was written later."""
    report = Report(tmp_path, io.StringIO())
    report.step(1, {"reward": 1.0})
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b"\0\0\0\n" + b'{"step": 2, "reward": 2.0}\n')
    report.rewind(5)
    report.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "reward": 1.0}\n'


def test_a_rewind_forgets_what_came_after_a_checkpoint_of_the_same_step(tmp_path):
    """An evaluation that was given up, made again, and lost with the process before anything was written down."""
    report = Report(tmp_path, io.StringIO())
    report.evaluation(0, {"reward": 1.0})
    sizes = report.sizes()
    report.evaluation(2, {"reward": 2.0})
    report.rewind(2, sizes)
    report.close()
    assert (tmp_path / "evaluations.jsonl").read_text() == '{"step": 0, "reward": 1.0}\n'


def test_a_run_that_is_taken_up_again_keeps_the_numbers_up_to_its_checkpoint(tmp_path):
    report = Report(tmp_path, io.StringIO())
    for step in (1, 2, 3):
        report.step(step, {"reward": float(step)})
    report.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "rew')      # cut short by a kill
    time.sleep(1.1)     # TensorBoard's files are in the order of their names, which tell the second
    again = Report(tmp_path, io.StringIO())
    again.rewind(2)
    again.step(3, {"reward": 30.0})
    again.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "reward": 1.0}, {"step": 2, "reward": 2.0}, {"step": 3, "reward": 30.0}]
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(event.step, event.value) for event in board.Scalars("reward")] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_evaluations_have_one_object_each_in_a_file_of_their_own(tmp_path):
    report = Report(tmp_path, io.StringIO())
    assert not (tmp_path / "evaluations.jsonl").exists(), "a run without evaluations has no file of them"
    for step in (0, 5, 10):
        report.evaluation(step, {"reward": 0.25 * step, "greedy_gold": 0.5})
    report.rewind(5)
    report.close()
    lines = [json.loads(line) for line in (tmp_path / "evaluations.jsonl").read_text().splitlines()]
    assert lines == [{"step": step, "reward": 0.25 * step, "greedy_gold": 0.5} for step in (0, 5)]
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert sorted(board.Tags()["scalars"]) == ["test/greedy_gold", "test/reward"]
    assert [(event.step, event.value) for event in board.Scalars("test/reward")] == [(0, 0.0), (5, 1.25)]


def test_tensorboard_shows_the_numbers_of_every_step(tmp_path):
    report = Report(tmp_path, io.StringIO())
    for step in (1, 2):
        report.step(step, {"reward": 0.5 * step, "checksum": "ab", "num_cut": step})
    report.close()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert sorted(board.Tags()["scalars"]) == ["num_cut", "reward"]
    assert [(event.step, event.value) for event in board.Scalars("reward")] == [(1, 0.5), (2, 1.0)]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")     # TensorBoard's own thread
def test_a_full_disk_is_told_in_one_line_and_leaves_whole_lines(tmp_path):
    console = io.StringIO()
    with small_disk(tmp_path / "disk", 1) as disk:
        report = Report(disk, console)
        with pytest.raises(UserError, match=r"output_dir must take what the run writes, got 'No space left on device"):
            for step in range(1, 100_000):
                report.step(step, {f"figure_{number}": 0.5 for number in range(50)})
        report.close()
        shutil.rmtree(disk / "tensorboard")
        again = Report(disk, console)
        again.rewind(step - 2)
        again.close()
        lines = [json.loads(line) for line in (disk / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == list(range(1, step - 1))


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "summary.json"
    write_json(path, {"kl": None, "reward": 0.5})
    assert json.loads(path.read_text()) == {"kl": None, "reward": 0.5}
    with pytest.raises(TypeError):
        write_json(path, {"reward": object()})
    assert json.loads(path.read_text()) == {"kl": None, "reward": 0.5}
    write_json(path, {"reward": 1})
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]


def test_seconds_of_one_name_add_up():
    watch = Stopwatch()
    for name, seconds in (("rollout", 0.5), ("learn", 0.25), ("rollout", 1.0)):
        watch.add(name, seconds)
    assert watch.seconds == {"rollout": 1.5, "learn": 0.25}
    first = watch.total
    assert 0 <= first <= watch.total < 60
