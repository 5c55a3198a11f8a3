"""The fakes that benchmarks drive the loop with: what they make is what the stages make, and takes what it says."""

import asyncio
import dataclasses
import gc
import itertools
import json
import tracemalloc

import numpy as np
import pytest

from benchmarks.fakes import driving
from benchmarks.fakes.driving import drive, settings
from benchmarks.fakes.latency import Units, skewed_lengths
from benchmarks.fakes.players import Counts, World
from benchmarks.fakes.rows import explained, prompts, rollouts, scored
from benchmarks.fakes.simulated import ROLLOUT_BOUND, chrome_trace, simulate
from benchmarks.fakes.virtual import VirtualLoop
from rlaif.batch import EXPLAINED, ROLLOUT, SCORED, check
from rlaif.data.prompts import PromptStream


def test_batches_are_of_the_stages_schemas():
    batch = rollouts(PromptStream(prompts(8), 0).next(3), 4, version=5)
    assert check(batch, ROLLOUT)["group_id"].to_pylist() == [0] * 4 + [1] * 4 + [2] * 4
    assert set(batch["policy_version"].to_pylist()) == {5} and batch["sample"].to_pylist() == [0, 1, 2, 3] * 3
    assert check(explained(batch), EXPLAINED).num_rows == check(scored(explained(batch)), SCORED).num_rows == 12


def on_a_virtual_clock(work):
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)


def test_units_work_side_by_side_and_stand_still_while_they_are_paused():
    paused = 0.0

    async def go():
        nonlocal paused
        units, loop = Units(2, lambda: paused), asyncio.get_running_loop()
        tasks = [asyncio.ensure_future(units.work(10.0)) for _ in range(3)]
        await asyncio.sleep(4.0)
        paused = 3.0
        await asyncio.gather(*tasks[:2])
        first = loop.time()
        await tasks[2]
        return first, loop.time(), units.busy_s

    assert on_a_virtual_clock(go()) == pytest.approx((13.0, 23.0, 30.0))


def test_lengths_are_skewed_and_the_same_for_the_same_group():
    lengths = np.concatenate([skewed_lengths(0, group, 8) for group in range(500)])
    assert (skewed_lengths(0, 7, 8) == skewed_lengths(0, 7, 8)).all()
    assert 44 <= np.median(lengths) <= 52 and lengths.mean() > 1.2 * np.median(lengths) and lengths.max() == 256


def test_stages_that_overlap_take_hardly_more_than_the_slowest_and_less_than_one_after_the_other():
    """On a clock that only sleeps move. Stage after stage is the sum of what each takes, with its longest row."""
    ahead = simulate(ROLLOUT_BOUND, steps=8, max_staleness=1, virtual=True)
    assert ahead.stages == pytest.approx({"rollout": 2.4, "explain": 1.4, "score": 0.7, "learn": 1.2, "sync": 0.06},
                                         rel=0.03)
    assert 1.0 <= ahead.over_slowest <= 1.1
    streamed, staged = (simulate(ROLLOUT_BOUND, steps=6, max_staleness=0, barrier=barrier, virtual=True)
                        for barrier in (False, True))
    assert staged.wall_s >= sum(staged.stages.values())
    assert staged.wall_s / streamed.wall_s >= 1.3


def test_a_timeline_shows_every_actor_of_every_stage():
    run = simulate(dataclasses.replace(ROLLOUT_BOUND, num_slots=32), steps=6, max_staleness=1, virtual=True)
    events = json.loads(json.dumps(chrome_trace({"run": run.spans})))["traceEvents"]
    names = {event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert names == {*(f"rollout-{n}" for n in range(16)), *(f"explain-{n}" for n in range(4)),
                     *(f"score-{n}" for n in range(4)), "learn-0", "sync-0"}
    assert sum(event["name"] == "learn" for event in events) == 6


def test_every_group_is_trained_once_with_very_many_actors(tmp_path):
    config = settings(str(tmp_path), steps=4, groups_per_step=512, group_size=4, portion_groups=2)
    driven = drive(config, Counts(256, 64, 64, 64), World())
    assert driven.trained.ledger["totals"] == {"trained": 2048, "discarded": 0, "skipped": 0}
    assert len(driven.wall_s) == 5


@pytest.mark.parametrize("staleness", [0, 1])
def test_the_drivers_memory_does_not_grow_with_the_steps(tmp_path, monkeypatch, staleness):
    """What Python has allocated, between the 120th and the last of 240 steps: less than 300 bytes a step."""
    found, steps = [], itertools.count()
    inner = driving.loop.pace

    def measured(*arguments):
        if next(steps) % 60 == 59:
            gc.collect()
            found.append(tracemalloc.get_traced_memory()[0])
        return inner(*arguments)

    monkeypatch.setattr(driving.loop, "pace", measured)
    config = settings(str(tmp_path), steps=240, groups_per_step=4, group_size=2, max_staleness=staleness,
                      portion_groups=2)
    tracemalloc.start()
    try:
        driven = drive(config, Counts(2, 1, 1, 1), World())
    finally:
        tracemalloc.stop()
    assert driven.trained.ledger["totals"]["trained"] == 960 and driven.trained.ledger["settled"] == []
    assert len(found) == 4 and (found[-1] - found[1]) / 120 < 300, found
