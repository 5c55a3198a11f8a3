"""Every group that was drawn is in one state, is trained once at most, and stays so through a checkpoint."""

import json

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from rlaif.pipeline.ledger import SETTLED, Ledger, restored


def drawn(*group_ids):
    ledger = Ledger()
    ledger.draw(group_ids)
    return ledger


def test_a_group_goes_its_way_and_is_counted():
    ledger = drawn(0, 1, 2, 5)
    ledger.score([1, 0])
    ledger.train([0])
    ledger.discard([1])
    ledger.skip([5])
    assert ledger.totals == {"trained": 1, "discarded": 1, "skipped": 1}
    assert (ledger.in_flight, ledger.scored, ledger.num_waiting, ledger.next) == ([2], [], 1, 6)
    assert ledger.watermark == 2, "everything below is settled; 3 and 4 were never drawn"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda ledger: ledger.train([0]), "group 0 must be scored, it is settled"),         # twice
        (lambda ledger: ledger.discard([0]), "group 0 must be scored, it is settled"),
        (lambda ledger: ledger.train([2]), "group 2 must be scored, it is in flight"),
        (lambda ledger: ledger.train([9]), "group 9 must be scored, it is not drawn"),
        (lambda ledger: ledger.score([1]), "group 1 must be in flight, it is scored"),
        (lambda ledger: ledger.skip([1]), "group 1 must be in flight, it is scored"),
        (lambda ledger: ledger.redo([2]), "group 2 must be scored, it is in flight"),
        (lambda ledger: ledger.draw([2]), "group 2 must come after those that were drawn, up to 2"),
        (lambda ledger: ledger.train([1, 1]), "group 1 must be scored, it is settled"),
    ])
def test_a_second_time_or_out_of_order_is_a_bug(wrong, message):
    ledger = drawn(0, 1, 2)
    ledger.score([0, 1])
    ledger.train([0])
    with pytest.raises(AssertionError, match=message):
        wrong(ledger)


def test_what_is_lost_is_in_flight_again_and_trained_once():
    ledger = drawn(0, 1)
    ledger.score([0, 1])
    ledger.redo([0])
    assert (ledger.in_flight, ledger.scored) == ([0], [1])
    ledger.score([0])
    ledger.train([0, 1])
    assert ledger.num_trained == 2


def test_it_stays_small_while_the_run_grows():
    ledger = Ledger()
    for start in range(0, 5000, 5):
        ledger.draw(range(start, start + 5))
        ledger.score(range(start, start + 5))
        if start:
            ledger.train(range(start - 5, start))
    assert len(json.dumps(ledger.state())) < 200


def test_what_did_not_come_back_with_a_checkpoint_is_rolled_out_anew():
    ledger = drawn(0, 1, 2, 3)
    ledger.score([0, 1, 2])
    found = restored(json.loads(json.dumps(ledger.state())), [1])
    assert (found.in_flight, found.scored) == ([0, 2, 3], [1])
    with pytest.raises(AssertionError, match=r"groups \[3\] must be scored in the ledger"):
        restored(ledger.state(), [1, 3])


@pytest.mark.parametrize(
    ("change", "message"),
    [({"scored": [0, 1]}, "in two states"), ({"settled": [0]}, "in two states"), ({"in_flight": [7]}, "not drawn")])
def test_a_state_that_cannot_be_is_refused(change, message):
    state = {"next": 3, "totals": dict.fromkeys(SETTLED, 0), "in_flight": [0], "scored": [1], "settled": [2]}
    Ledger.restore(state)
    with pytest.raises(AssertionError, match=message):
        Ledger.restore(state | change)


class Against(RuleBasedStateMachine):
    """A ledger beside a plain dict that remembers everything, restarted from its own JSON at any time."""

    @initialize()
    def begin(self):
        self.ledger, self.known = Ledger(), {}

    def of(self, state):
        return sorted(group for group, known in self.known.items() if known == state)

    @rule(gaps=st.lists(st.integers(0, 2), max_size=6))
    def draw(self, gaps):
        group = max(self.known, default=-1)
        for gap in gaps:
            group += 1 + gap
            self.ledger.draw([group])
            self.known[group] = "in flight"

    @rule(data=st.data(), move=st.sampled_from([
        ("score", "in flight", "scored"), ("redo", "scored", "in flight"), ("train", "scored", "trained"),
        ("discard", "scored", "discarded"), ("skip", "in flight", "skipped")]))
    def move(self, data, move):
        verb, before, then = move
        if self.of(before):
            chosen = data.draw(st.lists(st.sampled_from(self.of(before)), unique=True))
            getattr(self.ledger, verb)(chosen)
            self.known |= dict.fromkeys(chosen, then)

    @rule(data=st.data())
    def never_twice(self, data):
        settled = [group for group, state in self.known.items() if state in SETTLED]
        if settled:
            with pytest.raises(AssertionError):
                self.ledger.train([data.draw(st.sampled_from(settled))])

    @rule()
    def restart(self):
        self.ledger = Ledger.restore(json.loads(json.dumps(self.ledger.state())))

    @invariant()
    def agrees(self):
        if not hasattr(self, "ledger"):
            return
        assert (self.ledger.in_flight, self.ledger.scored) == (self.of("in flight"), self.of("scored"))
        assert self.ledger.totals == {name: len(self.of(name)) for name in SETTLED}
        waiting = self.of("in flight") + self.of("scored")
        assert self.ledger.watermark == min(waiting, default=self.ledger.next)


TestAgainstADict = Against.TestCase
TestAgainstADict.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
