import asyncio
from types import SimpleNamespace

from actors.training.dashboard import Dashboard, state_line
from rlaif.pipeline.board import Board


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_a_line_says_what_each_stage_is_doing():
    clock = Clock()
    board = Board(clock)
    with board.doing("rollout", "rollout-0", "its answer"):
        clock.now = 130.0
        with board.doing("rollout", "rollout-1", "its answer"), board.doing("learn", "learner-0", "a step"):
            clock.now = 142.0
            assert state_line(board, {"rollout": 64, "slot": 0}, clock.now) == (
                "now: rollout 64 rows in 2 calls, the oldest 42 s; slot idle; learn 1 call, the oldest 12 s")
    assert state_line(board, {"rollout": 0, "slot": 3}, clock.now) == "now: rollout idle; slot 3 rows"
    assert state_line(board, {}, clock.now) == "now: nothing under way"


def test_while_watched_the_queues_are_looked_at_and_the_state_is_told(monkeypatch):
    board, told, seen = Board(), [], []
    pools = [SimpleNamespace(role="rollout", in_flight=[8, 4]), SimpleNamespace(role="slot", in_flight=[0])]
    dashboard = Dashboard("outputs/run")
    monkeypatch.setattr(dashboard, "queues", lambda pools: seen.append([pool.role for pool in pools]))

    async def run():
        with board.doing("rollout", "rollout-0", "its answer"):
            async with dashboard.watching(SimpleNamespace(board=board, pools=pools), told.append, 0.02):
                while len(told) < 2:
                    await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(run(), 30))
    assert told[0] == "now: rollout 12 rows in 1 call, the oldest 0 s; slot idle"
    assert seen[0] == ["rollout", "slot"]
