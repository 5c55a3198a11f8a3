"""What each kind of reward part can be told: the `options` of a part in config, as dataclasses.

A kind without an entry here is a judge or a user's function, see rlaif.config.reward_parts.
"""

from __future__ import annotations

import difflib
import re
import typing
from dataclasses import dataclass, field

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlaif.config.checks import UserError, not_negative, one_of, positive, require

__all__ = ["OPTIONS", "complete_options"]

Options = typing.TypeVar("Options")


@dataclass
class ExactMatchOptions:
    """Of kind exact_match."""

    answer: str | None = None           # regular expression: its last match is the answer, group 1 if it has groups
    ignore_case: bool = False
    ignore_punctuation: bool = False    # at the ends: quotes, full stops, brackets


@dataclass
class RegexOptions:
    """Of kind regex."""

    pattern: str | None = None          # regular expression, must be given; (?i), (?s) and (?m) set its flags
    is_whole: bool = False              # the whole completion must match, not a part of it

    def __post_init__(self) -> None:
        require(self.pattern is not None, "pattern", "a regular expression", self.pattern)


LENGTH_UNITS = ("tokens", "words", "characters")


@dataclass
class LengthOptions:
    """Of kind length_penalty."""

    unit: str = "tokens"                # tokens (of the policy) | words | characters
    shortest: int = 0                   # length without penalty, >= 0
    longest: int | None = None          # length without penalty, >= shortest; null: no limit
    buffer: int = 1                     # from there on the penalty grows to -1 over so many units, > 0

    def __post_init__(self) -> None:
        one_of(self, "unit", LENGTH_UNITS)
        not_negative(self, "shortest")
        positive(self, "buffer")
        require(self.longest is None or self.longest >= self.shortest, "longest",
                f"null or >= shortest {self.shortest}", self.longest)
        require(self.longest is not None or self.shortest > 0, "longest", "given where shortest is 0", self.longest)


@dataclass
class RepetitionOptions:
    """Of kind repetition_penalty."""

    size: int = 3                       # words of an n-gram, > 0

    def __post_init__(self) -> None:
        positive(self, "size")


@dataclass
class FormatTagsOptions:
    """Of kind format_tags."""

    tags: list[str] = field(default_factory=lambda: ["think", "answer"])    # in the order they must come
    allow_text_outside: bool = False    # other than white space

    def __post_init__(self) -> None:
        require(len(self.tags) > 0 and len(set(self.tags)) == len(self.tags), "tags", "names, each once", self.tags)
        for tag in self.tags:
            require(re.fullmatch(r"[\w-]+", tag) is not None, "tags", "of letters, digits, _ and -", tag)


@dataclass
class JsonSchemaOptions:
    """Of kind json_schema."""

    schema: dict = field(default_factory=dict)      # the JSON Schema itself; empty: any JSON
    schema_file: str | None = None      # or a file that holds it
    parsed_value: float = 0.0           # of JSON that does not fit the schema, 0..1

    def __post_init__(self) -> None:
        require(not self.schema or self.schema_file is None, "schema_file", "null where schema is given",
                self.schema_file)
        require(0 <= self.parsed_value <= 1, "parsed_value", "in 0..1", self.parsed_value)


BLEU_TOKENIZERS = ("13a", "intl", "zh", "char", "none")


@dataclass
class BleuOptions:
    """Of kind bleu."""

    tokenizer: str = "13a"              # 13a | intl | zh | char | none: sacrebleu's
    max_order: int = 4                  # words of the longest n-gram, > 0
    ignore_case: bool = False

    def __post_init__(self) -> None:
        one_of(self, "tokenizer", BLEU_TOKENIZERS)
        positive(self, "max_order")


ROUGE_VARIANTS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
ROUGE_MEASURES = ("fmeasure", "precision", "recall")


@dataclass
class RougeOptions:
    """Of kind rouge."""

    variant: str = "rougeL"             # rouge1 | rouge2 | rougeL | rougeLsum (sentences are lines)
    measure: str = "fmeasure"           # fmeasure | precision | recall
    words: str = "package"              # package (rouge-score's own: a-z and 0-9) | unicode (words of any script)
    stemmer: bool = False               # English endings are cut off; with words: package

    def __post_init__(self) -> None:
        one_of(self, "variant", ROUGE_VARIANTS)
        one_of(self, "measure", ROUGE_MEASURES)
        one_of(self, "words", ("package", "unicode"))
        require(not self.stemmer or self.words == "package", "stemmer", "false with words: unicode", self.stemmer)


@dataclass
class EncoderOptions:
    """Of the kinds semantic_similarity and semantic_diversity: a sentence encoder."""

    encoder: str | None = None          # Hugging Face name or folder of an encoder, must be given
    dtype: str = "float32"              # float32 | bfloat16
    max_tokens: int = 256               # tokens of a text, the rest is cut off and counted, > 2
    max_tokens_per_batch: int = 8192    # tokens of a forward pass, > 0

    def __post_init__(self) -> None:
        require(self.encoder is not None, "encoder", "a Hugging Face name or folder", self.encoder)
        one_of(self, "dtype", ("float32", "bfloat16"))
        positive(self, "max_tokens_per_batch")
        require(self.max_tokens > 2, "max_tokens", "> 2", self.max_tokens)


OPTIONS: dict[str, type] = {
    "exact_match": ExactMatchOptions, "regex": RegexOptions, "format_tags": FormatTagsOptions,
    "json_schema": JsonSchemaOptions, "length_penalty": LengthOptions, "repetition_penalty": RepetitionOptions,
    "bleu": BleuOptions, "rouge": RougeOptions, "semantic_similarity": EncoderOptions,
    "semantic_diversity": EncoderOptions}


def complete_options(kind: type[Options], given: dict) -> Options:
    """A `kind` made of its defaults and what is `given`.

    Raises UserError, with "options." before the key, for an unknown key (naming the nearest one), a wrong type and a
    value out of range.
    """
    known = typing.get_type_hints(kind)
    for key, value in given.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)
            raise UserError(f"options.{key} must be a known option, got an unknown one; did you mean "
                            f"options.{near[0]}?")
        if isinstance(value, bool) and known[key] is not bool:      # which OmegaConf would turn into text or a number
            raise UserError(f"options.{key} must not be true or false, got {value!r}; put words such as yes in quotes")
    try:
        complete = OmegaConf.merge(OmegaConf.structured(kind), given)
        return kind(**{name: OmegaConf.to_object(value) if OmegaConf.is_config(value) else value
                       for name, value in complete.items()})
    except OmegaConfBaseException as error:
        raise UserError(f"options.{error.full_key} must be of another type, got {given.get(error.full_key)!r}: "
                        f"{str(error).splitlines()[0]}") from error
    except UserError as error:
        raise UserError(f"options.{error}") from error
