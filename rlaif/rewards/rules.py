"""The built-in rules by kind: which columns each reads, how it is made from its options, where it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from rlaif.config.checks import UserError
from rlaif.config.reward_parts import RewardPartConfig
from rlaif.metrics import Metric, Sum
from rlaif.rewards import text_rules
from rlaif.rewards.functions import Columns
from rlaif.rewards.reference_rules import bleu_scorer, rouge_scorer

__all__ = ["RULES", "Rule", "check_rules", "make_rule"]

Values = Sequence[float | None]


@dataclass(frozen=True)
class Rule:
    """A built-in kind of reward part.

    make: from its options (see rlaif.config.reward_options) to a function of the columns by name; a ValueError, one
    line, for options that do not work. may_hang: it runs patterns of the user's, and so in a process of its own with a
    time limit. counts: it also returns the number of texts it cut.
    """

    columns: tuple[str, ...]
    make: Callable[..., Callable[..., Any]]
    may_hang: bool = False
    counts: bool = False


def _exact_match(answer: str | None, **options: Any) -> Callable[..., Values]:
    return partial(text_rules.exact_match, answer=None if answer is None else text_rules.compiled(answer), **options)


def _regex(pattern: str, is_whole: bool) -> Callable[..., Values]:
    return partial(text_rules.regex, pattern=text_rules.compiled(pattern), is_whole=is_whole)


def _json_schema(schema: dict, schema_file: str | None, parsed_value: float) -> Callable[..., Values]:
    return partial(text_rules.json_schema, validator=text_rules.read_schema(schema, schema_file),
                   parsed_value=parsed_value)


def _similarity(**options: Any) -> Callable[..., tuple[Values, int]]:
    from rlaif.rewards.semantic import similarities

    return partial(similarities, _encoder(**options))


def _diversity(**options: Any) -> Callable[..., tuple[Values, int]]:
    from rlaif.rewards.semantic import diversities

    return partial(diversities, _encoder(**options))


@lru_cache(maxsize=1)
def _encoder(**options: Any) -> Any:
    """The encoder; parts that ask for the same one in turn share it."""
    import torch

    from rlaif.rewards.semantic import SentenceEncoder  # transformers, which the other rules do not need

    return SentenceEncoder.load(**options, device="cuda" if torch.cuda.is_available() else "cpu")


RULES: dict[str, Rule] = {
    "exact_match": Rule(("completions", "references"), _exact_match, may_hang=True),
    "regex": Rule(("completions",), _regex, may_hang=True),
    "json_schema": Rule(("completions",), _json_schema, may_hang=True),
    "format_tags": Rule(("completions",), partial(partial, text_rules.format_tags)),
    "length_penalty": Rule(("completions", "num_tokens"), partial(partial, text_rules.length_penalty)),
    "repetition_penalty": Rule(("completions",), partial(partial, text_rules.repetition_penalty)),
    "bleu": Rule(("completions", "references"), bleu_scorer),
    "rouge": Rule(("completions", "references"), rouge_scorer),
    "semantic_similarity": Rule(("completions", "references"), _similarity, counts=True),
    "semantic_diversity": Rule(("completions", "group_ids"), _diversity, counts=True)}


def make_rule(kind: str, options: Mapping[str, Any]
              ) -> Callable[[Columns], tuple[list[float | None], dict[str, Metric]]]:
    """The rule as a function of all columns. `options`: complete, as RewardPartConfig has them."""
    rule = RULES[kind]
    function = rule.make(**options)

    def call(columns: Columns) -> tuple[list[float | None], dict[str, Metric]]:
        found = function(**{name: columns[name] for name in rule.columns})
        values, num_cut = found if rule.counts else (found, None)
        return list(values), {} if num_cut is None else {"texts_cut": Sum(num_cut)}

    return call


def check_rules(parts: Sequence[RewardPartConfig], has_references: bool) -> None:
    """Raises UserError for a built-in rule among `parts` that the prompts, its patterns or its model do not allow."""
    for part in parts:
        if part.kind not in RULES:
            continue
        if "references" in RULES[part.kind].columns and not has_references:
            raise UserError(f"prompts.reference_column must be given with reward part {part.name} of kind {part.kind}, "
                            "got null; name the column of the prompts' file")
        if "encoder" in part.options:
            _check_encoder(part)
        else:
            try:
                make_rule(part.kind, part.options)
            except ValueError as error:
                raise UserError(f"options of reward part {part.name}: {error}") from error


def _check_encoder(part: RewardPartConfig) -> None:
    from rlaif.modeling.models import context_length, load_tokenizer, refuse_incomplete

    encoder, max_tokens = part.options["encoder"], part.options["max_tokens"]
    refuse_incomplete(encoder, f"options.encoder of reward part {part.name}")
    load_tokenizer(encoder)
    if max_tokens > context_length(encoder):
        raise UserError(f"options.max_tokens of reward part {part.name} must be at most the {context_length(encoder)} "
                        f"tokens that {encoder!r} can attend over, got {max_tokens}")
