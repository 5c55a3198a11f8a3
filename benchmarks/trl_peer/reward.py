"""The reward of the race: a plain Python function, the same for both trainers, and nothing to wait for."""

from __future__ import annotations

from collections.abc import Sequence


def vowel_shares(completions: Sequence[str]) -> list[float]:
    """The share of vowels among the letters of each text, 0 where there are none."""
    return [_vowel_share(text.lower()) for text in completions]


def _vowel_share(text: str) -> float:
    letters = [letter for letter in text if letter.isalpha()]
    return sum(letter in "aeiou" for letter in letters) / max(1, len(letters))
