import asyncio
import io
import json
from types import SimpleNamespace

import pytest

from actors.training.held_out import best_folder
from actors.training.loop import Tally, Trained
from actors.training.run import _export, _summary, export_folder, with_absolute_files
from rlaif.config.evaluation import EvaluationConfig
from rlaif.config.prompts import PromptsConfig
from rlaif.config.reward_parts import RewardPartConfig
from rlaif.config.train import RewardConfig, TrainConfig
from rlaif.rewards.plan import plan_rewards
from rlaif.running.report import Report, Stopwatch
from tests.helpers.fake_fleet import Learners

TRAINED = Trained(before={"reward": 0.25, "gold": 0.5, "kl": 0.0, "max_logprob_gap": 0.0},
                  after={"reward": 0.75, "gold": 0.625, "kl": 1.5, "max_logprob_gap": 1e-6, "greedy_reward": 1.0},
                  steps=3, stopped=None, best_step=2, tally=Tally(4.0, 48, 1e-5), checksum="ab", ledger={"next": 24})


def config(folder, **evaluation):
    return TrainConfig(output_dir=str(folder), prompts=PromptsConfig("a", "b"), reward=RewardConfig("r"), steps=9,
                       evaluation=EvaluationConfig(**evaluation))


@pytest.fixture
def exported(tmp_path):
    """What becomes the policy's folder, and what is said."""
    def exported(**evaluation):
        settings, console = config(tmp_path, **evaluation), io.StringIO()
        for folder, version in (("policy", "old"), ("policy.partial", "cut"), ("best", "best")):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "version").write_text(version)
        report = Report(tmp_path, console)
        asyncio.run(_export(settings, SimpleNamespace(learners=Learners()), TRAINED, report))
        report.close()
        assert not (tmp_path / "policy.partial").exists()
        return (tmp_path / "policy" / "version").read_text(), console.getvalue()

    return exported


def test_the_last_weights_take_the_place_of_what_an_attempt_left(exported, tmp_path):
    assert exported() == ("0", "")
    assert best_folder(str(tmp_path)).is_dir(), "and the best ones stay beside them"


def test_the_best_weights_become_the_policy_where_that_is_asked(exported, tmp_path):
    assert exported(select_by="reward", export="best") == (
        "best", "the policy is that of step 2, the best by reward\n")
    assert not best_folder(str(tmp_path)).exists()
    assert export_folder(str(tmp_path)) == str(tmp_path / "policy")


def test_the_summary_has_every_figure_before_and_after_and_what_the_run_took(tmp_path):
    summary = json.loads(json.dumps(_summary(config(tmp_path), TRAINED, 6, Stopwatch(), 1.5)))
    assert {name: value for name, value in summary.items() if name not in ("wall_s", "versions")} == {
        "steps": 3, "seed": 0, "reward_before": 0.25, "gold_before": 0.5, "reward_after": 0.75, "gold_after": 0.625,
        "greedy_reward_after": 1.0, "kl": 1.5, "stopped": None, "best_step": 2, "samples_per_s": 12.0,
        "peak_rss_gb": 1.5, "max_logprob_gap": 1e-5, "num_test_prompts": 6, "weights_checksum": "ab",
        "ledger": {"next": 24}}
    assert summary["wall_s"]["loop"] == 4.0 and "ray" in summary["versions"]


def test_files_that_rules_read_are_seen_from_anywhere_and_names_stay_names(tmp_path, monkeypatch):
    (tmp_path / "encoder").mkdir()
    (tmp_path / "answer.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    parts = [RewardPartConfig(kind="semantic_similarity", name="near", options={"encoder": "encoder"}),
             RewardPartConfig(kind="semantic_similarity", name="hub", options={"encoder": "owner/name"}),
             RewardPartConfig(kind="json_schema", options={"schema_file": "answer.json"}),
             RewardPartConfig(kind="function", name="mine", function="a:b", options={"encoder": "encoder"})]
    found = with_absolute_files(plan_rewards(RewardConfig(), parts)).parts
    assert [part.options.get("encoder") or part.options.get("schema_file") for part in found] == [
        str(tmp_path / "encoder"), "owner/name", str(tmp_path / "answer.json"), "encoder"]
