"""Stage 1 of the ESFP reward: the text that asks a language model how a completion meets its prompt."""

from __future__ import annotations

import string

from rlaif.config import UserError

FIELDS = ("prompt", "completion", "principles")


def check_template(template: str, key: str) -> None:
    """Raises UserError unless `template` has {prompt} and {completion} and no unknown field."""
    try:
        found = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise UserError(f"{key} must be a template, got {template!r}: {error}") from error
    for name in ("prompt", "completion"):
        if name not in found:
            raise UserError(f"{key} must have the field {{{name}}}, got {template!r}")
    unknown = sorted(found - set(FIELDS))
    if unknown:
        raise UserError(f"{key} must use the fields {', '.join(FIELDS)} only, got {{{unknown[0]}}}")


def explanation_prompt(template: str, prompt: str, completion: str, principles: str = "") -> str:
    """`template` filled in. Braces inside the texts are text: they are never read as fields."""
    return template.format(prompt=prompt, completion=completion, principles=principles)
