"""The states of an engine: every pair of state and event, by hand."""

import itertools

import pytest

from rlaif.pipeline.health import TRANSITIONS, Event, Health, State, after

TABLE = """
            started  current  missed  rewound  died  hung  restarted
starting    stale    -        -       -        dead  dead  -
stale       -        ready    stale   stale    dead  dead  -
ready       -        ready    stale   stale    dead  dead  -
dead        -        -        -       -        -     -     starting
"""
HEAD, *ROWS = (line.split() for line in TABLE.strip().splitlines())
CELLS = {(State(row[0]), Event(event)): cell for row in ROWS for event, cell in zip(HEAD, row[1:], strict=True)}


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)), ids=lambda each: each.value)
def test_every_event_leads_where_the_table_says_or_is_refused(state, event):
    health = Health(state, 3 if state in (State.STALE, State.READY) else None)
    if CELLS[state, event] == "-":
        with pytest.raises(AssertionError, match=f"that is {state.value} must not be {event.value}"):
            after(health, event)
    else:
        version = 4 if event is Event.CURRENT else None
        assert after(health, event, version).state is State(CELLS[state, event])


def test_the_table_is_the_whole_of_it():
    assert {key for key, cell in CELLS.items() if cell != "-"} == set(TRANSITIONS)
    assert {state for state in State if Health(state).is_ready} == {State.READY}
    assert {state for state in State if Health(state).is_alive} == {State.READY, State.STALE}


def lived(*events):
    health = Health()
    for event in events:
        health = after(health, *event) if isinstance(event, tuple) else after(health, event)
    return health


def test_an_engine_is_ready_only_with_the_weights_of_now():
    assert not lived(Event.STARTED).is_ready
    assert lived(Event.STARTED, (Event.CURRENT, 0)) == Health(State.READY, 0)
    assert lived(Event.STARTED, (Event.CURRENT, 0), Event.MISSED) == Health(State.STALE, 0)
    assert lived(Event.STARTED, (Event.CURRENT, 0), Event.MISSED, (Event.CURRENT, 2)) == Health(State.READY, 2)


def test_an_engine_that_needs_no_weights_is_ready_once_it_has_started():
    assert lived(Event.STARTED, (Event.CURRENT, None)) == Health(State.READY, None)


def test_a_restart_loses_the_weights_and_is_counted():
    health = lived(Event.STARTED, (Event.CURRENT, 5), Event.HUNG)
    assert health == Health(State.DEAD, 5)
    health = after(health, Event.RESTARTED)
    assert health == Health(State.STARTING, None, 1)
    assert after(after(health, Event.STARTED), Event.CURRENT, 1) == Health(State.READY, 1, 1)


def test_a_version_goes_back_only_where_the_learners_did():
    ready = lived(Event.STARTED, (Event.CURRENT, 5))
    for version in (4, None):
        with pytest.raises(AssertionError, match="must not go back from 5"):
            after(ready, Event.CURRENT, version)
    assert after(ready, Event.CURRENT, 5) == ready
    assert after(after(ready, Event.REWOUND), Event.CURRENT, 2) == Health(State.READY, 2)


def test_only_a_current_engine_tells_a_version():
    with pytest.raises(AssertionError, match="only a current engine has a new version, got missed with 3"):
        after(lived(Event.STARTED), Event.MISSED, 3)
