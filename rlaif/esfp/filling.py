"""Filling a text with texts from outside, as token ids put together piece by piece.

Texts from outside are encoded apart from the text that holds them: they can never add, move or imitate a token of it,
whatever they contain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

__all__ = ["Field", "Filled", "Fixed", "encode_plain", "fill", "num_fixed_tokens", "special_ids"]

# Where a text is too long, a prompt loses its head (the question is mostly at its end), all others lose their tail.
_LOSES_HEAD = ("prompt",)

# Characters of a field looked at per token of max_tokens: bounds the work on a text of megabytes. Anything longer has
# been cut, and counts as truncated.
_CHARACTERS_PER_TOKEN = 64


@dataclass(frozen=True)
class Fixed:
    """Tokens that stand in every row."""

    ids: tuple[int, ...]


@dataclass(frozen=True)
class Field:
    """A place for a text from outside."""

    name: str
    prefix: str = ""  # the blanks that stood before the field, encoded with it


@dataclass(frozen=True)
class Filled:
    """N rows as token ids, unpadded."""

    parts: list[list[list[int]]]  # for each row the ids of each piece, in the order of the pieces
    is_truncated: list[bool]  # a field lost something

    @property
    def input_ids(self) -> list[list[int]]:
        return [[token_id for part in row for token_id in part] for row in self.parts]


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids of the tokenizer's special tokens, which no text from outside may produce."""
    return frozenset(tokenizer.all_special_ids) | {
        token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}


def encode_plain(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text by itself: no special tokens added, none parsed, nothing cut."""
    if not texts:
        return []
    return tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, truncation=False, padding=False,
                     return_attention_mask=False, return_token_type_ids=False, verbose=False)["input_ids"]


def num_fixed_tokens(pieces: Sequence[Fixed | Field]) -> int:
    """Tokens of `pieces` with empty fields."""
    return sum(len(piece.ids) for piece in pieces if isinstance(piece, Fixed))


def fill(pieces: Sequence[Fixed | Field], texts: Mapping[str, Sequence[str | None]], num_rows: int, *,
         tokenizer: PreTrainedTokenizerBase, max_tokens: int, forbidden: frozenset[int]) -> Filled:
    """`pieces` filled in with each row's texts.

    texts: for each field's name N texts; None is the empty text. max_tokens: of a row, at least `num_fixed_tokens`.
    forbidden: ids that no text may produce; one that comes out all the same becomes the unknown token, or goes where
    there is none.

    A row over max_tokens is cut and marked: fields are cut to one common length, the largest that fits, so that the
    longest loses first and short ones nothing. Prompts lose their head, all others their tail.
    """
    room = max_tokens - num_fixed_tokens(pieces)
    assert room >= 0, (max_tokens, room)
    fields = [piece for piece in pieces if isinstance(piece, Field)]
    limit = _CHARACTERS_PER_TOKEN * max_tokens
    columns = [_encode_field(field, texts[field.name], limit, tokenizer, forbidden) for field in fields]
    filled = Filled([], [])
    for n in range(num_rows):
        row = [column[n] for column in columns]
        sizes = _fit([len(ids) for ids in row], room)
        found = iter([_cut(*part) for part in zip(fields, row, sizes, strict=True)])
        filled.parts.append([list(piece.ids) if isinstance(piece, Fixed) else next(found) for piece in pieces])
        is_long = any(len(texts[field.name][n] or "") > limit for field in fields)
        filled.is_truncated.append(is_long or sum(map(len, row)) > room)
    return filled


def _encode_field(field: Field, texts: Sequence[str | None], limit: int, tokenizer: PreTrainedTokenizerBase,
                  forbidden: frozenset[int]) -> list[list[int]]:
    prepared = []
    for text in texts:
        text = text or ""
        text = text[-limit:] if field.name in _LOSES_HEAD else text[:limit]
        # Lone surrogates cannot be encoded: they become "?".
        text = text.encode("utf-8", "replace").decode("utf-8")
        prepared.append(field.prefix + text if text else "")
    unknown = tokenizer.unk_token_id
    rows = []
    for ids in encode_plain(tokenizer, prepared):
        ids = [unknown if token_id in forbidden else token_id for token_id in ids]
        rows.append([token_id for token_id in ids if token_id is not None])
    return rows


def _fit(lengths: Sequence[int], room: int) -> list[int]:
    """Lengths cut to one common cap, the largest that fits `room`; the longest, of equals the first, get the rest."""
    kept = [0] * len(lengths)
    left = room
    # Shortest first; of equals the last first, whose share is rounded down.
    order = sorted(range(len(lengths)), key=lambda n: (lengths[n], -n))
    for done, n in enumerate(order):
        kept[n] = min(lengths[n], left // (len(order) - done))
        left -= kept[n]
    return kept


def _cut(field: Field, ids: list[int], size: int) -> list[int]:
    return ids[len(ids) - size :] if field.name in _LOSES_HEAD else ids[:size]
