"""The feeder with actors that are no Ray actors: what is drawn when, in which order it is taken, how stale it is."""

import asyncio
import dataclasses
import random

import pytest

from actors.faults.pool import ActorLost, InputsLost
from actors.training.feeder import Feeder, told_apart_by
from actors.training.stages import Stages
from actors.training.walk import here
from rlaif.batch import SCORED
from rlaif.config.algorithm import AlgorithmConfig
from rlaif.config.checks import Unavailable, UserError
from rlaif.config.faults import FaultsConfig
from rlaif.config.pipeline import PipelineConfig
from rlaif.config.prompts import PromptsConfig
from rlaif.config.reward_parts import RewardPartConfig
from rlaif.config.train import RewardConfig, RolloutConfig, TrainConfig
from rlaif.data.prompts import PromptStream
from rlaif.metrics import values
from rlaif.pipeline.budgets import BudgetSpent
from rlaif.pipeline.ledger import Ledger
from rlaif.rewards.plan import RewardPlan
from tests.helpers.batch_examples import table
from tests.helpers.fake_fleet import FakeJudge, fake_fleet, judge_part

JUDGE = RewardPartConfig(kind="judge", name="esfp")
PLAN = RewardPlan((JUDGE,), (judge_part("esfp"),))
BY_STEP = RewardPlan((RewardPartConfig(kind="judge", name="esfp", transform="rank", over="batch"),),
                     (judge_part("esfp"),))
ROWS = [{"prompt": f"p{number}", "prompt_ids": [number], "source": "s", "reference": None, "sample_weight": 1.0}
        for number in range(500)]


def config(staleness=0, algorithm=None, **changes):
    return TrainConfig(
        output_dir="unused", prompts=PromptsConfig("a", "b"), reward=RewardConfig("r"),
        rollout=RolloutConfig(groups_per_step=4, group_size=3), algorithm=algorithm or AlgorithmConfig(),
        pipeline=PipelineConfig(max_staleness=staleness, portion_groups=1), **({"steps": 1000} | changes))


def by_sample(row):
    return float(row["sample"])


def every_other(row):
    """Only groups of odd number have something to learn from."""
    return float(row["sample"]) * (row["group_id"] % 2)


def fleet_of(reward=by_sample, plan=PLAN, **more):
    return fake_fleet(plan, {"esfp": FakeJudge("esfp", reward)}, {}, **more)


def jittered(seed, longest_s=0.004):
    """Actors that answer after a random while."""
    drawn = random.Random(seed)

    async def delay(stage):
        await asyncio.sleep(drawn.random() * longest_s)

    return delay


async def steps(fleet, settings, num_steps, feeder=None):
    """As the loop does it: take, learn, sync, grow; what each step took."""
    feeder = feeder or Feeder(fleet, PromptStream(ROWS, 0), settings, Stages())
    taken = []
    await fleet.sync(0)
    feeder.grow(0)
    for version in range(1, num_steps + 1):
        chosen = await feeder.take()
        await fleet.learners.update_policy(chosen.summary, 0.0, chosen.scored)
        feeder.trained(chosen)
        await fleet.sync(version)
        feeder.grow(version)
        taken.append(chosen)
    await feeder.close()
    return feeder, taken


def ran(*arguments, **more):
    return asyncio.run(steps(*arguments, **more))


def test_synchronous_an_engine_gets_its_share_of_a_step_in_one_call_and_nothing_of_the_next():
    fleet = fleet_of()
    feeder, taken = ran(fleet, config(), 3)
    assert [chosen.kept for chosen in taken] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert fleet.rollout.asked == [(4, 3, False)] * 3, "the fourth was drawn, and not yet begun when all was ended"
    assert feeder.ledger.in_flight == [12, 13, 14, 15]
    assert all(chosen.figures["staleness_max"] == 0 == chosen.figures["continued_share"] for chosen in taken)


def test_synchronous_shares_go_to_the_engines_by_their_number():
    fleet = fleet_of(num_rollouts=2)
    ran(fleet, config(), 1)
    assert fleet.rollouts.actors[0]._actor.groups == [0, 1] and fleet.rollouts.actors[1]._actor.groups == [2, 3]


@pytest.mark.parametrize("staleness", [0, 1, 2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_staler_than_allowed_and_everything_is_trained_in_the_order_it_was_drawn(staleness, seed):
    """refuse_stale inside take() holds the bound; with slow learners it is reached."""
    jitter = jittered(seed)

    async def delay(stage):
        await (asyncio.sleep(0.01) if stage == "learn" else jitter(stage))

    fleet = fleet_of(num_rollouts=3, has_explainer=True, delay=delay)
    feeder, taken = ran(fleet, config(staleness), 8)
    assert [group for chosen in taken for group in chosen.kept] == list(range(32))
    assert max(chosen.figures["staleness_max"] for chosen in taken) == staleness
    assert feeder.ledger.num_trained == 32


@pytest.mark.parametrize("staleness", [0, 1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_equal_groups_are_replaced_in_order_and_never_staler_than_allowed(staleness, seed):
    fleet = fleet_of(every_other, num_rollouts=2, delay=jittered(seed))
    settings = config(staleness, AlgorithmConfig(dynamic_sampling="resample", max_resampling=9))
    feeder, taken = ran(fleet, settings, 6)
    assert [group for chosen in taken for group in chosen.kept] == list(range(1, 48, 2))
    for chosen in taken:
        assert len(chosen.replaced) == chosen.figures["groups_discarded"] == len(set(
            chosen.summary["group_id"].to_pylist())) - 4
        assert chosen.num_equal == 0
    assert feeder.ledger.totals["trained"] == 24
    assert feeder.ledger.totals["discarded"] == sum(len(chosen.replaced) for chosen in taken)


def test_rounds_draw_just_what_is_missing():
    fleet = fleet_of(every_other)
    settings = config(0, AlgorithmConfig(dynamic_sampling="resample", max_resampling=3), steps=1)
    _, (chosen,) = ran(fleet, settings, 1)
    assert (chosen.kept, chosen.replaced, chosen.num_rounds) == ([1, 3, 5, 7], [0, 2, 4, 6], 4)
    assert [asked[0] for asked in fleet.rollout.asked] == [4, 2, 1, 1]
    assert chosen.summary.num_rows == 24


def test_without_resampling_equal_groups_are_kept():
    _, (chosen,) = ran(fleet_of(lambda row: 1.0), config(), 1)
    assert (chosen.kept, chosen.replaced, chosen.num_rounds) == ([0, 1, 2, 3], [], 1)


def test_nothing_is_drawn_that_the_run_would_not_train():
    fleet = fleet_of()
    feeder, _ = ran(fleet, config(3, steps=5), 5)
    assert feeder.ledger.num_trained == 20 and feeder.ledger.num_waiting == 0 and feeder.ledger.next == 20
    assert sum(asked[0] for asked in fleet.rollout.asked) == 20


@pytest.mark.parametrize("staleness", [0, 1])
def test_rollouts_are_written_while_the_learners_work_where_they_may_run_ahead(staleness):
    learning, seen = [], []

    async def delay(stage):
        if stage == "learn":
            learning.append(True)
            await asyncio.sleep(0.01)
            learning.pop()
        elif stage == "rollout":
            await asyncio.sleep(0.005)
            seen.append(bool(learning))

    ran(fleet_of(delay=delay), config(staleness), 6)
    assert any(seen) == (staleness > 0)


def test_a_buffer_that_is_full_holds_drawing_back_but_never_a_step_up():
    """A group's rows take some 700 bytes: one MiB is far more, and 0 is less than one group."""
    async def waiting(max_mb):
        settings = config(3)
        settings.pipeline.max_buffered_mb = max_mb
        feeder = Feeder(fleet_of(), PromptStream(ROWS, 0), settings, Stages())
        feeder._num_bytes, feeder._num_scored = 1000, 1     # known from groups before
        feeder.grow(0)
        first = feeder.ledger.num_waiting
        chosen = await feeder.take()
        await feeder.close()
        return first, chosen.kept

    assert asyncio.run(waiting(1)) == (16, [0, 1, 2, 3])
    assert asyncio.run(waiting(0)) == (4, [0, 1, 2, 3])


def test_a_part_that_compares_with_the_whole_step_is_combined_when_the_step_is_taken():
    fleet = fleet_of(lambda row: float(row["group_id"]), BY_STEP)
    _, taken = ran(fleet, config(2), 3)
    for chosen in taken:
        rewards = dict(zip(chosen.summary["group_id"].to_pylist(), chosen.summary["reward"].to_pylist(), strict=True))
        ordered = [rewards[group] for group in chosen.kept]
        assert ordered == sorted(ordered) and len(set(ordered)) == 4
        assert (min(ordered), max(ordered)) == (min(rewards.values()), max(rewards.values()))
        assert len(chosen.scored) == 1
    assert [batches for _, batches, _ in fleet.combining.combined] == [4, 4, 4]


@pytest.mark.parametrize("staleness", [0, 1])
def test_comparing_with_the_step_and_resampling_go_together(staleness):
    """Ranks differ between groups, but equal rewards in a group stay equal."""
    fleet = fleet_of(lambda row: row["group_id"] + float(row["sample"]) * (row["group_id"] % 2), BY_STEP)
    settings = config(staleness, AlgorithmConfig(dynamic_sampling="resample", max_resampling=9))
    settings.pipeline.portion_groups = 3
    _, taken = ran(fleet, settings, 4)
    assert [group for chosen in taken for group in chosen.kept] == list(range(1, 32, 2))
    assert all(set(chosen.summary["group_id"].to_pylist()) >= set(chosen.kept) for chosen in taken)


def test_a_resumed_run_rolls_out_what_was_in_flight_and_takes_what_was_buffered():
    async def go():
        fleet, settings = fleet_of(), config(1)
        stream = PromptStream(ROWS, 0)
        feeder = Feeder(fleet, stream, settings, Stages())
        feeder.grow(0)
        first = await feeder.take()
        feeder.trained(first)
        await feeder.close()
        state, cursor, buffered = feeder.ledger.state(), stream.state(), feeder.buffered
        assert state["scored"] == [group for portion in buffered for group in portion.group_ids]
        other, again = fleet_of(), PromptStream(ROWS, 0)
        again.restore(cursor)
        feeder = Feeder(other, again, settings, Stages(), Ledger.restore(state), buffered)
        await other.sync(1)
        feeder.grow(1)
        kept = []
        for version in range(1, 4):
            chosen = await feeder.take()
            feeder.trained(chosen)
            await other.sync(version + 1)
            feeder.grow(version + 1)
            kept += chosen.kept
        await feeder.close()
        return state, other.rollout.groups, first.kept + kept

    state, rolled_out, trained = asyncio.run(go())
    assert trained == list(range(16))
    assert rolled_out[: len(state["in_flight"])] == state["in_flight"], "first what was given back"
    assert not set(rolled_out) & set(state["scored"]), "what was buffered is not rolled out again"


class Flaky:
    """Of a pool's calls, those whose number is in `bad` raise."""

    def __init__(self, pool, bad, error):
        self._pool, self._bad, self._error, self._count = pool, set(bad), error, 0

    def __getattr__(self, name):
        return getattr(self._pool, name)

    async def ask(self, *arguments, **more):
        self._count += 1
        if self._count in self._bad:
            raise self._error
        return await self._pool.ask(*arguments, **more)


def test_a_portion_whose_rows_are_lost_is_walked_again_and_trained_once():
    fleet = fleet_of(has_explainer=True)
    fleet.judges = [Flaky(fleet.judges[0], [2, 5], InputsLost("gone"))]
    feeder, taken = ran(fleet, config(1), 4)
    assert [group for chosen in taken for group in chosen.kept] == list(range(16))
    assert feeder._stages.num_retried == 2
    assert sorted(fleet.rollout.groups)[:16] != list(range(16)), "two portions were rolled out twice"


def test_rows_that_are_lost_again_and_again_end_the_run_in_one_line():
    fleet = fleet_of(has_explainer=True)
    fleet.judges = [Flaky(fleet.judges[0], range(1000), InputsLost("gone"))]
    with pytest.raises(Unavailable, match=r"rows of group \d+ must be there until they are read, got lost 5 times"):
        ran(fleet, config(1), 4)


def test_rows_that_are_lost_before_they_are_combined_are_walked_again():
    fleet = fleet_of(lambda row: float(row["group_id"]), BY_STEP)
    fleet.functions = Flaky(fleet.functions, [1], InputsLost("gone"))
    _, taken = ran(fleet, config(0), 2)
    assert [group for chosen in taken for group in chosen.kept] == list(range(8))
    assert fleet.rollout.groups[:8] == [0, 1, 2, 3] * 2


def test_an_engine_that_is_lost_is_asked_again_for_the_rest_alone():
    fleet = fleet_of()
    whole = fleet.rollout.generate
    lost = []

    async def half(*asked):
        number = 0
        async for item in whole(*asked):
            number += 1
            if number == 5 and not lost:
                lost.append(True)
                raise ActorLost("rollout-0 is lost")
            yield item

    fleet.rollout.generate = half
    feeder, taken = ran(fleet, config(0), 2)
    assert [group for chosen in taken for group in chosen.kept] == list(range(8))
    assert fleet.rollout.groups[:6] == [0, 1, 2, 3, 2, 3] and feeder._stages.num_retried == 1


def refuses_seven(row):
    if row["group_id"] == 7:
        raise UserError("reward must be finite")
    return float(row["sample"])


def test_what_is_not_there_is_no_fault_of_the_groups():
    def is_away(row):
        if row["group_id"] == 7:
            raise Unavailable("explainer.server.url must be of a server that answers")
        return float(row["sample"])

    with pytest.raises(Unavailable, match="a server that answers"):
        ran(fleet_of(is_away), config(1, faults=FaultsConfig(max_skipped_groups=9)), 3)


def test_groups_that_earlier_attempts_skipped_are_counted():
    ledger = Ledger()
    ledger.draw([0, 1])
    ledger.skip([0, 1])
    stream = PromptStream(ROWS, 0)
    stream.next(2)
    settings = config(1, faults=FaultsConfig(max_skipped_groups=2))
    fleet = fleet_of(refuses_seven)
    with pytest.raises(BudgetSpent, match="max_skipped_groups must be at least 3 for this run to go on, got 2"):
        ran(fleet, settings, 3, feeder=Feeder(fleet, stream, settings, Stages(), ledger))


def test_what_must_be_read_anew_is_there_once_and_so_is_what_lay_beside_it():
    """Group 1 is replaced by group 4, whose portion has group 5 too; then none of it can be read."""
    async def go():
        fleet = fleet_of(lambda row: 0.0 if row["group_id"] == 1 else float(row["sample"]))
        stream = PromptStream(ROWS, 0)
        settings = config(1, algorithm=AlgorithmConfig(dynamic_sampling="resample", max_resampling=2))
        settings.pipeline.portion_groups = 2
        feeder, observed = Feeder(fleet, stream, settings, Stages()), []
        stream.observe = lambda groups, rewards: observed.extend(set(groups))
        feeder.grow(0)
        first = await feeder.take()
        assert first.kept == [0, 2, 3, 4] and first.replaced == [1]
        feeder.again(first)
        second = await feeder.take()
        assert second.kept == [0, 2, 3, 4]
        feeder.trained(second)
        feeder.grow(1)
        third = await feeder.take()
        assert third.kept == [5, 6, 7, 8]
        feeder.trained(third)
        for chosen in (second, third):
            tables = [await here(table) for table in chosen.scored]
            there = [group for table in tables for group in set(table["group_id"].to_pylist())]
            assert sorted(set(there) & set(chosen.kept)) == chosen.kept and len(there) == len(set(there))
        assert sorted(observed) == list(range(9)), "each once"
        await feeder.close()

    asyncio.run(go())


def test_without_a_budget_an_error_of_the_data_ends_the_run_as_it_is():
    with pytest.raises(UserError, match="reward must be finite"):
        ran(fleet_of(refuses_seven), config(1), 3)


def test_a_group_that_is_refused_is_skipped_alone_and_another_takes_its_place():
    settings = dataclasses.replace(config(1), faults=FaultsConfig(max_skipped_groups=1))
    settings.pipeline.portion_groups = 4
    feeder, taken = ran(fleet_of(refuses_seven), settings, 3)
    assert [group for chosen in taken for group in chosen.kept] == [0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12]
    assert feeder.ledger.totals == {"trained": 12, "discarded": 0, "skipped": 1}
    assert taken[-1].figures["groups_skipped"] == 1


def test_more_groups_that_are_refused_than_allowed_end_the_run():
    def refuses(row):
        if row["group_id"] > 5:
            raise UserError("reward must be finite")
        return float(row["sample"])

    settings = dataclasses.replace(config(0), faults=FaultsConfig(max_skipped_groups=1))
    with pytest.raises(UserError, match=r"faults\.max_skipped_groups must be at least 2 for this run to go on, got 1"):
        ran(fleet_of(refuses), settings, 3)


def test_counts_are_told_once_also_of_portions_that_two_steps_share():
    settings = config(1, AlgorithmConfig(dynamic_sampling="resample", max_resampling=9))
    settings.pipeline.portion_groups = 4
    fleet = fleet_of(every_other, has_explainer=True)
    feeder, taken = ran(fleet, settings, 4)
    told = sum(values(chosen.metrics)["num_explanations"] for chosen in taken)
    settled = feeder.ledger.totals["trained"] + feeder.ledger.totals["discarded"]
    assert settled * 3 <= told <= feeder.ledger.next * 3


def test_parts_that_are_normalised_alone_tell_groups_apart_alone():
    summary = table(SCORED, {"reward_terms": [("b", 1.0), ("a", 0.5)], "reward": 1.5}, {"reward_terms": [("a", 1.5)]})
    assert told_apart_by(summary, "together") == [1.5, 0.75]
    assert told_apart_by(summary, "separate") == [(("a", 0.5), ("b", 1.0)), (("a", 1.5),)]


def test_no_object_of_a_stage_outlives_the_stage():
    """Only what the learners take is still referred to: rollouts and explanations are gone."""
    import gc
    import weakref

    seen = []

    async def go():
        fleet = fleet_of(has_explainer=True)
        pool = fleet.explainers
        ask = pool.ask

        async def watched(num_rows, call, **more):
            answer = await ask(num_rows, call, **more)
            seen.append(weakref.ref(answer.tables[0]))
            return answer

        pool.ask = watched
        feeder = Feeder(fleet, PromptStream(ROWS, 0), config(), Stages())
        feeder.grow(0)
        chosen = await feeder.take()
        await asyncio.sleep(0)
        gc.collect()
        assert len(seen) == 4 and all(reference() is None for reference in seen)
        assert len(chosen.scored) == 4
        await feeder.close()

    asyncio.run(go())
