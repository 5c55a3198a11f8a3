import os
import sys
import warnings

import pytest

from rlaif.config.checks import UserError
from rlaif.config.train import TrainConfig
from rlaif.running.cli import main, working

SMALL = "output_dir: out\nprompts: {train: a.jsonl, test: b.jsonl}\nreward: {model: folder}\n"


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    (tmp_path / "config.yaml").write_text(SMALL)
    monkeypatch.setattr(os, "environ", dict(os.environ))

    def call(body, *overrides):
        monkeypatch.setattr(sys, "argv", ["train.py", str(tmp_path / "config.yaml"), *overrides])
        with warnings.catch_warnings():
            return main(TrainConfig, "Trains.", body), capsys.readouterr().err

    return call


def failing(error):
    def body(config):
        raise error
    return body


def test_the_body_gets_the_configuration_of_the_command_line(call):
    seen = []
    assert call(seen.append, "seed=4", "rollout.group_size=2") == (0, "")
    assert (seen[0].output_dir, seen[0].seed, seen[0].rollout.group_size) == ("out", 4, 2)


def test_further_files_go_over_the_first_and_values_over_all_of_them_wherever_they_stand(call, tmp_path):
    for name, steps in (("one", 5), ("two", 6)):
        (tmp_path / f"{name}.yaml").write_text(f"steps: {steps}\nrollout: {{group_size: {steps}}}\n")
    seen = []
    assert call(seen.append, str(tmp_path / "one.yaml"), "rollout.group_size=3", str(tmp_path / "two.yaml")) == (0, "")
    assert (seen[0].output_dir, seen[0].steps, seen[0].rollout.group_size) == ("out", 6, 3)


def test_a_further_file_that_is_not_there_and_a_word_that_is_no_override_are_told_apart(call):
    assert call(None, "algorithm.yaml")[1].startswith("error: config must be a YAML file, got 'algorithm.yaml'; ")
    assert call(None, "algorithm") == (2, "error: override must be key=value, got 'algorithm'\n")


def test_a_mistake_of_the_users_is_one_line_whatever_lines_it_came_in(call):
    assert call(failing(UserError("steps must be > 0,\n  got 0\n"))) == (2, "error: steps must be > 0, got 0\n")
    assert call(failing(ValueError("text must have a slot"))) == (2, "error: text must have a slot\n")


def test_a_mistake_found_in_an_actor_is_told_without_the_actors_traceback(call):
    error = ValueError("Traceback (most recent call last):\n  ...\nrlaif.config.UserError: loss must be finite")
    error.cause = UserError("loss must be finite, got nan")     # as Ray wraps it
    assert call(failing(error)) == (2, "error: loss must be finite, got nan\n")


def test_a_bug_of_ours_is_raised(call):
    for error in (AssertionError("shape"), KeyError("gold"), RuntimeError("engine")):
        with pytest.raises(type(error)):
            call(failing(error))


def test_behind_the_checks_only_a_user_error_is_the_users(call):
    def broken(error):
        def body(config):
            with working():
                raise error
        return body

    assert call(broken(UserError("loss must be finite, got nan"))) == (2, "error: loss must be finite, got nan\n")
    with pytest.raises(RuntimeError, match="bug") as raised:
        call(broken(ValueError("unequal lengths")))
    assert str(raised.value.__cause__) == "unequal lengths"


def test_check_stops_before_the_body_and_refuses_as_it_would(call, tmp_path):
    seen = []
    assert call(seen.append, "--check", f"output_dir={tmp_path / 'new'}") == (0, "")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    code, error = call(seen.append, "--check", f"output_dir={tmp_path / 'full'}")
    assert (code, seen) == (2, []) and "holds files of no run" in error


@pytest.fixture
def plan_call(tmp_path, monkeypatch, capsys):
    (tmp_path / "config.yaml").write_text(SMALL)
    monkeypatch.setattr(os, "environ", dict(os.environ))

    def call(plan, *arguments):
        monkeypatch.setattr(sys, "argv", ["train.py", str(tmp_path / "config.yaml"), *arguments])
        with warnings.catch_warnings():
            return main(TrainConfig, "Trains.", failing(AssertionError("the body is not run")), plan)

    return call


@pytest.mark.parametrize(("arguments", "cluster"), [
    (["--plan"], None), (["--plan", "seed=4"], None), (["seed=4", "--plan"], None),
    (["--plan", "cluster.yaml"], "cluster.yaml"), (["--plan", "cluster.yaml", "seed=4"], "cluster.yaml")])
def test_a_plan_is_made_in_place_of_the_run(plan_call, tmp_path, arguments, cluster):
    seen = []
    assert plan_call(lambda *asked: seen.append(asked), *arguments) == 0
    (config, name, file), = seen
    assert (name, file) == (str(tmp_path / "config.yaml"), cluster)
    assert config.seed == (4 if "seed=4" in arguments else 0)


def test_a_plan_that_does_not_fit_ends_with_the_code_of_a_mistake(plan_call, capsys):
    def refuse(*_):
        raise UserError("placement must fit")

    assert plan_call(refuse, "--plan") == 2
    assert capsys.readouterr().err == "error: placement must fit\n"


def test_a_launcher_without_a_plan_has_no_such_option(call, capsys):
    with pytest.raises(SystemExit) as ended:
        call(None, "--plan")
    assert ended.value.code == 2 and "unrecognized arguments: --plan" in capsys.readouterr().err
