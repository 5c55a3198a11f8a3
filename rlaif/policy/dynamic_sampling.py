"""Which groups of rollouts a step trains on: those whose rewards differ, where the configuration asks for them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """Groups by their group_id, each list in the order of the stream."""

    kept: list[int]             # to train on
    num_missing: int            # groups of new prompts that would fill the step, >= 0
    replaced: list[int]         # their rewards are equal, and they are not trained on
    num_equal: int              # groups of equal rewards among `kept`


def choose_groups(group_ids: Sequence[int], rewards: Sequence[Hashable], num_groups: int, *, is_last: bool) -> Choice:
    """The groups that a step of `num_groups` groups trains on, out of all that were rolled out for it.

        kept      groups with max(reward) > min(reward)
        missing   num_groups - kept: as many new prompts are to be rolled out
        is_last   no more are: the first of the others, in the stream's order, fill the step, and teach nothing

    group_ids: `[N]`, of every row, in any order; groups of any size, num_groups at most in which rewards differ.
    rewards: `[N]`, of every row: a number, or a tuple of the reward's parts where each part is normalised by itself.

    Source: DAPO (Yu et al. 2025, arXiv 2503.14476), section 3.2, equation 11, with accuracies 0 and 1 for rewards that
    are equal. Departs from it in drawing just the prompts that are missing, where DAPO draws whole batches and throws
    away what is too much, and in the end after a bounded number of rounds.
    """
    found: dict[int, set[Hashable]] = {}
    for group, reward in zip(group_ids, rewards, strict=True):
        found.setdefault(group, set()).add(reward)
    different = [group for group in sorted(found) if len(found[group]) > 1]
    equal = [group for group in sorted(found) if len(found[group]) == 1]
    num_missing = num_groups - len(different)
    assert num_missing >= 0, f"{len(different)} groups with different rewards for {num_groups} places"
    fill = equal[:num_missing] if is_last else []
    return Choice(sorted(different + fill), 0 if is_last else num_missing, equal[len(fill):], len(fill))
