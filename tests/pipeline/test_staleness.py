"""The capacity bounds staleness whatever finishes when; what is affordable never stands a run still."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.batch import SCORED
from rlaif.pipeline.staleness import affordable, capacity, refuse_stale, staleness_figures
from rlaif.rewards.scored_batch import small_columns
from tests.helpers.batch_examples import table


@pytest.mark.parametrize(
    ("version", "staleness", "trained", "waiting", "steps", "expected"),
    [
        (0, 0, 0, 0, None, 4),      # synchronous: a step's groups
        (0, 0, 0, 4, None, 0),      # and no more before they are trained
        (0, 0, 4, 0, None, 0),      # nor before their update is installed
        (1, 0, 4, 0, None, 4),
        (0, 2, 0, 0, None, 12),     # two steps ahead
        (3, 2, 12, 5, None, 7),
        (0, 0, 0, 3, None, 1),      # one was discarded: another takes its place
        (0, 1, 0, 9, None, 0),      # more than allowed, after a resume with a smaller bound
        (8, 1, 32, 0, 9, 4),        # the last step of nine
        (9, 1, 36, 0, 9, 0),
    ])
def test_the_capacity_is_that_of_the_formula(version, staleness, trained, waiting, steps, expected):
    assert capacity(version=version, max_staleness=staleness, groups_per_step=4, num_trained=trained,
                    num_waiting=waiting, num_steps=steps) == expected


def test_a_negative_count_is_a_bug():
    with pytest.raises(AssertionError, match="num_waiting must be >= 0, got -1"):
        capacity(version=0, max_staleness=0, groups_per_step=4, num_trained=0, num_waiting=-1)


@settings(max_examples=300, deadline=None)
@given(staleness=st.integers(0, 4), size=st.integers(1, 6), seed=st.integers(0, 1 << 30),
       discarded=st.floats(0, 0.7), num_steps=st.integers(1, 12))
def test_no_group_is_ever_staler_than_allowed(staleness, size, seed, discarded, num_steps):
    """Groups are drawn as the capacity allows, finish in any order, are discarded at random when a step is chosen; the
    bound holds, every step is filled, and no group is left over at the end."""
    chance = random.Random(seed)
    version, trained, next_group = 0, 0, 0
    drawn_at, in_flight, scored = {}, [], []
    while version < num_steps:
        events = ["draw", "finish", "learn"]
        event = chance.choice(events)
        waiting = len(in_flight) + len(scored)
        room = capacity(version=version, max_staleness=staleness, groups_per_step=size, num_trained=trained,
                        num_waiting=waiting, num_steps=num_steps)
        assert waiting <= (staleness + 1) * size
        if event == "draw":
            for _ in range(chance.randint(0, room)):
                drawn_at[next_group] = version
                in_flight.append(next_group)
                next_group += 1
        elif event == "finish" and in_flight:
            scored.append(in_flight.pop(chance.randrange(len(in_flight))))
        elif event == "learn":
            first = sorted(in_flight + scored)[:size]
            if len(first) < size or any(group in in_flight for group in first):
                assert room > 0 or in_flight, "a step that can never be filled"
                continue
            bad = [group for group in first if chance.random() < discarded]
            scored = [group for group in scored if group not in bad]
            if not bad:
                assert all(version - drawn_at[group] <= staleness for group in first)
                scored = [group for group in scored if group not in first]
                trained += size
                version += 1        # the update is installed at once, or any time later: the room only comes later
    assert trained == num_steps * size and not in_flight and not scored


def test_the_groups_that_a_step_needs_may_always_be_drawn():
    common = {"num_needed": 4, "bytes_per_group": 100.0, "max_bytes": 1000}
    assert affordable(12, num_waiting=0, held_bytes=0, num_in_flight=0, **common) == 10
    assert affordable(12, num_waiting=5, held_bytes=300, num_in_flight=2, **common) == 5
    assert affordable(12, num_waiting=3, held_bytes=5000, num_in_flight=0, **common) == 1, "one is missing"
    assert affordable(12, num_waiting=4, held_bytes=5000, num_in_flight=0, **common) == 0
    assert affordable(3, num_waiting=0, held_bytes=0, num_in_flight=0, **common) == 3, "never more than the capacity"
    assert affordable(12, num_waiting=0, num_needed=4, held_bytes=0, bytes_per_group=0.0, num_in_flight=0,
                      max_bytes=1) == 12, "nothing is known yet"


@given(capacity=st.integers(0, 50), waiting=st.integers(0, 50), held=st.integers(0, 10**6), flying=st.integers(0, 50),
       size=st.floats(0, 1e6), limit=st.integers(1, 10**6))
def test_what_is_affordable_is_between_nothing_and_the_capacity(capacity, waiting, held, flying, size, limit):
    found = affordable(capacity, num_waiting=waiting, num_needed=4, held_bytes=held, bytes_per_group=size,
                       num_in_flight=flying, max_bytes=limit)
    assert min(capacity, max(0, 4 - waiting)) <= found <= capacity


@pytest.mark.parametrize(("versions", "is_right"), [([3, 4, 5], True), ([], True), ([2, 5], False), ([5, 6], False)])
def test_rows_that_are_too_old_or_from_the_future_are_a_bug(versions, is_right):
    if is_right:
        refuse_stale(5, versions, 2)
    else:
        with pytest.raises(AssertionError, match=r"rows must be of versions 3\.\.5, got one of [26]"):
            refuse_stale(5, versions, 2)


def test_staleness_is_that_of_the_oldest_token():
    rows = small_columns(table(SCORED, {"policy_version": 3, "policy_versions": [3, 3, 4]},
                               {"policy_version": 5, "policy_versions": [5, 5, 5]},
                               {"policy_version": 4, "policy_versions": [4, 4, 4]},
                               {"policy_version": 4, "policy_versions": [4, 5, 5]}))
    assert staleness_figures(5, rows) == {"staleness_mean": 1.0, "staleness_max": 2, "continued_share": 0.5}
    assert staleness_figures(5, rows.slice(0, 0)) == {}
