"""Who is asked, and what becomes of a call whose actor is lost; with actors that are no Ray actors. tests/real kills
real ones."""

import asyncio
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError, ObjectLostError, RayTaskError

from actors.faults.pool import ActorLost, InputsLost, Pool
from actors.faults.vitals import EngineLost, Vitals
from rlaif.config.checks import UserError
from rlaif.config.faults import FaultsConfig
from rlaif.metrics import Sum
from rlaif.pipeline.board import Board
from rlaif.pipeline.budgets import Budget, BudgetSpent
from rlaif.pipeline.health import Event, State


class Actor:
    """Answers when it is told to. Ray's way to call: actor.<verb>.remote(...)."""

    def __init__(self, number):
        self.number, self.asked, self.is_hung = number, [], False
        self.ready = SimpleNamespace(remote=self._ready)
        self.ping = SimpleNamespace(remote=self._ping)

    async def _ready(self):
        await asyncio.sleep(0)

    async def _ping(self, with_stacks):
        if self.is_hung:
            await asyncio.sleep(60)
        return Vitals("node", ())

    def work(self):
        self.asked.append(asyncio.get_running_loop().create_future())
        return ["table", self.asked[-1]]

    def answer(self, error=None):
        future = next(future for future in self.asked if not future.done())
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result({"by": Sum(self.number)})


class World:
    def __init__(self, num_actors=2, limit=8, faults=None, **options):
        self.made, self.lines, self.board, self.ended = [], [], Board(), []
        self.pool = Pool("slot", self._make, num_actors, Budget(limit), faults, board=self.board, say=self.lines.append,
                         **options)

    def _make(self, index):
        self.made.append((index, Actor(len(self.made))))
        return self.made[-1][1]

    def ask(self, num_rows=1, index=None):
        return asyncio.ensure_future(self.pool.ask(num_rows, lambda actor: actor.work(), index=index))


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    async def end(actor, known):
        await asyncio.sleep(0)

    monkeypatch.setattr("actors.faults.pool.end", end)


def lived(body, **options):
    async def go():
        world = World(**options)
        try:
            return await asyncio.wait_for(body(world), 10.0)
        finally:
            world.pool.close()

    return asyncio.run(go())


async def settled():
    for _ in range(20):
        await asyncio.sleep(0)


def by(answer):
    return answer.result().metrics["by"].value


def test_a_call_goes_to_who_has_the_fewest_rows_in_flight():
    async def body(world):
        await world.pool.ready()
        calls = [world.ask(rows) for rows in (10, 2, 3, 9)]
        await settled()
        assert world.pool.in_flight == [10, 14]
        for actor in world.pool.actors:
            while any(not future.done() for future in actor.asked):
                actor.answer()
        await asyncio.gather(*calls)
        assert [by(call) for call in calls] == [0, 1, 1, 1] and world.pool.in_flight == [0, 0]

    lived(body)


def test_with_an_index_load_plays_no_part():
    async def body(world):
        calls = [world.ask(5, index=index) for index in (1, 3, 5)]
        await settled()
        assert world.pool.in_flight == [0, 15]
        for _ in calls:
            world.pool.actors[1].answer()
        assert {by(call) for call in (await asyncio.gather(*calls)) and calls} == {1}

    lived(body)


@pytest.mark.parametrize("error", [ActorDiedError(), EngineLost("dead"), RayTaskError("work", "", EngineLost("dead"))])
def test_a_lost_call_is_made_again_elsewhere_and_another_actor_takes_the_place(error):
    async def body(world):
        await world.pool.ready()
        call = world.ask()
        await settled()
        world.pool.actors[0].answer(error)
        await settled()
        world.pool.actors[1].answer()
        await call
        assert by(call) == 1 and [index for index, _ in world.made] == [0, 1, 0]
        await settled()
        assert world.pool.figures() == {"restarts_slot": 1, "calls_again_slot": 1, "ready_slot": 2}
        assert world.pool.actors[0].number == 2 and world.pool.health[0].num_restarts == 1

    lived(body)


def test_with_an_index_the_one_that_takes_the_place_is_waited_for():
    async def body(world):
        call = world.ask(index=0)
        await settled()
        world.pool.actors[0].answer(ActorDiedError())
        await settled()
        assert world.pool.actors[1].asked == []
        world.pool.actors[0].answer()
        await call
        assert by(call) == 2

    lived(body)


def test_all_calls_of_one_lost_actor_are_one_loss():
    async def body(world):
        calls = [world.ask(index=0) for _ in range(5)]
        await settled()
        first = world.pool.actors[0]
        first.answer(ActorDiedError())
        await settled()     # the others are made again at once, though nothing has come of them yet
        assert len(world.pool.actors[0].asked) == 5 and world.pool.actors[0] is not first
        for _ in calls:
            world.pool.actors[0].answer()
        await asyncio.gather(*calls)
        assert world.pool.figures()["restarts_slot"] == 1 and world.pool.figures()["calls_again_slot"] == 5

    lived(body)


def test_an_error_of_the_data_is_raised_and_a_lost_input_is_told_apart():
    async def body(world):
        call, other = world.ask(index=0), world.ask(index=1)
        await settled()
        world.pool.actors[0].answer(ValueError("row 3 must be text"))
        world.pool.actors[1].answer(RayTaskError("work", "", ObjectLostError("ab", None, "")))
        with pytest.raises(ValueError, match="row 3 must be text"):
            await call
        with pytest.raises(InputsLost, match="slot-1 cannot read its rows: ObjectLostError"):
            await other
        assert world.pool.figures() == {"ready_slot": 2} and world.lines == []

    lived(body)


def test_a_spent_budget_is_told_to_everybody_who_waits():
    async def body(world):
        calls = [world.ask() for _ in range(3)]
        await settled()
        world.pool.actors[0].answer(ActorDiedError())
        for call in calls:
            with pytest.raises(BudgetSpent, match="got 0: slot-0 failed 1 times, last because ActorDiedError"):
                await call
        with pytest.raises(BudgetSpent):
            await world.ask()

    lived(body, num_actors=1, limit=0)


def test_a_hung_actor_is_lost_after_a_call_and_a_ping_without_an_answer():
    async def body(world):
        await world.pool.ready()
        call = world.ask(index=0)
        await settled()
        world.pool.actors[0].is_hung = True
        while not world.pool.health[0].num_restarts or not world.pool.actors[0].asked:
            await asyncio.sleep(0.01)
        world.pool.actors[0].answer()
        await call
        assert world.pool.figures() == {"restarts_slot": 1, "hung_slot": 1, "calls_again_slot": 1, "ready_slot": 2}
        assert "no answer to a call of 0.05 s, nor to a ping within 0.05 s" in world.lines[0]

    lived(body, faults=FaultsConfig(hang_s=0.05, ping_s=0.05))


def test_a_turn_is_interrupted_when_its_actor_is_lost_whatever_it_waits_for():
    async def body(world):
        started, told = asyncio.Event(), []

        async def stream():
            try:
                async with world.pool.turn(3, index=0):
                    started.set()
                    await asyncio.Event().wait()
            except ActorLost as error:
                told.append(str(error))
            await asyncio.sleep(0)      # the task goes on as if nobody had cancelled it
            return asyncio.current_task().cancelling()

        task = asyncio.ensure_future(stream())
        await started.wait()
        world.pool.lose(0, world.pool.actors[0], "it was killed")
        assert await task == 0 and told == ["slot-0 is lost: it was killed"]
        await settled()
        assert world.pool.in_flight == [0, 0] and world.board.entries == []

    lived(body)


def test_a_stream_that_gives_something_gets_on_however_long_it_lasts():
    async def body(world):
        now = [0.0]
        world.pool._board = world.board = Board(lambda: now[0])
        async with world.pool.turn(3) as (_, moved):
            for _ in range(3):
                now[0] += 60.0
                assert world.board.stuck(60.0) is not None
                moved()
                assert world.board.stuck(60.0) is None

    lived(body)


def test_who_cancels_a_turn_is_obeyed():
    async def body(world):
        async def stream():
            async with world.pool.turn(3):
                await asyncio.Event().wait()

        task = asyncio.ensure_future(stream())
        await settled()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert world.pool.in_flight == [0, 0] and world.pool.figures() == {"ready_slot": 2}

    lived(body)


def test_an_actor_with_weights_gets_work_once_it_has_those_of_now():
    async def body(world):
        pool, asked = world.pool, []

        async def catch_up(index):
            asked.append(index)

        pool._catch_up = catch_up
        await pool.ready()
        assert [health.state for health in pool.health] == [State.STALE] * 2
        call = world.ask()
        await settled()
        assert not call.done() and pool.in_flight == [0, 0]
        pool.current(1, 4)
        await settled()
        pool.actors[1].answer()
        await call
        assert by(call) == 1 and asked == []
        pool.current(0, 4)
        pool.missed(1, pool.actors[1], "no answer")
        pool.lose(0, pool.actors[0], "it died", Event.HUNG)
        await settled()
        assert asked == [0] and [health.state for health in pool.health] == [State.STALE] * 2
        pool.current(0, 5)
        assert world.lines[-1].startswith("slot-0 serves again after ") and pool.health[0].version == 5
        pool.rewind()
        pool.current(0, 2)
        assert pool.health[0].version == 2 and not pool.health[1].is_ready
        assert pool.figures() == {"restarts_slot": 1, "hung_slot": 1, "missed_syncs_slot": 1, "ready_slot": 1}

    async def nothing(index):
        pass

    lived(body, catch_up=nothing)


def test_a_late_word_on_an_actor_that_was_replaced_is_no_word_on_the_one_in_its_place():
    async def body(world):
        await world.pool.ready()
        former = world.pool.actors[0]
        world.pool.lose(0, former, "it died")
        await settled()
        world.pool.lose(0, former, "it died")
        world.pool.missed(0, former, "it died")
        assert world.pool.figures() == {"restarts_slot": 1, "ready_slot": 2}

    lived(body)


def test_what_the_first_start_raises_is_raised():
    async def body(world):
        async def broken():
            raise ValueError("explainer.server.url must be of a server that answers")

        world.pool.actors[1].ready.remote = broken
        with pytest.raises(ValueError, match="must be of a server that answers"):
            await world.pool.ready()

    lived(body)


def test_an_actor_that_dies_while_it_starts_is_started_once_more():
    async def body(world):
        await world.pool.ready()
        make, num_made = world.pool._make, []

        async def dies():
            raise ActorDiedError()

        def frail(index):
            actor = make(index)
            num_made.append(index)
            if len(num_made) < 3:
                actor.ready.remote = dies
            return actor

        world.pool._make = frail
        world.pool.lose(1, world.pool.actors[1], "it died")
        while not world.pool.health[1].is_ready:
            await asyncio.sleep(0)
        assert num_made == [1, 1, 1] and world.pool.figures()["restarts_slot"] == 3
        assert sum("serves again" in line for line in world.lines) == 1

    lived(body)


def test_one_that_is_lost_with_its_node_and_has_no_place_elsewhere_ends_the_run_in_time(monkeypatch):
    """Nobody waits for it for as long as budgets last."""
    monkeypatch.setattr("actors.faults.awaiting.PLACE_S", 0.05)

    async def body(world):
        await world.pool.ready()
        asking = world.ask()
        await settled()
        world.pool._make = lambda index: world.made.append((index, Homeless(len(world.made)))) or world.made[-1][1]
        world.made[0][1].answer(ActorDiedError())
        with pytest.raises(UserError, match=r"slot-0 must get another place .* got none: no node has room for it"):
            await asking
        assert len(world.made) == 2
        assert [line.split(":")[0] for line in world.lines if "place in the cluster" in line] == [
            "slot-0 waits for a place in the cluster, for 0.3 s at most (placement.ready_timeout_s)"]

    lived(body, num_actors=1, ready_timeout_s=0.3, lacks=lambda index: "no node has room for it")


class Homeless(Actor):
    async def _ready(self):
        await asyncio.Event().wait()
