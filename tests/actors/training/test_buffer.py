"""The buffer gives groups in the order they were drawn, whatever is there first."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.training.buffer import Buffer
from actors.training.stages import BusyClock, Stages
from rlaif.pipeline.portions import ScoredPortion


def portion(*group_ids, num_bytes=10):
    return ScoredPortion(list(group_ids), ["rows"], None, len(group_ids), num_bytes)


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=8), order=st.randoms(), at_once=st.integers(1, 5))
def test_groups_come_in_the_order_of_drawing_each_once(sizes, order, at_once):
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    portions = [portion(*range(start, start + size)) for start, size in zip(starts, sizes, strict=True)]

    async def go():
        buffer, num_groups, taken = Buffer(), sum(sizes), []
        buffer.expect(range(num_groups))
        shuffled = list(portions)
        order.shuffle(shuffled)

        async def fill():
            for one in shuffled:
                await asyncio.sleep(0)
                buffer.put(one)

        filling = asyncio.create_task(fill())
        while len(taken) < num_groups:
            group_ids, found = await buffer.take(min(at_once, num_groups - len(taken)))
            assert {group for one in found for group in one.group_ids} >= set(group_ids)
            assert len({id(one) for one in found}) == len(found)
            taken += group_ids
        await filling
        assert buffer.num_groups == buffer.num_bytes == 0
        return taken

    assert asyncio.run(go()) == list(range(sum(sizes)))


def test_a_portion_stays_until_its_last_group_is_taken():
    async def go():
        buffer = Buffer()
        buffer.expect([0, 1, 2])
        buffer.put(portion(0, 1, 2))
        await buffer.take(2)
        return buffer.group_ids, buffer.num_bytes, len(buffer.portions)

    assert asyncio.run(go()) == ([2], 10, 1)


def test_what_will_not_come_is_not_waited_for_and_what_is_given_back_comes_first():
    async def go():
        buffer = Buffer()
        buffer.expect([4, 5, 6])
        buffer.put(portion(5, 6))
        buffer.forget([4])
        first = await buffer.take(1)
        buffer.give_back(*first)
        buffer.lose([6])
        assert buffer.group_ids == [5]
        buffer.expect([1])
        buffer.put(portion(1))
        return first[0], (await buffer.take(2))[0]

    assert asyncio.run(go()) == ([5], [1, 5])


def test_whoever_waits_is_told_of_an_error():
    async def go():
        buffer = Buffer()
        buffer.expect([0])
        waiting = asyncio.create_task(buffer.take(1))
        await asyncio.sleep(0)
        buffer.fail(ValueError("first"))
        buffer.fail(ValueError("second"))
        await waiting

    with pytest.raises(ValueError, match="first"):
        asyncio.run(go())


def test_a_stage_is_busy_while_any_of_its_calls_is_under_way():
    now = 0.0
    clock = BusyClock(lambda: now)
    with clock.busy():
        now = 1.0
        with clock.busy():
            now = 3.0
        now = 4.0
        assert clock.lap() == 4.0, "also while it goes on"
        now = 5.0
    now = 9.0
    with clock.busy():
        now = 9.5
    assert (clock.lap(), clock.seconds, clock.started, clock.ended) == (1.5, 5.5, 0.0, 9.5)


def test_laps_tell_every_stage_and_what_was_walked_again_once():
    stages = Stages(lambda: 0.0)
    stages.num_retried = 2
    found = stages.lap()
    assert found == {"rollout_s": 0.0, "explain_s": 0.0, "score_s": 0.0, "learn_s": 0.0, "sync_s": 0.0,
                     "portions_retried": 2}
    assert stages.lap()["portions_retried"] == 0
