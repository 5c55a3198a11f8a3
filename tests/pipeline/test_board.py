from rlaif.pipeline.board import Board


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_what_is_under_way_is_on_the_board_until_it_is_done():
    board = Board(Clock())
    with board.doing("score", "slot-0", "its answer to 32 rows"), board.doing("rollout", "rollout-1", "tokens"):
        assert [(entry.stage, entry.who) for entry in board.entries] == [("score", "slot-0"), ("rollout", "rollout-1")]
    assert board.entries == []


def test_an_error_takes_an_entry_off_the_board():
    board = Board(Clock())
    try:
        with board.doing("score", "slot-0", "an answer"):
            raise ValueError
    except ValueError:
        pass
    assert board.entries == []


def test_a_line_names_stage_actor_since_when_and_what_it_waits_for_and_comes_ever_more_seldom():
    clock = Clock()
    board, told = Board(clock), []
    with board.doing("explain", "explainer-0", "its answer to 32 rows"):
        for _ in range(500):
            clock.now += 1
            told += [(clock.now - 100, line) for line in board.warnings(60.0)]
    assert [when for when, _ in told] == [60, 120, 240, 480]
    assert told[0][1] == "explain: explainer-0 without progress for 60 s; waits for its answer to 32 rows"


def test_a_look_after_a_long_pause_says_it_once():
    clock = Clock()
    board = Board(clock)
    with board.doing("learn", "2 ranks", "the policy update"):
        clock.now += 1000
        assert len(board.warnings(60.0)) == 1 and board.warnings(60.0) == []


def test_progress_starts_the_time_anew_and_the_line_tells_both():
    clock = Clock()
    board = Board(clock)
    with board.doing("rollout", "rollout-0", "tokens") as waiting:
        clock.now += 100
        assert len(board.warnings(60.0)) == 1
        board.moved(waiting)
        assert board.warnings(60.0) == [] and board.stuck(90.0) is None
        clock.now += 90
        line = "rollout: rollout-0 without progress for 90 s, under way for 190 s; waits for tokens"
        assert board.warnings(60.0) == [line] and board.stuck(90.0) == line


def test_stuck_is_who_has_stood_longest_whatever_the_others_do():
    clock = Clock()
    board = Board(clock)
    with board.doing("score", "slot-0", "an answer"):
        clock.now += 50
        for _ in range(3):
            with board.doing("score", "slot-1", "an answer"):
                clock.now += 20
        assert board.stuck(111.0) is None
        assert board.stuck(110.0) == "score: slot-0 without progress for 110 s; waits for an answer"


def test_a_board_that_stays_bare_is_stuck_too():
    clock = Clock()
    board = Board(clock)
    clock.now += 500
    board.watched()
    clock.now += 60
    assert board.stuck(61.0) is None
    with board.doing("learn", "2 ranks", "the policy update"):
        clock.now += 60
    clock.now += 60
    assert board.stuck(61.0) is None
    clock.now += 1
    assert board.stuck(61.0) == "driver: nothing under way for 61 s; waits for what is not on the board"


def test_entries_that_say_the_same_are_told_once():
    """As eight calls that wait for the same actor do."""
    clock = Clock()
    board = Board(clock)
    with board.doing("explain", "explainer", "a READY actor"), board.doing("explain", "explainer", "a READY actor"):
        clock.now += 61.0
        assert len(board.warnings(60.0)) == 1
