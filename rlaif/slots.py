"""Stage 2 of the ESFP reward, written: a template with slots, filled in with texts for a masked LM to read.

    template, tokenizer -> compile_template -> encode -> token ids with known slot positions

Texts from outside are encoded apart from the template and can never add, move or fill a slot, whatever they contain.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

__all__ = ["FIELDS", "CompiledTemplate", "Encoded", "Slot", "SlotTemplate", "compile_template", "encode"]

# The text fields of a template. Where a text is too long, a prompt loses its head (the question is mostly at its end),
# a completion and an explanation lose their tail.
FIELDS = ("prompt", "completion", "explanation")
_LOSES_HEAD = ("prompt",)

# Characters of a field looked at per token of max_tokens: bounds the work on a text of megabytes. Anything longer has
# been cut, and counts as truncated.
_CHARACTERS_PER_TOKEN = 64

_MARK = re.compile(r"\{(?P<field>\w+)\}|\[(?P<slot>\w+)\]|(?P<stray>[{}\[\]])")


@dataclass(frozen=True)
class Slot:
    """One place the masked language model fills in."""

    name: str  # as in the text, [name]; letters, digits, _
    classes: list[list[str]]  # label words of each class, in order; at least two classes
    values: list[float]  # score of each class, in the unit of the reward
    weight: float = 1.0  # of this slot's score in the reward

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w+", self.name):
            raise ValueError(f"name of a slot must be letters, digits and _, got {self.name!r}; rename it")
        where = f"of slot {self.name}"
        if len(self.classes) < 2:
            raise ValueError(f"classes {where} must be at least two, got {len(self.classes)}; add a class")
        for words in self.classes:
            if isinstance(words, str) or not words or not all(isinstance(w, str) and w.strip() for w in words):
                raise ValueError(f"classes {where} must be lists of label words, got {words!r}; write [[up], [down]]")
        if len(self.values) != len(self.classes):
            raise ValueError(f"values {where} must be one a class ({len(self.classes)}), got {len(self.values)}; match")
        if not all(math.isfinite(value) for value in self.values):
            raise ValueError(f"values {where} must be finite, got {list(self.values)}; give numbers")
        if not math.isfinite(self.weight):
            raise ValueError(f"weight {where} must be finite, got {self.weight}; 1.0 is usual")


@dataclass(frozen=True)
class SlotTemplate:
    """A text with `{prompt}`, `{completion}`, `{explanation}` as fields and `[name]` as slots."""

    text: str
    slots: list[Slot]
    max_tokens: int  # tokens of a filled-in template, special tokens included; >= 1
    temperature: float = 1.0  # divides the class logits; > 0, fitted on held-out data

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be >= 1, got {self.max_tokens}; use what the encoder can read, as 512")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be > 0 and finite, got {self.temperature}; 1.0 is uncalibrated")
        names = [slot.name for slot in self.slots]
        marked = [text for kind, text in _parse(self.text) if kind == "slot"]
        if not marked:
            raise ValueError(f"text must have a slot, got {self.text!r}; add one as [name]")
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"slots must have distinct names, got {name} twice; rename one")
            if name not in marked:
                raise ValueError(f"slots must all be in the text, got {name} without [{name}]; add it or drop the slot")
        for name in marked:
            if name not in names:
                raise ValueError(f"text must name declared slots only, got [{name}]; declare it under slots")
            if marked.count(name) > 1:
                raise ValueError(f"text must name each slot once, got [{name}] {marked.count(name)} times; remove one")


@dataclass(frozen=True)
class _Ids:
    ids: tuple[int, ...]


@dataclass(frozen=True)
class _Field:
    name: str
    prefix: str  # the blanks that stood before the field in the text, encoded with it


@dataclass(frozen=True)
class _Mask:
    slot: int  # number in template.slots


@dataclass(frozen=True, eq=False)
class CompiledTemplate:
    """A template bound to a tokenizer: everything `encode` and `class_logits` need, checked."""

    template: SlotTemplate
    tokenizer: PreTrainedTokenizerBase
    pieces: tuple[_Ids | _Field | _Mask, ...]  # in order of the text, [CLS] and [SEP] included
    num_fixed_tokens: int  # tokens of the template with empty fields
    special_ids: frozenset[int]  # ids no text may produce
    word_ids: Tensor  # [S, K, W] int64, label words of each class; padding repeats 0 and is masked
    word_mask: Tensor  # [S, K, W] bool
    values: Tensor  # [S, K] float32, 0 for classes a slot does not have
    weights: Tensor  # [S] float32


@dataclass(frozen=True)
class Encoded:
    """Filled-in templates as token ids, unpadded."""

    input_ids: list[list[int]]  # N rows of 1..max_tokens ids
    slot_positions: list[list[int]]  # N rows of S positions, in the order of template.slots
    is_truncated: list[bool]  # N; a field lost something

    @property
    def num_truncated(self) -> int:
        return sum(self.is_truncated)


def compile_template(template: SlotTemplate, tokenizer: PreTrainedTokenizerBase) -> CompiledTemplate:
    """The template bound to the tokenizer. A ValueError of one line where the two do not fit."""
    for token in ("mask", "pad"):
        if getattr(tokenizer, f"{token}_token_id") is None:
            raise ValueError(f"tokenizer must have a {token} token, got none; use the tokenizer of a masked language "
                             "model")
    special_ids = frozenset(tokenizer.all_special_ids) | {
        token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    pieces, blank_before = _pieces(template, tokenizer, special_ids)
    num_fixed = sum(len(piece.ids) if isinstance(piece, _Ids) else isinstance(piece, _Mask) for piece in pieces)
    if num_fixed > template.max_tokens:
        raise ValueError(f"max_tokens must be >= {num_fixed}, the template without its fields, got "
                         f"{template.max_tokens}; shorten the text or raise max_tokens")
    words = [_word_ids(slot, tokenizer, special_ids, blank_before[slot.name]) for slot in template.slots]
    num_classes = max(len(slot) for slot in words)
    num_words = max(len(ids) for slot in words for ids in slot)
    word_ids = torch.zeros(len(words), num_classes, num_words, dtype=torch.int64)
    word_mask = torch.zeros(word_ids.shape, dtype=torch.bool)
    values = torch.zeros(len(words), num_classes)
    for s, slot in enumerate(words):
        values[s, : len(slot)] = torch.tensor([float(value) for value in template.slots[s].values])
        for k, ids in enumerate(slot):
            word_ids[s, k, : len(ids)] = torch.tensor(ids)
            word_mask[s, k, : len(ids)] = True
    weights = torch.tensor([float(slot.weight) for slot in template.slots])
    return CompiledTemplate(template, tokenizer, pieces, num_fixed, special_ids, word_ids, word_mask, values, weights)


def encode(compiled: CompiledTemplate, prompts: Sequence[str], completions: Sequence[str],
           explanations: Sequence[str | None] | None) -> Encoded:
    """The template filled in with each row's texts, as token ids with known slot positions.

    prompts, completions, explanations: N texts each; an explanation may be None, which is the empty text, and None for
    all of them where there are none. Each text is encoded by itself with the parsing of special tokens off, and a
    special id that comes out of it all the same becomes the unknown token; ids are then put together piece by piece.

    A row over max_tokens is cut and marked: fields are cut to one common length, the largest that fits, so that the
    longest loses first and short ones nothing. Prompts lose their head, completions and explanations their tail.
    """
    num_rows = len(prompts)
    explanations = [None] * num_rows if explanations is None else explanations
    texts = dict(zip(FIELDS, (prompts, completions, explanations), strict=True))
    for name, column in texts.items():
        if len(column) != num_rows:
            raise ValueError(f"{name}s must be one a prompt ({num_rows}), got {len(column)}; give equal columns")

    fields = [piece for piece in compiled.pieces if isinstance(piece, _Field)]
    limit = _CHARACTERS_PER_TOKEN * compiled.template.max_tokens
    columns = [_encode_field(compiled, field, texts[field.name], limit) for field in fields]
    room = compiled.template.max_tokens - compiled.num_fixed_tokens
    encoded = Encoded([], [], [])
    for n in range(num_rows):
        row = [column[n] for column in columns]
        sizes = _fit([len(ids) for ids in row], room)
        ids, positions = _assemble(compiled, [_cut(*part) for part in zip(fields, row, sizes, strict=True)])
        encoded.input_ids.append(ids)
        encoded.slot_positions.append(positions)
        is_long = any(len(texts[field.name][n] or "") > limit for field in fields)
        encoded.is_truncated.append(is_long or sum(map(len, row)) > room)
    return encoded


def _parse(text: str) -> list[tuple[str, str]]:
    """The text as (kind, text) in order, kind one of literal, field, slot."""
    parts: list[tuple[str, str]] = []
    end = 0
    for match in _MARK.finditer(text):
        parts.append(("literal", text[end : match.start()]))
        end = match.end()
        kind = match.lastgroup
        if kind == "stray":
            raise ValueError(f"text must use braces and brackets for {{field}} and [slot] only, got {match.group()!r} "
                             f"at character {match.start()}; names are letters, digits and _")
        if kind == "field" and match.group(kind) not in FIELDS:
            raise ValueError(f"text must use the fields {', '.join(FIELDS)} only, got {{{match.group(kind)}}}; rename "
                             "it")
        parts.append((kind, match.group(kind)))
    parts.append(("literal", text[end:]))
    return [(kind, part) for kind, part in parts if part]


def _pieces(template: SlotTemplate, tokenizer: PreTrainedTokenizerBase, special_ids: frozenset[int]
            ) -> tuple[tuple[_Ids | _Field | _Mask, ...], dict[str, bool]]:
    """The pieces of a row, and for each slot whether a blank stands before it.

    A blank before a field is encoded with the field and a blank before a slot is left to the slot, as a tokenizer that
    marks beginnings of words (byte-level BPE, SentencePiece) would have it.
    """
    names = [slot.name for slot in template.slots]
    pieces: list[_Ids | _Field | _Mask] = []
    blank_before: dict[str, bool] = {}
    blank = ""
    for kind, text in _parse(template.text):
        if kind == "literal":
            blank = text[len(text.rstrip()) :]
            ids = _encode_texts(tokenizer, [text.rstrip()])[0]
            wrong = [tokenizer.convert_ids_to_tokens(i) for i in ids if i in special_ids]
            if wrong:
                raise ValueError(f"text must be made of words the tokenizer knows, got {wrong[0]} in {text.strip()!r}; "
                                 "use other words")
            if ids:
                pieces.append(_Ids(tuple(ids)))
            continue
        if kind == "field":
            pieces.append(_Field(text, blank))
        else:
            pieces.append(_Mask(names.index(text)))
            blank_before[text] = bool(blank)
        blank = ""
    if tokenizer.cls_token_id is not None:
        pieces.insert(0, _Ids((tokenizer.cls_token_id,)))
    if tokenizer.sep_token_id is not None:
        pieces.append(_Ids((tokenizer.sep_token_id,)))
    return tuple(pieces), blank_before


def _word_ids(slot: Slot, tokenizer: PreTrainedTokenizerBase, special_ids: frozenset[int], has_blank: bool
              ) -> list[list[int]]:
    """The token id of every label word, class by class."""
    owner: dict[int, str] = {}
    classes: list[list[int]] = []
    for words in slot.classes:
        classes.append([])
        for word in words:
            ids = _encode_texts(tokenizer, [(" " if has_blank else "") + word.strip()])[0]
            if len(ids) != 1 or ids[0] in special_ids:
                raise ValueError(f"label word {word!r} of slot {slot.name} must be one token the tokenizer knows, got "
                                 f"{tokenizer.convert_ids_to_tokens(ids)}; choose another word")
            if ids[0] in owner:
                raise ValueError(f"label words of slot {slot.name} must be distinct tokens, got {word!r} and "
                                 f"{owner[ids[0]]!r} as the same; drop one")
            owner[ids[0]] = word
            classes[-1].append(ids[0])
    return classes


def _encode_texts(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Ids of each text by itself: no special tokens added, none parsed, nothing cut."""
    if not texts:
        return []
    return tokenizer(texts, add_special_tokens=False, split_special_tokens=True, truncation=False, padding=False,
                     return_attention_mask=False, return_token_type_ids=False, verbose=False)["input_ids"]


def _encode_field(compiled: CompiledTemplate, field: _Field, texts: Sequence[str | None], limit: int
                  ) -> list[list[int]]:
    """Ids of one field of every row; special ids become the unknown token, or go where there is none."""
    prepared = []
    for text in texts:
        text = text or ""
        text = text[-limit:] if field.name in _LOSES_HEAD else text[:limit]
        # Lone surrogates cannot be encoded: they become "?".
        text = text.encode("utf-8", "replace").decode("utf-8")
        prepared.append(field.prefix + text if text else "")
    unknown = compiled.tokenizer.unk_token_id
    rows = []
    for ids in _encode_texts(compiled.tokenizer, prepared):
        ids = [unknown if token_id in compiled.special_ids else token_id for token_id in ids]
        rows.append([token_id for token_id in ids if token_id is not None])
    return rows


def _fit(lengths: list[int], room: int) -> list[int]:
    """Lengths cut to one common cap, the largest that fits `room`; the first of the cut get what is over."""
    kept = [0] * len(lengths)
    left = room
    # Shortest first; of equals the last first, whose share is rounded down.
    order = sorted(range(len(lengths)), key=lambda n: (lengths[n], -n))
    for done, n in enumerate(order):
        kept[n] = min(lengths[n], left // (len(order) - done))
        left -= kept[n]
    return kept


def _cut(field: _Field, ids: list[int], size: int) -> list[int]:
    return ids[len(ids) - size :] if field.name in _LOSES_HEAD else ids[:size]


def _assemble(compiled: CompiledTemplate, fields: list[list[int]]) -> tuple[list[int], list[int]]:
    """The ids of one row and its slot positions; `fields` holds the ids of each field piece, in order."""
    ids: list[int] = []
    positions = [-1] * len(compiled.template.slots)
    parts = iter(fields)
    for piece in compiled.pieces:
        if isinstance(piece, _Mask):
            positions[piece.slot] = len(ids)
            ids.append(compiled.tokenizer.mask_token_id)
        else:
            ids.extend(piece.ids if isinstance(piece, _Ids) else next(parts))
    assert len(ids) <= compiled.template.max_tokens and -1 not in positions
    return ids, positions
