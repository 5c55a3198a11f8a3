"""Room in the engines: who comes in when."""

import asyncio

import pytest

from actors.training.feeder import room_rows
from actors.training.room import Room
from rlaif.config.pipeline import PipelineConfig
from rlaif.config.prompts import PromptsConfig
from rlaif.config.train import EngineConfig, RewardConfig, RolloutConfig, TrainConfig


class Inside:
    """Calls that ask a room for rows, each until it is let go."""

    def __init__(self, room):
        self._room, self.names, self._ends, self.tasks = room, [], {}, {}

    async def ask(self, name, num_rows):
        self._ends[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._be(name, num_rows))
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def _be(self, name, num_rows):
        async with self._room.taken(num_rows):
            self.names.append(name)
            await self._ends[name].wait()

    async def end(self, *names):
        for name in names:
            self._ends[name].set()
        await asyncio.gather(*(self.tasks[name] for name in names), return_exceptions=True)
        await asyncio.sleep(0)


def test_first_come_first_served_even_where_a_later_call_would_fit():
    async def go():
        inside = Inside(Room(10))
        for name, num_rows in (("a", 6), ("b", 4), ("c", 8), ("d", 2)):
            await inside.ask(name, num_rows)
        assert inside.names == ["a", "b"]
        await inside.end("b")
        assert inside.names == ["a", "b"], "c is next, and does not fit beside a"
        await inside.end("a")
        assert inside.names == ["a", "b", "c", "d"]
        await inside.end("c", "d")

    asyncio.run(go())


def test_a_call_that_is_larger_than_the_room_has_it_alone():
    async def go():
        inside = Inside(Room(4))
        await inside.ask("a", 1)
        await inside.ask("large", 9)
        await inside.ask("b", 1)
        assert inside.names == ["a"]
        await inside.end("a")
        assert inside.names == ["a", "large"]
        await inside.end("large")
        assert inside.names == ["a", "large", "b"]
        await inside.end("b")

    asyncio.run(go())


@pytest.mark.parametrize("gone", ["inside", "waiting"])
def test_a_call_that_is_given_up_leaves_its_room(gone):
    async def go():
        inside = Inside(Room(4))
        for name in ("inside", "waiting", "next"):
            await inside.ask(name, 3)
        inside.tasks[gone].cancel()
        await asyncio.gather(inside.tasks[gone], return_exceptions=True)
        if gone == "waiting":
            await inside.end("inside")
        await asyncio.sleep(0)
        rest = "waiting" if gone == "inside" else "next"
        assert inside.names == ["inside", rest]
        await inside.end(rest)

    asyncio.run(go())


@pytest.mark.parametrize(("staleness", "slots", "rows"), [(0, 128, None), (1, 4, 64), (1, 64, 256), (2, 64, 256)])
def test_the_engines_have_a_step_or_twice_what_they_decode(staleness, slots, rows):
    config = TrainConfig(
        output_dir="unused", prompts=PromptsConfig("a", "b"), reward=RewardConfig("r"),
        rollout=RolloutConfig(groups_per_step=8, group_size=8, engine=EngineConfig(max_num_seqs=slots)),
        pipeline=PipelineConfig(max_staleness=staleness))
    assert room_rows(config, 2) == rows


def test_those_who_give_up_together_leave_nothing_and_raise_nothing_of_their_own():
    """As when a run ends: whoever is inside and those who wait are cancelled at once."""
    async def run():
        room = Room(4)

        async def call():
            async with room.taken(3):
                await asyncio.Event().wait()

        tasks = [asyncio.ensure_future(call()) for _ in range(4)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(error) for error in found] == [asyncio.CancelledError] * 4
        async with asyncio.timeout(1.0), room.taken(4):
            pass

    asyncio.run(run())
