"""The buffer between generation and learning: scored groups, in the order in which they were drawn."""

from __future__ import annotations

import asyncio
import bisect
from collections.abc import Sequence

from rlaif.pipeline.portions import ScoredPortion

__all__ = ["Buffer"]


class Buffer:
    """Groups that were drawn wait here for their rows, and then for the learners.

    How many there may be is decided where they are drawn. An error that `fail` is told of is raised to whoever takes.
    """

    def __init__(self) -> None:
        self._drawn: list[int] = []                         # not taken yet, in order
        self._expected: set[int] = set()                    # the same
        self._found: dict[int, ScoredPortion] = {}          # group -> where its rows are
        self._changed = asyncio.Event()
        self._error: BaseException | None = None

    def expect(self, group_ids: Sequence[int]) -> None:
        """Groups that have been drawn: nothing drawn after them is taken before them."""
        for group in group_ids:
            bisect.insort(self._drawn, group)
        self._expected.update(group_ids)

    def forget(self, group_ids: Sequence[int]) -> None:
        """Groups that will not come."""
        self._expected.difference_update(group_ids)
        self._drawn = [group for group in self._drawn if group in self._expected]
        self._changed.set()

    def give_back(self, group_ids: Sequence[int], portions: Sequence[ScoredPortion]) -> None:
        """Takes back what `take` gave."""
        self.expect(group_ids)
        for portion in portions:
            self.put(portion)

    def lose(self, group_ids: Sequence[int]) -> None:
        """The rows of these groups are gone: they are expected again."""
        for group in group_ids:
            self._found.pop(group, None)

    def put(self, portion: ScoredPortion) -> None:
        """The rows of groups that are expected; in place of rows that are there already, they are combined anew."""
        for group in portion.group_ids:
            if group in self._expected:
                self._found[group] = portion
        self._changed.set()

    def fail(self, error: BaseException) -> None:
        self._error = self._error or error
        self._changed.set()

    async def take(self, num_groups: int) -> tuple[list[int], list[ScoredPortion]]:
        """The first `num_groups` groups, once they are all there, and the portions that hold them, each once; a portion
        may hold later groups too."""
        while True:
            if self._error is not None:
                raise self._error
            first = self._drawn[:num_groups]
            if len(first) == num_groups and all(group in self._found for group in first):
                self._drawn = self._drawn[num_groups:]
                self._expected.difference_update(first)
                portions = {id(self._found[group]): self._found.pop(group) for group in first}
                return first, list(portions.values())
            self._changed.clear()
            await self._changed.wait()

    @property
    def portions(self) -> list[ScoredPortion]:
        """What is there, in order, each portion once."""
        return list({id(self._found[group]): self._found[group] for group in self._drawn if group in self._found
                     }.values())

    @property
    def group_ids(self) -> list[int]:
        """Of the groups that are there."""
        return [group for group in self._drawn if group in self._found]

    @property
    def num_groups(self) -> int:
        return len(self._found)

    @property
    def num_bytes(self) -> int:
        """What is there takes of the object store; whole portions, as long as one of their groups is wanted."""
        return sum(portion.num_bytes for portion in self.portions)
