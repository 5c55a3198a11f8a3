"""Reward functions behind a real Ray actor: answers, one reward of all parts, and a function that hangs."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import ray

from actors.cluster.connection import actor_environment
from actors.judging.reward_functions import RewardFunctionActor
from rlaif.batch import PARTS, ROLLOUT, SCORED, check
from rlaif.config.checks import UserError
from rlaif.config.reward_parts import RewardPartConfig
from rlaif.config.train import RewardConfig
from rlaif.metrics import Sum, values
from rlaif.rewards.plan import plan_rewards
from rlaif.scenes import judge
from tests.helpers.batch_examples import table

PREMISE = "A man in a pale shirt eats a fruit."
PROMPT = f"Say something that must be true: {PREMISE}"
COMPLETIONS = [PREMISE, "A man eats."]
ROWS = table(ROLLOUT, *({"group_id": group, "sample": sample, "prompt": PROMPT, "completion": completion,
                         "reference": PREMISE} for group in (3, 4) for sample, completion in enumerate(COMPLETIONS)))
MODULE = """
import time

def words(completions, *, unit=1.0):
    return [unit * len(text.split()) for text in completions]

def hangs(completions):
    time.sleep(1000)
"""


@pytest.fixture(scope="module")
def users_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("users")
    (folder / "actor_rewards.py").write_text(MODULE)
    return folder


def start(users_folder: Path, *parts: RewardPartConfig, gold: str | None = None):
    """An actor as a run starts it, that finds the user's module on its path."""
    environment = actor_environment(1, 0)
    environment["env_vars"]["PYTHONPATH"] = os.pathsep.join([str(users_folder), os.environ.get("PYTHONPATH", "")])
    plan = plan_rewards(RewardConfig(model=None), parts)    # type: ignore[arg-type]
    return RewardFunctionActor.options(num_cpus=0.1, runtime_env=environment).remote(plan, gold, 120.0)


def part(function: str, **fields) -> RewardPartConfig:
    return RewardPartConfig(kind="function", name="mine", function=f"actor_rewards:{function}", **fields)


def test_parts_are_asked_and_made_one_reward(local_ray: None, users_folder: Path) -> None:
    rouge = RewardPartConfig(kind="rouge", weight=2.0, transform="rank", gate="positive_only", gated_by=["mine"])
    actor = start(users_folder, part("words", options={"unit": 0.5}), rouge, gold="scenes")
    said, measured = actor.values.options(num_returns=2).remote(ROWS)
    scored, summary, counted = actor.combine.options(num_returns=3).remote(True, 1, ROWS, said)
    assert check(ray.get(said), PARTS).num_rows == 8
    assert values(ray.get(measured))["seconds_mine"] > 0
    rows = check(ray.get(scored), SCORED).to_pylist()
    # 9 words and 3; the first equals the reference, so that it ranks first.
    assert [row["reward"] for row in rows] == [4.5 + 2.0, 1.5] * 2
    assert [dict(row["judge_verdicts"])["gold"] for row in rows] == [judge(PROMPT, text).reward for text in COMPLETIONS
                                                                     ] * 2
    assert ray.get(summary)["reward"].to_pylist() == [6.5, 1.5] * 2
    assert ray.get(counted)["absent_rouge"] == Sum(0)
    alone = ray.get(actor.combine.options(num_returns=3).remote(False, 1, ROWS, said)[0])
    # The ROUGE-L itself: "a man eats" in order, of 3 words and of 9.
    assert alone["reward"].to_pylist() == pytest.approx([6.5, 1.5 + 2.0 * 2 * 3 / (3 + 9)] * 2)
    ray.kill(actor)


def test_a_function_that_hangs_ends_and_its_actor_lives(local_ray: None, users_folder: Path) -> None:
    skipping = start(users_folder, part("hangs", timeout_s=1.0, max_skipped=4), RewardPartConfig(kind="rouge"))
    strict = start(users_folder, part("hangs", timeout_s=1.0))
    ray.get([skipping.ready.remote(), strict.ready.remote()])
    began = time.monotonic()
    said, measured = ray.get(skipping.values.options(num_returns=2).remote(ROWS))
    assert time.monotonic() - began < 30
    assert said["value"].to_pylist()[:4] == [None] * 4 and measured["skipped_mine"] == Sum(4)
    with pytest.raises(UserError, match="reward part mine must answer within timeout_s = 1 s, got nothing in 4 rows"):
        ray.get(strict.values.options(num_returns=2).remote(ROWS))
    ray.get(strict.ready.remote())
    for actor in (skipping, strict):
        ray.kill(actor)
