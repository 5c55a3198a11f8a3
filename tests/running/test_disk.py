"""Disks that are full or read-only, in the words of Python, of safetensors and of an actor."""

import errno
import os
import sys

import pytest
import torch
from ray.exceptions import RayTaskError
from safetensors.torch import save_file

from rlaif.config.train import TrainConfig
from rlaif.running.cli import main, working
from rlaif.running.disk import disk_line
from rlaif.running.report import write_json
from tests.helpers.disks import small_disk

SMALL = "output_dir: out\nprompts: {train: a.jsonl, test: b.jsonl}\nreward: {model: folder}\n"


def failed(body):
    with pytest.raises(Exception) as raised:
        body()
    return raised.value


def test_whatever_is_written_to_a_full_disk_is_one_line_that_names_place_and_cure(tmp_path):
    with small_disk(tmp_path / "disk", 1) as disk:
        tensor = {"weight": torch.zeros(1 << 20)}
        for body in (lambda: save_file(tensor, disk / "model.safetensors"),
                     lambda: write_json(disk / "summary.json", {"text": "a" * (1 << 21)})):
            line = disk_line(failed(body))
            assert line.startswith("every folder that is written to must take it, got 'No space left on device'")
            assert line.endswith("free some space and run the same command again: it goes on from what is whole")


def test_an_error_of_an_actor_is_told_as_what_it_was_there():
    there = OSError(errno.EROFS, os.strerror(errno.EROFS), "/shared/policy")
    for error in (RayTaskError("save", "Traceback ...", there), RayTaskError("save", "", there).as_instanceof_cause(),
                  raised_from(there)):
        assert disk_line(error) == (
            "every folder that is written to must take it, got 'Read-only file system' at '/shared/policy'; make it a "
            "place that can be written and run the same command again: it goes on from what is whole")


def raised_from(cause):
    try:
        raise RuntimeError("the run broke off") from cause
    except RuntimeError as error:
        return error


def test_other_errors_are_none_of_the_disk():
    for error in (FileNotFoundError(errno.ENOENT, "No such file", "a"), AssertionError("shape"), OSError("odd")):
        assert disk_line(error) is None


def test_a_launcher_ends_with_that_line_and_the_code_of_a_mistake(tmp_path, monkeypatch, capsys):
    (tmp_path / "config.yaml").write_text(SMALL)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(sys, "argv", ["train.py", str(tmp_path / "config.yaml")])

    def body(config):
        with working():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/runs/policy/model.safetensors")

    assert main(TrainConfig, "Trains.", body) == 2
    assert capsys.readouterr().err == (
        "error: every folder that is written to must take it, got 'No space left on device' at "
        "'/runs/policy/model.safetensors'; free some space and run the same command again: it goes on from what is "
        "whole\n")
