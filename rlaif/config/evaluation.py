"""Configuration of the evaluations inside a run: on which prompts, how, what is best, when to end.

As rlaif.config.train.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from rlaif.config.checks import UserError, not_negative, one_of, positive, require

MODES = ("sampled", "greedy")
BETTER = ("higher", "lower")
EXPORTS = ("last", "best")
GOLD_JUDGES = ("scenes",)


@dataclass
class StopConfig:
    """When a run ends before its last step: rlaif.running.stopping. Looked at after every evaluation."""

    patience: int | None = None         # evaluations in a row without a better evaluation.select_by, > 0; null: never
    kl_limit: float | None = None       # nats a completion from the reference policy, > 0; null: none
    divergence: int | None = None       # evaluations in a row where the proxy is higher and gold lower than when gold
                                        # was highest, > 0; null: never
    gold_drop: float = 0.02             # of divergence: how much lower, in the unit of gold, >= 0
    proxy: str = "reward"               # of divergence: the figure that training raises
    gold: str = "gold"                  # of divergence: the figure that it should raise

    def __post_init__(self) -> None:
        for name in ("patience", "kl_limit", "divergence"):
            value = getattr(self, name)
            require(value is None or 0 < value < math.inf, name, "> 0 or null", value)
        not_negative(self, "gold_drop")
        require(self.proxy != self.gold, "gold", "another figure than proxy", self.gold)


@dataclass
class EvaluationConfig:
    """On the test prompts, before and after training, and every so many steps between.

    Figures carry the name of what is measured: reward, every part of it as part_<name>, every verdict of a judge that
    only watches (gold, fluent), kl, completion_tokens, identical_share, max_logprob_gap; greedy ones a greedy_ before.
    """

    gold: str | None = None             # "scenes": the exact judge of the built-in world; null: none
    num_prompts: int = 384              # test prompts, > 0
    every: int = 0                      # steps between evaluations, >= 0; 0: only before and after training
    modes: list[str] = field(default_factory=lambda: ["sampled"])   # sampled (rollout.temperature) | greedy, or both
    group_size: int = 1                 # sampled completions a prompt, > 0
    select_by: str | None = None        # figure of the best weights, which are kept in best/; null: none are
    better: str = "higher"              # higher | lower: which value of select_by is the better one
    export: str = "last"                # last | best: which weights become the folder policy/
    stop: StopConfig = field(default_factory=StopConfig)

    def __post_init__(self) -> None:
        require(self.gold in (None, *GOLD_JUDGES), "gold", f"null or {' or '.join(GOLD_JUDGES)}", self.gold)
        positive(self, "num_prompts", "group_size")
        not_negative(self, "every")
        one_of(self, "better", BETTER)
        one_of(self, "export", EXPORTS)
        is_list_of_modes = set(self.modes) <= set(MODES) and 0 < len(set(self.modes)) == len(self.modes)
        require(is_list_of_modes, "modes", f"a list of {' and '.join(MODES)}, each once at most", self.modes)
        if self.export == "best" and self.select_by is None:
            raise UserError("select_by must be given with export = best, got null; name a figure, such as reward")
        if self.stop.patience is not None and self.select_by is None:
            raise UserError("select_by must be given with stop.patience, got null; name a figure, such as reward")
        for name, is_used in (("patience", self.stop.patience), ("kl_limit", self.stop.kl_limit),
                              ("divergence", self.stop.divergence)):
            if is_used is not None and self.every == 0:
                raise UserError(f"every must be > 0 with stop.{name}, got 0; a run stops after an evaluation")
        for name, value in self.figures_asked_for().items():
            self._refuse_unmeasured(name, value)

    def figures_asked_for(self) -> dict[str, str]:
        """The figures that decide something, by the option that names them."""
        asked = {"select_by": self.select_by} if self.select_by is not None else {}
        if self.stop.divergence is not None:
            asked |= {"stop.proxy": self.stop.proxy, "stop.gold": self.stop.gold}
        if self.stop.kl_limit is not None:
            asked["stop.kl_limit"] = "kl"
        return asked

    def _refuse_unmeasured(self, name: str, figure: str) -> None:
        mode = "greedy" if figure.startswith("greedy_") else "sampled"
        if mode not in self.modes:
            raise UserError(f"modes must have {mode} with {name} = {figure}, got {self.modes}")
        if figure.removeprefix("greedy_") == "gold" and self.gold is None:
            raise UserError(f"gold must be given with {name} = {figure}, got null; or name another figure")
