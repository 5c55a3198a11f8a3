"""Stage 1 of the ESFP reward: the text that asks a language model how a completion meets its prompt."""

from __future__ import annotations

import string

from rlaif.config import UserError

FIELDS = ("prompt", "completion", "principles")


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
