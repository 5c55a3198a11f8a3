"""The generative judge, a baseline: a causal LM reads a question, and its next token's probabilities are the verdict.

    spec, tokenizer -> compile_question -> ask -> (the engine's logprobs of the label words) -> judge

    p_k = softmax over classes of (log sum over label words w of class k of p(w | question)  -  c_k) / tau

Source: the probability of "true" as a judgement, Kadavath et al. 2022 (arXiv 2207.05221); reasoning before the verdict,
Zheng et al. 2023 (arXiv 2306.05685), section 3.4. Departs from both in that the probabilities are those of the label
words alone, and from the latter in that the verdict is read, not sampled.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlaif.esfp.filling import Field, Fixed, encode_plain, fill, num_fixed_tokens, special_ids
from rlaif.esfp.generative_spec import MARKS, PRINCIPLES, GenerativeSpec, JudgeQuestion, parse
from rlaif.esfp.pairing import both_orders, from_other_side, tie_scores
from rlaif.esfp.reward_model import Scored, Texts, means_by_row
from rlaif.esfp.slot_scoring import combine, entropies, score_margins, slot_probabilities, slot_scores, without_prior
from rlaif.esfp.slots import FIELDS, Slot

__all__ = ["CompiledQuestion", "Questions", "ask", "compile_question", "judge", "label_mass", "with_reasoning"]

MAX_LABEL_WORDS = 128   # an engine's limit on the tokens it is asked about
_MARKED = re.compile(f"{MARKS[0]}(\\w+){MARKS[1]}")


@dataclass(frozen=True, eq=False)
class CompiledQuestion:
    """A question bound to a tokenizer, checked. K classes, W label words."""

    spec: GenerativeSpec
    tokenizer: PreTrainedTokenizerBase
    form: tuple[Fixed | Field, ...]  # of a row with an explanation
    form_without: tuple[Fixed | Field, ...]  # of a row without one
    closing_ids: tuple[int, ...]  # after the reasoning; none where the judge does not reason: part of the forms
    forbidden: frozenset[int]  # ids that no text and no reasoning may put into the question
    label_ids: tuple[int, ...]  # W
    label_classes: tuple[int, ...]  # W; the class of each label word


def compile_question(spec: GenerativeSpec, tokenizer: PreTrainedTokenizerBase) -> CompiledQuestion:
    """The question bound to the tokenizer. A ValueError of one line where the two do not fit."""
    question = spec.question
    texts = [question.text, question.text if question.without_explanation is None else question.without_explanation]
    forms, tails = [], []
    for text in texts:
        parts = _rendered(text, question, tokenizer, has_closing=not spec.max_reasoning_tokens)
        forms.append(_pieces(parts, question.principles, tokenizer))
        if not num_fixed_tokens(forms[-1]):
            raise ValueError(f"text must have words of its own, got {text!r}; say what the fields are")
        tails.append("" if parts[-1][0] else parts[-1][1])
    closing_ids: tuple[int, ...] = ()
    if spec.max_reasoning_tokens:
        tails = [question.closing]
        closing_ids = tuple(_encode_own(tokenizer, question.closing.rstrip(" ")))
    label_ids = _label_ids(spec.slot, tokenizer, tails[0])
    for tail in tails[1:]:
        if tail != tails[0] and _label_ids(spec.slot, tokenizer, tail) != label_ids:
            raise ValueError(f"without_explanation must end as the text does, got {tail!r}; the label words differ")
    num_fixed = max(map(num_fixed_tokens, forms)) + len(closing_ids)
    if num_fixed > spec.max_tokens:
        raise ValueError(f"max_tokens must be >= {num_fixed}, the question without its fields, got {spec.max_tokens}; "
                         "shorten the question or raise max_tokens")
    own = {token_id for form in forms for piece in form if isinstance(piece, Fixed) for token_id in piece.ids}
    # Markup that a tokenizer does not call special, such as a tag for tools, is guarded where the question uses it.
    markup = {token_id for token_id, token in tokenizer.added_tokens_decoder.items()
              if token_id in own | set(closing_ids) and token.content.strip()}
    return CompiledQuestion(
        spec, tokenizer, *forms, closing_ids, special_ids(tokenizer) | markup,
        tuple(token_id for ids in label_ids for token_id in ids),
        tuple(k for k, ids in enumerate(label_ids) for _ in ids))


@dataclass(frozen=True)
class Questions:
    """What is to be asked about N rows: M questions, one an explanation; pairs are asked about in one order or both."""

    input_ids: list[list[int]]  # M
    rows: list[int]  # M; the row each is about
    is_swapped: list[bool]  # M; the pair in the other order
    num_rows: int
    num_truncated: int  # rows of which a text was cut
    num_without_explanation: int  # rows read in the form without explanation; 0 where the question reads none


def ask(compiled: CompiledQuestion, texts: Texts, *, in_order: bool = False) -> Questions:
    """The questions about `texts`, as token ids; closing included, unless the judge reasons first.

    in_order: pairs are asked about in the order they are given only, instead of both.
    """
    spec = compiled.spec
    if (texts.others is None) == spec.is_pairwise:
        raise ValueError(f"others must be given with a pairwise judge and with no other, got "
                         f"{'none' if texts.others is None else len(texts.others)}; change the slot or the data")
    columns, rows, is_swapped = {name: [] for name in FIELDS}, [], []
    for order in [texts, texts.swapped()] if spec.is_pairwise and not in_order else [texts]:
        for row, values in order.readings():
            rows.append(row)
            is_swapped.append(order is not texts)
            for name, value in zip(FIELDS, values, strict=True):
                columns[name].append(value)
    input_ids: list[list[int]] = [[]] * len(rows)
    cut: set[int] = set()
    has_none = [explanation is None for explanation in columns["explanation"]]
    for form, is_without in ((compiled.form, False), (compiled.form_without, True)):
        chosen = [m for m, is_none in enumerate(has_none) if is_none == is_without]
        filled = fill(form, {name: [column[m] for m in chosen] for name, column in columns.items()}, len(chosen),
                      tokenizer=compiled.tokenizer, max_tokens=spec.max_tokens - len(compiled.closing_ids),
                      forbidden=compiled.forbidden)
        for m, ids, is_cut in zip(chosen, filled.input_ids, filled.is_truncated, strict=True):
            input_ids[m] = ids
            cut |= {rows[m]} if is_cut else set()
    without = {row for row, is_without in zip(rows, has_none, strict=True) if is_without}
    return Questions(input_ids, rows, is_swapped, len(texts), len(cut), len(without) * spec.reads_explanations)


def with_reasoning(compiled: CompiledQuestion, question: Sequence[int], reasoning: Sequence[int]) -> list[int]:
    """The ids of a question, its reasoning and the closing. An end token or markup in the reasoning is left out."""
    return [*question, *(token_id for token_id in reasoning if token_id not in compiled.forbidden),
            *compiled.closing_ids]


def judge(compiled: CompiledQuestion, questions: Questions, logprobs: Tensor) -> Scored:
    """What the judge says of the rows of `questions`; means over a row's explanations, and over the orders in which a
    pair was asked about.

    logprobs: `[M, W]` nats, the label words' log-probabilities as the next token of each question.
    """
    spec = compiled.spec
    assert logprobs.shape == (len(questions.rows), len(compiled.label_ids)), logprobs.shape
    classes = torch.tensor(compiled.label_classes)
    logits = torch.stack([torch.logsumexp(logprobs[:, classes == k].float(), -1)
                          for k in range(len(spec.slot.classes))], -1).unsqueeze(1)     # [M, 1, K]
    prior = None if spec.prior is None else torch.tensor([spec.prior], dtype=torch.float32)
    values = torch.tensor([spec.slot.values], dtype=torch.float32)
    probabilities = slot_probabilities(logits, spec.temperature, prior)
    scores = slot_scores(probabilities, values)
    if spec.slot.score == "margin":
        logs = torch.log_softmax(without_prior(logits, prior).float() / spec.temperature, -1)
        scores = score_margins(logs, values, torch.ones_like(values, dtype=torch.bool))
    num_orders = 1 + any(questions.is_swapped)
    probabilities, scores = (_means(questions, values, num_orders) for values in (probabilities, scores))
    if num_orders == 2:
        probabilities = (probabilities[0] + from_other_side(probabilities[1], [spec.slot])) / 2
        scores = both_orders(scores[0], scores[1], tie_scores([spec.slot]))
    else:
        probabilities, scores = probabilities[0], scores[0]
    return Scored(probabilities, scores, entropies(probabilities), combine(scores, torch.tensor([spec.slot.weight])),
                  questions.num_truncated, questions.num_without_explanation)


def label_mass(logprobs: Tensor) -> Tensor:
    """`[M]`, the probability that the next token is a label word at all. logprobs: `[M, W]` nats.

    Near zero where the judge would rather say something else: its verdict then means little.
    """
    return logprobs.float().exp().sum(-1)


def _means(questions: Questions, values: Tensor, num_orders: int) -> Tensor:
    """`[num_orders, N, ...]`, the means of `values` `[M, ...]` over the questions about a row in one order."""
    shape = (num_orders, questions.num_rows)
    index = [row + shape[1] * is_swapped for row, is_swapped in zip(questions.rows, questions.is_swapped, strict=True)]
    return means_by_row(values, index, math.prod(shape)).view(*shape, *values.shape[1:])


def _rendered(text: str, question: JudgeQuestion, tokenizer: PreTrainedTokenizerBase, *, has_closing: bool
              ) -> list[tuple[bool, str]]:
    """`parse` of the text with its closing and, where the question is a chat, the markup around them."""
    marked = "".join(f"{MARKS[0]}{part}{MARKS[1]}" if is_field else part for is_field, part in parse("text", text))
    fields = _MARKED.findall(marked)
    if question.is_chat:
        if not tokenizer.chat_template:
            raise ValueError("is_chat must be false with a tokenizer without a chat template, got true; write the "
                             "markup into the text")
        marked = tokenizer.apply_chat_template([{"role": "user", "content": marked}], tokenize=False,
                                               add_generation_prompt=True)
        if _MARKED.findall(marked) != fields:
            raise ValueError("chat template must keep the question as it is, got its fields changed; set is_chat to "
                             "false and write the markup into the text")
    marked += question.closing if has_closing else ""
    parts = [(number % 2 == 1, part) for number, part in enumerate(_MARKED.split(marked))]
    return [part for part in parts if part[1]]


def _pieces(parts: Sequence[tuple[bool, str]], principles: str, tokenizer: PreTrainedTokenizerBase
            ) -> tuple[Fixed | Field, ...]:
    """Pieces to fill in. Blanks before a field are encoded with the field and blanks at the end with the label words,
    as a tokenizer that marks beginnings of words would have it."""
    pieces: list[Fixed | Field] = []
    blank = ""
    for is_field, part in parts:
        if not is_field:
            pieces.append(Fixed(tuple(_encode_own(tokenizer, part.rstrip(" ")))))
        elif part == PRINCIPLES:
            ids = encode_plain(tokenizer, [blank + principles])[0]
            _refuse(tokenizer, ids, special_ids(tokenizer), "principles", principles)
            pieces.append(Fixed(tuple(ids)))
        else:
            pieces.append(Field(part, blank))
        blank = "" if is_field else part[len(part.rstrip(" ")) :]
    added = tokenizer("", verbose=False)["input_ids"][:1]
    first = pieces[0].ids[:1] if isinstance(pieces[0], Fixed) else ()
    if added and added[0] == tokenizer.bos_token_id and first != tuple(added):
        pieces.insert(0, Fixed(tuple(added)))
    return tuple(piece for piece in pieces if isinstance(piece, Field) or piece.ids)


def _encode_own(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a part of the question itself: special tokens are parsed, for a chat's markup, and none are added."""
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=False, truncation=False, padding=False,
                    verbose=False)["input_ids"]
    unknown = tokenizer.unk_token_id
    _refuse(tokenizer, ids, frozenset() if unknown is None else frozenset([unknown]), "question", text)
    return ids


def _refuse(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], wrong: frozenset[int], name: str, text: str
            ) -> None:
    for token_id in ids:
        if token_id in wrong:
            raise ValueError(f"{name} must be made of words the tokenizer knows, got "
                             f"{tokenizer.convert_ids_to_tokens(token_id)} in {text.strip()!r}; use other words")


def _label_ids(slot: Slot, tokenizer: PreTrainedTokenizerBase, tail: str) -> list[list[int]]:
    """The token of every label word where it follows `tail`, class by class."""
    if not tail.strip():
        raise ValueError("question must end in words of its own, got a field or nothing; add a closing that asks for "
                         "the label word")
    before = _encode_own(tokenizer, tail.rstrip(" "))
    special = special_ids(tokenizer)
    owner: dict[int, str] = {}
    classes: list[list[int]] = []
    for words in slot.classes:
        classes.append([])
        for word in words:
            ids = tokenizer(tail + word.strip(), add_special_tokens=False, split_special_tokens=False,
                            verbose=False)["input_ids"]
            if ids[:-1] != before or ids[-1] in special:
                shown = tokenizer.convert_ids_to_tokens(ids[len(before) :] if ids[: len(before)] == before else ids)
                raise ValueError(f"label word {word!r} of slot {slot.name} must be one token after {tail[-20:]!r}, got "
                                 f"{shown}; choose another word, or mind the blank before it")
            if ids[-1] in owner:
                raise ValueError(f"label words of slot {slot.name} must be distinct tokens, got {word!r} and "
                                 f"{owner[ids[-1]]!r} as the same; drop one")
            owner[ids[-1]] = word
            classes[-1].append(ids[-1])
    if len(owner) > MAX_LABEL_WORDS:
        raise ValueError(f"label words of slot {slot.name} must be at most {MAX_LABEL_WORDS}, got {len(owner)}; drop "
                         "some")
    return classes
