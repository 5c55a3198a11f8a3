"""Templates as the configuration writes them: kinds of slots with their usual values, and rubrics spelt out.

A rubric slot `[quality]` with the criteria {helpful: "Is it helpful?", honest: "Is it honest?"} becomes the text
"Is it helpful? [quality_helpful] Is it honest? [quality_honest]" with one slot a criterion, all read in one pass.
"""

from __future__ import annotations

from rlaif.config.checks import UserError
from rlaif.config.reward import SlotConfig, TemplateConfig
from rlaif.esfp.slots import Slot, SlotTemplate, parse

__all__ = ["slot_template"]


def slot_template(config: TemplateConfig, key: str = "template") -> SlotTemplate:
    """The template of the configuration. Raises UserError, naming `key`, for one that cannot be filled."""
    if not config.slots and config.head != "scalar":
        raise UserError(f"{key}.slots must name at least one slot, got none; add one or set {key}.head=scalar")
    try:
        text, without = config.text, config.without_explanation
        slots: list[Slot] = []
        for slot in config.slots:
            _check_criteria(slot)
            slots += _slots(slot)
            if slot.kind == "rubric":
                text = _spell_out(text, slot)
                without = None if without is None else _spell_out(without, slot)
        return SlotTemplate(text, slots, config.max_tokens, head=config.head, without_explanation=without)
    except ValueError as error:
        raise UserError(f"{error} (under {key})") from error


def _slots(config: SlotConfig) -> list[Slot]:
    values = list(config.values) or _usual_values(config)
    if config.kind != "rubric":
        return [Slot(config.name, config.classes, values, config.weight, config.kind, config.score)]
    weight = config.weight / len(config.criteria)
    return [Slot(_criterion(config, name), config.classes, values, weight, "verdict", config.score)
            for name in config.criteria]


def _usual_values(config: SlotConfig) -> list[float]:
    """1..K for ratings; else evenly from 1 for the first class down to 0 for the last."""
    size = len(config.classes)
    if config.kind == "ordinal":
        return [float(k + 1) for k in range(size)]
    return [1 - k / max(1, size - 1) for k in range(size)]


def _check_criteria(config: SlotConfig) -> None:
    if (config.kind == "rubric") != bool(config.criteria):
        raise ValueError(f"criteria of slot {config.name} must be given with kind rubric and no other, got "
                         f"{len(config.criteria)} with kind {config.kind}; change one of the two")
    for name, text in config.criteria.items():
        if any(kind != "literal" for kind, _ in parse(text)):
            raise ValueError(f"criterion {name} of slot {config.name} must be plain text, got {text!r}; the slot comes "
                             "behind it by itself")


def _spell_out(text: str, config: SlotConfig) -> str:
    spelt = " ".join(f"{criterion} [{_criterion(config, name)}]" for name, criterion in config.criteria.items())
    return text.replace(f"[{config.name}]", spelt)


def _criterion(config: SlotConfig, name: str) -> str:
    return f"{config.name}_{name}"
