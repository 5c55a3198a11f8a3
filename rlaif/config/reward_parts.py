"""Configuration of one reward part, an entry of `rewards`. As rlaif.config.train."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from rlaif.config.checks import UserError, not_negative, one_of, positive, require
from rlaif.config.reward_options import OPTIONS, complete_options

__all__ = ["GATES", "KINDS", "TIMED", "TRANSFORMS", "RewardPartConfig", "check_parts"]

KINDS = ("judge", "function", *OPTIONS)
TRANSFORMS = ("none", "log_sigmoid", "rank", "clip")
SCOPES = ("group", "batch")
GATES = ("none", "multiply", "positive_only", "minimum")
TIMED = ("function", "exact_match", "regex", "json_schema")     # called in a process of their own, which can be ended
TIMEOUT_S = 60.0


@dataclass
class RewardPartConfig:
    """A named part of the reward: sum over the parts of weight * gate(transform(value)). See rlaif.rewards.combine."""

    kind: str = "judge"                 # judge | function | a built-in rule, see rlaif.config.reward_options
    name: str | None = None             # a-z, 0-9 and _; each once; null takes the kind
    weight: float = 1.0                 # of the part in the sum; 0 only watches, or gates other parts
    function: str | None = None         # of kind function: "package.module:function", called with whole batches
    options: dict = field(default_factory=dict)     # of the kind; for a function: keyword arguments of its own

    transform: str = "none"             # none | log_sigmoid (of the centred value) | rank (0..1) | clip
    over: str = "group"                 # group | batch (a whole step): with whom log_sigmoid and rank compare a row
    center: float | None = None         # log_sigmoid: taken off the value; null: the mean over `over`
    lowest: float | None = None         # clip: values below become this; null: no limit
    highest: float | None = None        # clip: values above become this, >= lowest; null: no limit

    gate: str = "none"                  # none | multiply | positive_only | minimum: how gated_by acts on this part
    gated_by: list[str] = field(default_factory=list)       # names of other parts; all of them act

    timeout_s: float = TIMEOUT_S        # of a call with a batch, > 0; of the kinds in TIMED
    max_skipped: int = 0                # rows without a usable answer that an actor may leave unjudged in a run, >= 0

    def __post_init__(self) -> None:
        one_of(self, "kind", KINDS)
        self.name = self.kind if self.name is None else self.name
        require(re.fullmatch("[a-z][a-z0-9_]*", self.name) is not None, "name", "of a-z, 0-9 and _, a letter first",
                self.name)
        for name in ("weight", "center", "lowest", "highest"):
            value = getattr(self, name)
            require(value is None or math.isfinite(value), name, "finite", value)
        positive(self, "timeout_s")
        require(self.kind in TIMED or self.timeout_s == TIMEOUT_S, "timeout_s",
                f"left at {TIMEOUT_S:g} unless kind is {', '.join(TIMED[:-1])} or {TIMED[-1]}", self.timeout_s)
        not_negative(self, "max_skipped")
        require(self.kind != "judge" or self.max_skipped == 0, "max_skipped", "0 with kind judge", self.max_skipped)
        self._check_function()
        self._check_transform()
        one_of(self, "gate", GATES)
        require((self.gate != "none") == bool(self.gated_by), "gated_by",
                "names of parts with a gate, and empty without", self.gated_by)
        if self.kind in OPTIONS:
            self.options = asdict(complete_options(OPTIONS[self.kind], self.options))

    def _check_function(self) -> None:
        if self.kind != "function":
            require(self.function is None, "function", "null unless kind is function", self.function)
            return
        path = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
        require(self.function is not None and path.fullmatch(self.function) is not None, "function",
                '"package.module:function"', self.function)

    def _check_transform(self) -> None:
        one_of(self, "transform", TRANSFORMS)
        one_of(self, "over", SCOPES)
        require(self.over == "group" or self.compares, "over",
                "group unless transform is rank, or log_sigmoid without a center", self.over)
        require(self.center is None or self.transform == "log_sigmoid", "center",
                "null unless transform is log_sigmoid", self.center)
        limits = [limit for limit in (self.lowest, self.highest) if limit is not None]
        require(bool(limits) == (self.transform == "clip"), "lowest",
                "or highest given with transform clip, and only with it", self.lowest)
        require(limits == sorted(limits), "highest", f">= lowest {self.lowest}", self.highest)

    @property
    def compares(self) -> bool:
        """Whether the transform compares a row with others."""
        return self.transform == "rank" or (self.transform == "log_sigmoid" and self.center is None)


def check_parts(parts: Sequence[RewardPartConfig], where: Sequence[str]) -> None:
    """Raises UserError for parts that do not go together; `where` says what stands before the field of each."""
    for number, (part, path) in enumerate(zip(parts, where, strict=True)):
        try:
            _check_part(part, parts[:number], parts)
        except UserError as error:
            raise UserError(f"{path}.{error}") from error
    if not any(part.weight for part in parts):
        raise UserError("rewards must hold a part whose weight is not 0, got none; a part of weight 0 only watches or "
                        "gates others")


def _check_part(part: RewardPartConfig, before: Sequence[RewardPartConfig], parts: Sequence[RewardPartConfig]) -> None:
    require(part.name not in [other.name for other in before], "name", "one of its own", part.name)
    by_name = {other.name: other for other in parts}
    for name in part.gated_by:
        if name not in by_name or name == part.name:
            others = ", ".join(known for known in by_name if known != part.name) or "of which there are none"
            raise UserError(f"gated_by must name other parts ({others}), got {name!r}")
        # A log-sigmoid is never positive: a product with it turns good into bad, a closed gate (0) would be its best.
        if part.gate == "multiply" and "log_sigmoid" in (part.transform, by_name[name].transform):
            raise UserError(f"gate must be minimum or positive_only between parts with log_sigmoid, whose values are "
                            f"below 0, got 'multiply' with gated_by {name!r}")
