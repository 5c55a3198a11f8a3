"""Stage 2 of the ESFP reward, written: a template bound to a tokenizer and filled in with texts.

    template, tokenizer -> compile_template -> encode -> token ids with known slot positions

Texts from outside are encoded apart from the template and can never add, move or fill a slot, whatever they contain.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlaif.esfp.filling import Field, Fixed, encode_plain, fill, num_fixed_tokens
from rlaif.esfp.filling import special_ids as special_ids_of
from rlaif.esfp.slots import FIELDS, SEPARATOR, Slot, SlotTemplate, parse

__all__ = ["CompiledTemplate", "Encoded", "compile_template", "encode"]


@dataclass(frozen=True)
class _Form:
    """A text of the template in order, [CLS] and [SEP] included."""

    pieces: tuple[Fixed | Field, ...]
    slot_pieces: tuple[int, ...]  # for each slot of the template the number of its piece, a mask token

    @property
    def num_fixed_tokens(self) -> int:
        """Tokens with empty fields."""
        return num_fixed_tokens(self.pieces)


@dataclass(frozen=True, eq=False)
class CompiledTemplate:
    """A template bound to a tokenizer: everything `encode` and `class_logits` need, checked.

    S slots, K classes, W words, P pieces. With head "scalar" S = K = 1; words are there with head "slot" only.
    """

    template: SlotTemplate
    tokenizer: PreTrainedTokenizerBase
    form: _Form  # of a row with an explanation
    form_without: _Form  # of a row without one
    special_ids: frozenset[int]  # ids no text may produce
    word_ids: Tensor  # [S, K, W, P] int64, pieces of the label words of each class; padding repeats 0 and is masked
    piece_mask: Tensor  # [S, K, W, P] bool
    values: Tensor  # [S, K] float32, 0 for classes a slot does not have
    class_mask: Tensor  # [S, K] bool
    weights: Tensor  # [S] float32

    @property
    def num_fixed_tokens(self) -> int:
        """Tokens of the template with empty fields, the longer of its forms."""
        return max(self.form.num_fixed_tokens, self.form_without.num_fixed_tokens)


@dataclass(frozen=True)
class Encoded:
    """Filled-in templates as token ids, unpadded."""

    input_ids: list[list[int]]  # N rows of 1..max_tokens ids
    slot_positions: list[list[int]]  # N rows of S positions, in the order of template.slots; none with other heads
    is_truncated: list[bool]  # N; a field lost something
    text_spans: list[list[tuple[int, int]]]  # N rows of (start, end) where texts stand, not the template's own words

    @property
    def num_truncated(self) -> int:
        return sum(self.is_truncated)


def compile_template(template: SlotTemplate, tokenizer: PreTrainedTokenizerBase) -> CompiledTemplate:
    """The template bound to the tokenizer. A ValueError of one line where the two do not fit."""
    for token in ("mask", "pad") if template.head == "slot" else ("pad",):
        if getattr(tokenizer, f"{token}_token_id") is None:
            raise ValueError(f"tokenizer must have a {token} token, got none; use the tokenizer of a masked language "
                             "model")
    special_ids = special_ids_of(tokenizer)
    form, blank_before = _form(template.text, template, tokenizer, special_ids)
    form_without, blanks = form, blank_before
    if template.without_explanation is not None:
        form_without, blanks = _form(template.without_explanation, template, tokenizer, special_ids)
    for name, has_blank in blank_before.items():
        if blanks[name] != has_blank:
            raise ValueError(f"without_explanation must have {'a' if has_blank else 'no'} blank before [{name}] as the "
                             "text has, got the opposite; the blank is a part of the label words")
    words = []
    if template.head == "slot":
        words = [_words(slot, tokenizer, special_ids, blank_before[slot.name]) for slot in template.slots]
    word_ids, piece_mask = _word_tensors(words)
    values, class_mask = torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool)
    weights = torch.ones(1)
    if template.slots:
        sizes = [len(slot.values) for slot in template.slots]
        class_mask = torch.arange(max(sizes)) < torch.tensor(sizes).unsqueeze(1)
        values = torch.zeros(class_mask.shape)
        values[class_mask] = torch.tensor([float(value) for slot in template.slots for value in slot.values])
        weights = torch.tensor([float(slot.weight) for slot in template.slots])
    compiled = CompiledTemplate(template, tokenizer, form, form_without, special_ids, word_ids, piece_mask, values,
                                class_mask, weights)
    if compiled.num_fixed_tokens > template.max_tokens:
        raise ValueError(f"max_tokens must be >= {compiled.num_fixed_tokens}, the template without its fields, got "
                         f"{template.max_tokens}; shorten the text or raise max_tokens")
    return compiled


def encode(compiled: CompiledTemplate, prompts: Sequence[str], completions: Sequence[str],
           explanations: Sequence[str | None] | None, others: Sequence[str] | None = None,
           other_explanations: Sequence[str | None] | None = None) -> Encoded:
    """The template filled in with each row's texts, as token ids with known slot positions.

    prompts, completions, others: N texts each, `others` with a pairwise template only. explanations: N texts, or None
    for all of them. A row whose explanation is None is written in the form without explanation. Each text is encoded
    by itself with the parsing of special tokens off, and a special id that comes out of it all the same becomes the
    unknown token; ids are then put together piece by piece.

    A row over max_tokens is cut and marked: fields are cut to one common length, the largest that fits, so that the
    longest loses first and short ones nothing. Prompts lose their head, completions and explanations their tail.
    """
    num_rows = len(prompts)
    if (others is None) == compiled.template.is_pairwise:
        raise ValueError(f"others must be given with a pairwise template and with no other, got "
                         f"{'none' if others is None else len(others)}; change the template or the data")
    columns = (prompts, completions, explanations, others, other_explanations)
    texts = {name: [None] * num_rows if column is None else column
             for name, column in zip(FIELDS, columns, strict=True)}
    for name, column in texts.items():
        if len(column) != num_rows:
            raise ValueError(f"{name}s must be one a prompt ({num_rows}), got {len(column)}; give equal columns")
    encoded = Encoded([[]] * num_rows, [[]] * num_rows, [False] * num_rows, [[]] * num_rows)
    without = [n for n in range(num_rows) if texts["explanation"][n] is None]
    with_one = [n for n in range(num_rows) if texts["explanation"][n] is not None]
    for form, rows in ((compiled.form, with_one), (compiled.form_without, without)):
        _fill(compiled, form, rows, {name: [column[n] for n in rows] for name, column in texts.items()}, encoded)
    return encoded


def _fill(compiled: CompiledTemplate, form: _Form, rows: list[int], texts: dict[str, list[str | None]],
          encoded: Encoded) -> None:
    """Writes `rows` of `encoded`, all in one form."""
    filled = fill(form.pieces, texts, len(rows), tokenizer=compiled.tokenizer, max_tokens=compiled.template.max_tokens,
                  forbidden=compiled.special_ids)
    is_text = [isinstance(piece, Field) for piece in form.pieces]
    for n, parts, is_truncated in zip(rows, filled.parts, filled.is_truncated, strict=True):
        starts = list(itertools.accumulate(map(len, parts), initial=0))
        encoded.input_ids[n] = [token_id for part in parts for token_id in part]
        encoded.slot_positions[n] = [starts[number] for number in form.slot_pieces]
        encoded.text_spans[n] = [span for span, is_it in zip(itertools.pairwise(starts), is_text, strict=True) if is_it]
        encoded.is_truncated[n] = is_truncated


def _form(text: str, template: SlotTemplate, tokenizer: PreTrainedTokenizerBase, special_ids: frozenset[int]
          ) -> tuple[_Form, dict[str, bool]]:
    """The form of one text of the template, and for each slot whether a blank stands before it.

    A blank before a field is encoded with the field and a blank before a slot is left to the slot, as a tokenizer that
    marks beginnings of words (byte-level BPE, SentencePiece) would have it.
    """
    names = [slot.name for slot in template.slots]
    pieces: list[Fixed | Field] = []
    place: dict[str, int] = {}
    blank_before: dict[str, bool] = {}
    blank = ""
    for kind, part in parse(text):
        if kind == "literal":
            blank = part[len(part.rstrip()) :]
            ids = encode_plain(tokenizer, [part.rstrip()])[0]
            wrong = [tokenizer.convert_ids_to_tokens(i) for i in ids if i in special_ids]
            if wrong:
                raise ValueError(f"text must be made of words the tokenizer knows, got {wrong[0]} in {part.strip()!r}; "
                                 "use other words")
            if ids:
                pieces.append(Fixed(tuple(ids)))
            continue
        if part == SEPARATOR and kind == "field":
            if tokenizer.sep_token_id is None:
                raise ValueError("tokenizer must have a separator token for {sep}, got none; take it out of the text")
            pieces.append(Fixed((tokenizer.sep_token_id,)))
        elif kind == "field":
            pieces.append(Field(part, blank))
        else:
            place[part] = len(pieces)
            pieces.append(Fixed((tokenizer.mask_token_id,)))
            blank_before[part] = bool(blank)
        blank = ""
    offset = 0
    if tokenizer.cls_token_id is not None:
        pieces.insert(0, Fixed((tokenizer.cls_token_id,)))
        offset = 1
    if tokenizer.sep_token_id is not None:
        pieces.append(Fixed((tokenizer.sep_token_id,)))
    slots = names if template.head == "slot" else []
    return _Form(tuple(pieces), tuple(place[name] + offset for name in slots)), blank_before


def _words(slot: Slot, tokenizer: PreTrainedTokenizerBase, special_ids: frozenset[int], has_blank: bool
           ) -> list[list[list[int]]]:
    """The pieces of every label word, class by class."""
    owner: dict[tuple[int, ...], str] = {}
    classes: list[list[list[int]]] = []
    for words in slot.classes:
        classes.append([])
        for word in words:
            ids = encode_plain(tokenizer, [(" " if has_blank else "") + word.strip()])[0]
            if not ids or any(token_id in special_ids for token_id in ids):
                raise ValueError(f"label word {word!r} of slot {slot.name} must be one the tokenizer knows, got "
                                 f"{tokenizer.convert_ids_to_tokens(ids)}; choose another word")
            key = tuple(sorted(ids))    # the order of the pieces does not reach the logit
            if key in owner:
                raise ValueError(f"label words of slot {slot.name} must be distinct tokens, got {word!r} and "
                                 f"{owner[key]!r} as the same; drop one")
            owner[key] = word
            classes[-1].append(ids)
    return classes


def _word_tensors(words: list[list[list[list[int]]]]) -> tuple[Tensor, Tensor]:
    """Pieces of all label words, `[S, K, W, P]`, and where there is one."""
    shape = (len(words), max((len(slot) for slot in words), default=0),
             max((len(group) for slot in words for group in slot), default=0),
             max((len(ids) for slot in words for group in slot for ids in group), default=0))
    word_ids, piece_mask = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.bool)
    for s, slot in enumerate(words):
        for k, group in enumerate(slot):
            for w, ids in enumerate(group):
                word_ids[s, k, w, : len(ids)] = torch.tensor(ids)
                piece_mask[s, k, w, : len(ids)] = True
    return word_ids, piece_mask
