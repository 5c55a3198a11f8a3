import dataclasses
import subprocess

import pytest

from rlaif.config.checkpoint import CheckpointConfig
from rlaif.config.checks import UserError
from rlaif.config.prompts import PromptsConfig
from rlaif.config.train import EngineConfig, RewardConfig, RoleConfig, TrainConfig
from rlaif.running import manifest
from rlaif.running.lock import held
from rlaif.running.run_folder import claim, finish, refuse_other_run
from tests.helpers.disks import small_disk


@pytest.fixture
def folder(tmp_path):
    return str(tmp_path / "outputs" / "run")


def config(folder, **changes):
    return TrainConfig(output_dir=folder, prompts=PromptsConfig("a", "b"), reward=RewardConfig("r"), **changes)


def test_a_new_folder_is_free_and_stays_unmade_until_it_is_claimed(folder, tmp_path):
    assert refuse_other_run(folder, config(folder)) is False
    assert not (tmp_path / "outputs").exists()
    claim(folder, config(folder))
    assert refuse_other_run(folder, config(folder)) is False


def test_a_finished_run_is_known_as_finished(folder):
    claim(folder, config(folder))
    finish(folder)
    assert refuse_other_run(folder, config(folder)) is True


def test_what_a_run_made_is_on_the_disk_before_it_is_marked_as_complete(folder, tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(manifest, "sync", lambda path: synced.append(
        (path.name, (tmp_path / "outputs" / "run" / "done").exists())))
    claim(folder, config(folder))
    (tmp_path / "outputs" / "run" / "policy").mkdir()
    (tmp_path / "outputs" / "run" / "policy" / "model.safetensors").write_bytes(b"weights")
    finish(folder)
    assert {("policy", False), ("model.safetensors", False)} <= set(synced)


def test_what_an_unfinished_attempt_left_is_begun_anew(folder, tmp_path):
    claim(folder, config(folder))
    run = tmp_path / "outputs" / "run"
    (run / "metrics.jsonl").write_text("{}\n")
    (run / "evaluations.jsonl").write_text("{}\n")
    (run / "timings.jsonl").write_text("{}\n")
    (run / "tensorboard").mkdir()
    claim(folder, config(folder))
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml"]


def test_what_a_run_that_is_taken_up_again_left_is_kept(folder, tmp_path):
    claim(folder, config(folder))
    run = tmp_path / "outputs" / "run"
    (run / "metrics.jsonl").write_text("{}\n")
    (run / "tensorboard").mkdir()
    claim(folder, config(folder), anew=False)
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "metrics.jsonl", "tensorboard"]


def test_another_configuration_is_refused_with_the_key_that_differs(folder):
    claim(folder, config(folder))
    finish(folder)
    with pytest.raises(UserError, match=r"holds another run \(seed is 0 there and 1 here\); choose another output_dir"):
        refuse_other_run(folder, config(folder, seed=1))


def test_two_values_that_changed_places_are_another_run(folder):
    one = config(folder)
    one.rollout.engine, one.explainer.engine = EngineConfig(max_num_seqs=2), EngineConfig(max_num_seqs=1)
    other = dataclasses.replace(
        one, rollout=dataclasses.replace(one.rollout, engine=one.explainer.engine),
        explainer=dataclasses.replace(one.explainer, engine=one.rollout.engine))
    claim(folder, one)
    with pytest.raises(UserError, match=r"rollout.engine.max_num_seqs is 2 there and 1 here"):
        refuse_other_run(folder, other)


def test_a_run_that_is_moved_placed_or_kept_otherwise_is_the_same_run(folder, tmp_path):
    claim(folder, config(folder))
    (tmp_path / "outputs").rename(tmp_path / "moved")
    moved = str(tmp_path / "moved" / "run")
    other = config(moved, checkpoint=CheckpointConfig(every=3, resume="never"))
    other.placement.learner = RoleConfig(num_actors=4)
    assert refuse_other_run(moved, other) is False


def test_a_lock_alone_is_no_file_of_another_run(folder):
    with held(folder):
        assert refuse_other_run(folder, config(folder)) is False


def test_a_configuration_of_another_kind_or_none_is_refused(folder, tmp_path):
    claim(folder, config(folder))
    path = tmp_path / "outputs" / "run" / "config.yaml"
    path.write_text("output_dir: x\nlog_every: 3\n")
    with pytest.raises(UserError, match=r"\(mode is 'nothing' there and 'train' here\)"):
        refuse_other_run(folder, config(folder))
    path.write_text("a: [")
    with pytest.raises(UserError, match=r"its config.yaml is not readable"):
        refuse_other_run(folder, config(folder))


def test_an_attempt_that_was_killed_while_it_wrote_its_configuration_is_no_other_run(folder, tmp_path):
    (tmp_path / "outputs" / "run").mkdir(parents=True)
    (tmp_path / "outputs" / "run" / "config.yaml.partial").write_text("seed")
    assert refuse_other_run(folder, config(folder)) is False
    claim(folder, config(folder))
    assert sorted(path.name for path in (tmp_path / "outputs" / "run").iterdir()) == ["config.yaml"]


def test_files_that_are_no_run_are_refused(folder, tmp_path):
    (tmp_path / "outputs" / "run").mkdir(parents=True)
    assert refuse_other_run(folder, config(folder)) is False
    (tmp_path / "outputs" / "run" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=f"got '{folder}', which holds files of no run; choose another output_dir"):
        refuse_other_run(folder, config(folder))


def test_a_file_in_the_way_is_refused(folder, tmp_path):
    (tmp_path / "outputs").write_text("")
    with pytest.raises(UserError, match=f"output_dir must be a folder that can be written, got '{folder}', where "
                                        f"'{tmp_path}/outputs' is a file"):
        refuse_other_run(folder, config(folder))


def test_a_read_only_place_is_refused_before_anything_starts(folder, tmp_path):
    with small_disk(tmp_path / "disk", 1) as disk:
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        where = str(disk / "runs" / "mine")
        with pytest.raises(UserError, match=f"output_dir must be a folder that can be written, got '{where}', where "
                                            f"'{disk}' is read-only"):
            refuse_other_run(where, config(where))
