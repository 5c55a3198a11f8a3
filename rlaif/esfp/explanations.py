"""Stage 1 of the ESFP reward: the text that asks a language model how a completion meets its prompt."""

from __future__ import annotations

import string
from collections.abc import Sequence

from rlaif.config.checks import UserError
from rlaif.metrics import Mean, Metric, Sum

FIELDS = ("prompt", "completion", "principles")

STOP, LENGTH, FAILED = "stop", "length", "failed"
INPUT_CUT = "input_cut"     # finished, but its question had to be shortened


def check_template(template: str, principles: str, key: str) -> None:
    """Raises UserError unless `template` has {prompt} and {completion}, plain, and no unknown field;
    {principles} too where there are some."""
    try:
        parts = [part[1:] for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise UserError(f"{key} must be a template, got {template!r}: {error}") from error
    found = {name for name, _, _ in parts}
    for name in ("prompt", "completion"):
        if name not in found:
            raise UserError(f"{key} must have the field {{{name}}}, got {template!r}")
    for name, spec, conversion in parts:
        if name not in FIELDS or spec or conversion:
            given = name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
            raise UserError(f"{key} must use the fields {', '.join(FIELDS)} only, got {{{given}}}")
    if principles and "principles" not in found:
        raise UserError(f"{key} must have the field {{principles}} where principles are given, got {template!r}")


def explanation_prompt(template: str, prompt: str, completion: str, principles: str = "") -> str:
    """`template` filled in. Braces inside the texts are text: they are never read as fields."""
    return template.format(prompt=prompt, completion=completion, principles=principles)


def usable(explanations: Sequence[Sequence[str]], finish_reasons: Sequence[Sequence[str]]) -> list[list[str]]:
    """Of each row's explanations those that finished and are not blank."""
    return [[text for text, reason in zip(texts, reasons, strict=True) if reason in (STOP, INPUT_CUT) and text.strip()]
            for texts, reasons in zip(explanations, finish_reasons, strict=True)]


def usable_or_refuse(explanations: Sequence[Sequence[str]], finish_reasons: Sequence[Sequence[str]], on_unusable: str,
                     numbers: Sequence[int] | None = None) -> list[list[str]]:
    """As `usable`. Raises UserError for the first row without any, where `on_unusable` is "error"; it is called by its
    entry in `numbers`, or by its place."""
    kept = usable(explanations, finish_reasons)
    numbers = range(len(kept)) if numbers is None else numbers
    for row, texts, reasons in zip(numbers, kept, finish_reasons, strict=True):
        if on_unusable == "error" and reasons and not texts:
            raise UserError(f"explainer must write an explanation that ends and is not blank, got none of "
                            f"{len(reasons)} in row {row} (ended by {', '.join(reasons)}); raise explainer.max_tokens "
                            "or set explainer.on_unusable=without")
    return kept


def explanation_metrics(explanations: Sequence[Sequence[str]], finish_reasons: Sequence[Sequence[str]],
                        num_tokens: Sequence[int]) -> dict[str, Metric]:
    """Length of the explanations, and how many were cut, failed or blank."""
    reasons = [reason for row in finish_reasons for reason in row]
    blank = sum(not text.strip() and reason != FAILED for texts, row in zip(explanations, finish_reasons, strict=True)
                for text, reason in zip(texts, row, strict=True))
    return {
        "num_explanations": Sum(len(reasons)), "explanation_tokens": Mean(sum(num_tokens), len(reasons)),
        "explanations_cut": Sum(reasons.count(LENGTH)), "explanations_failed": Sum(reasons.count(FAILED)),
        "explanations_empty": Sum(blank), "explainer_inputs_cut": Sum(reasons.count(INPUT_CUT))}
