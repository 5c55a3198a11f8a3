"""What became of every group that was drawn, so that each is trained on exactly once or accounted for.

    drawn -> in flight -> scored -> trained
                 |           '----> discarded    (dynamic sampling: its rewards teach nothing)
                 '----------------> skipped      (its data was refused)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["SETTLED", "Ledger", "restored"]

SETTLED = ("trained", "discarded", "skipped")


class Ledger:
    """The state of every group by its group_id, which grows in the order of drawing and may leave gaps.

    Small however long the run: below `watermark` every group is settled, beyond it there are sets. A group that would
    be trained twice, or that was not drawn, is an AssertionError.
    """

    def __init__(self) -> None:
        self.next = 0                                   # one more than the last group that was drawn
        self.totals = dict.fromkeys(SETTLED, 0)         # groups of the whole run
        self._in_flight: set[int] = set()
        self._scored: set[int] = set()
        self._settled: set[int] = set()                 # at or beyond the watermark

    def draw(self, group_ids: Iterable[int]) -> None:
        """New groups, in order, are in flight."""
        for group in group_ids:
            assert group >= self.next, f"group {group} must come after those that were drawn, up to {self.next - 1}"
            self._in_flight.add(group)
            self.next = group + 1

    def score(self, group_ids: Iterable[int]) -> None:
        self._move(group_ids, self._in_flight, self._scored, "in flight")

    def redo(self, group_ids: Iterable[int]) -> None:
        """Scored groups whose rows were lost are in flight again."""
        self._move(group_ids, self._scored, self._in_flight, "scored")

    def train(self, group_ids: Iterable[int]) -> None:
        self._settle(group_ids, self._scored, "scored", "trained")

    def discard(self, group_ids: Iterable[int]) -> None:
        self._settle(group_ids, self._scored, "scored", "discarded")

    def skip(self, group_ids: Iterable[int]) -> None:
        self._settle(group_ids, self._in_flight, "in flight", "skipped")

    @property
    def watermark(self) -> int:
        """Every group below was settled, or never drawn."""
        return min((min(waiting) for waiting in (self._in_flight, self._scored) if waiting), default=self.next)

    @property
    def in_flight(self) -> list[int]:
        return sorted(self._in_flight)

    @property
    def scored(self) -> list[int]:
        return sorted(self._scored)

    @property
    def num_in_flight(self) -> int:
        return len(self._in_flight)

    @property
    def num_scored(self) -> int:
        return len(self._scored)

    @property
    def num_waiting(self) -> int:
        """Groups that were drawn and are not settled."""
        return len(self._in_flight) + len(self._scored)

    @property
    def num_trained(self) -> int:
        return self.totals["trained"]

    def state(self) -> dict[str, Any]:
        """What `restore` takes, as JSON can write it."""
        return {"next": self.next, "totals": dict(self.totals), "in_flight": self.in_flight, "scored": self.scored,
                "settled": sorted(self._settled)}

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> Ledger:
        """The ledger as it was. What was in flight then is to be rolled out again, under the same group_ids; what was
        scored must be there, or be given back with `redo`."""
        ledger = cls()
        ledger.next = int(state["next"])
        ledger.totals = {name: int(state["totals"][name]) for name in SETTLED}
        ledger._in_flight, ledger._scored, ledger._settled = (
            {int(group) for group in state[name]} for name in ("in_flight", "scored", "settled"))
        waiting = ledger._in_flight | ledger._scored
        assert len(waiting) == ledger.num_waiting and not waiting & ledger._settled, "a group is in two states"
        assert max(waiting | ledger._settled, default=-1) < ledger.next, "a group was not drawn"
        return ledger

    def _move(self, group_ids: Iterable[int], source: set[int], target: set[int], was: str) -> None:
        for group in group_ids:
            assert group in source, f"group {group} must be {was}, it is {self._state_of(group)}"
            source.remove(group)
            target.add(group)

    def _settle(self, group_ids: Iterable[int], source: set[int], was: str, total: str) -> None:
        group_ids = list(group_ids)
        self._move(group_ids, source, self._settled, was)
        self.totals[total] += len(group_ids)
        # Twice as many as wait, at most, are looked at for each that is settled: the sets stay as small as the work.
        watermark = self.watermark
        self._settled = {group for group in self._settled if group >= watermark}

    def _state_of(self, group: int) -> str:
        for name, groups in (("in flight", self._in_flight), ("scored", self._scored)):
            if group in groups:
                return name
        return "settled" if group in self._settled or group < self.watermark else "not drawn"


def restored(state: Mapping[str, Any], buffered: Sequence[int]) -> Ledger:
    """The ledger of `state` where only the scored groups `buffered` came back with it: the others are rolled out anew.
    """
    ledger = Ledger.restore(state)
    there = set(buffered)
    assert there <= set(ledger.scored), f"groups {sorted(there - set(ledger.scored))} must be scored in the ledger"
    ledger.redo([group for group in ledger.scored if group not in there])
    return ledger
