from actors.dashboard import state_line
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
