"""Configuration of the policy update: how rewards become advantages, and what the loss is. As rlaif.config.train.

Ready sets of these options lie in configs/algorithms/, to be given after the run's own file. Choices that do not go
together are refused, and so is a value for an option that the other choices leave without effect.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from rlaif.config.checks import UserError, not_negative, one_of, positive, require

ADVANTAGES = ("grpo", "dr_grpo", "rloo", "reinforce_pp", "reinforce_pp_baseline", "reinforce", "gae")
GROUP_ADVANTAGES = ("grpo", "dr_grpo", "rloo", "reinforce_pp_baseline")    # compare the completions of one prompt
TOKEN_ADVANTAGES = ("reinforce_pp", "gae")                                 # may differ from token to token

PARTS = ("together", "separate")
WHITEN = ("none", "batch")
LOSSES = ("clipped", "cispo")
RATIOS = ("token", "sequence", "product")
MEANS = ("token", "sequence", "group", "constant")
KL_PLACES = ("loss", "reward")
KL_ESTIMATORS = ("k1", "k2", "k3")
OVERLONG = ("none", "mask", "penalty")
IMPORTANCE = ("none", "truncate", "mask")
IMPORTANCE_LEVELS = ("token", "sequence")
DYNAMIC_SAMPLING = ("keep", "resample")


@dataclass
class AlgorithmConfig:
    """The policy update."""

    # From rewards to advantages: rlaif.policy.estimation.
    advantage: str = "grpo"             # grpo | dr_grpo | rloo | reinforce_pp | reinforce_pp_baseline | reinforce | gae
    parts: str = "together"             # together | separate (grpo of each reward part alone, added by weight: GDPO)
    whiten: str = "none"                # none | batch: advantages to mean 0, deviation 1 over the step's rows or tokens
    gamma: float = 1.0                  # discount a token, 0..1; of gae and reinforce_pp
    lam: float = 0.95                   # lambda of gae, 0..1
    baseline_decay: float = 0.9         # of reinforce's moving baseline a step, [0, 1)
    advantage_limit: float | None = None    # deviations of the step's advantages, > 0: rows beyond it are masked out
    overlong: str = "none"              # none | mask (cut completions teach nothing) | penalty (on the last tokens)
    overlong_buffer: int | None = None  # of penalty: tokens before rollout.max_tokens, > 0; null: a fifth of them
    overlong_penalty: float = 1.0       # of penalty: reward taken off at rollout.max_tokens, > 0
    dynamic_sampling: str = "keep"      # keep | resample: groups of equal rewards are replaced by new prompts (DAPO)
    max_resampling: int = 3             # of resample: further rounds of rollouts a step, >= 1

    # The loss: rlaif.policy.policy_loss.
    loss: str = "clipped"               # clipped | cispo
    ratio: str = "token"                # token | sequence (GSPO: geometric mean) | product (completion as one action)
    mean: str = "token"                 # token | sequence | group | constant: see rlaif.policy.token_weights
    clip_low: float = 0.2               # ratio is kept above 1 - clip_low, 0..1
    clip_high: float = 0.2              # ratio is kept below 1 + clip_high, >= 0
    dual_clip: float | None = None      # bound of the ratio where the advantage is negative, > 1 + clip_high
    entropy_coefficient: float = 0.0    # reward per nat of entropy, >= 0
    importance: str = "truncate"        # none | truncate | mask: weights of proximal / rollout probability
    importance_level: str = "token"     # token | sequence (product over the completion)
    importance_cap: float = 2.0         # largest weight, >= 1
    importance_floor: float = 0.0       # of mask: smallest weight, 0..1

    # The pull to the reference policy.
    kl_coefficient: float = 0.02        # reward per nat, >= 0; 0 holds no reference model
    kl_in: str = "loss"                 # loss | reward
    kl_estimator: str = "k3"            # k1 | k2 | k3
    kl_unbiased: bool = False           # of loss: each token's KL times its ratio, so that its gradient is unbiased
    kl_target: float | None = None      # nats a completion, > 0: the coefficient adapts to reach it; null: fixed
    kl_horizon: int = 1000              # completions in which a KL 20 % off or more moves it by a factor exp(0.2), > 0

    # The critic of gae: rlaif.policy.value_loss.
    value_coefficient: float = 0.5      # weight of its loss, > 0
    value_clip: float | None = 0.2      # furthest a value moves in a step, in the reward's unit, > 0; null: no clip

    num_epochs: int = 1                 # passes over a step's rollouts, >= 1
    num_minibatches: int = 1            # optimizer steps a pass, >= 1; groups stay whole if it divides their number

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            one_of(self, name, choices)
        self._check_ranges()
        self._refuse_misfits()
        self._refuse_idle()

    def _check_ranges(self) -> None:
        for name in ("gamma", "lam", "clip_low", "importance_floor"):
            require(0 <= getattr(self, name) <= 1, name, "in 0..1", getattr(self, name))
        require(0 <= self.baseline_decay < 1, "baseline_decay", "in [0, 1)", self.baseline_decay)
        not_negative(self, "clip_high", "kl_coefficient", "entropy_coefficient")
        positive(self, "overlong_penalty", "max_resampling", "kl_horizon", "value_coefficient", "num_epochs",
                 "num_minibatches")
        for name in ("advantage_limit", "overlong_buffer", "kl_target", "value_clip"):
            value = getattr(self, name)
            require(value is None or 0 < value < math.inf, name, "> 0 or null", value)
        require(1 <= self.importance_cap < math.inf, "importance_cap", ">= 1", self.importance_cap)
        require(self.dual_clip is None or 1 + self.clip_high < self.dual_clip < math.inf, "dual_clip",
                f"null or above 1 + clip_high = {1 + self.clip_high:g}", self.dual_clip)

    def _refuse_misfits(self) -> None:
        for name, value, other, allowed in _TOGETHER:
            if getattr(self, name) == value and getattr(self, other) not in allowed:
                names = " or ".join("null" if choice is None else choice for choice in allowed)
                raise UserError(f"{other} must be {names} with {name} = {str(value).lower()}, got "
                                f"{getattr(self, other)!r}; change one of the two")
        if self.advantage_limit is not None and self.advantage in TOKEN_ADVANTAGES:
            raise UserError(f"advantage_limit must be null with advantage = {self.advantage}, got "
                            f"{self.advantage_limit}; it goes with one advantage a completion")
        if self.ratio == "product" and self.importance != "none" and self.importance_level != "sequence":
            raise UserError("importance_level must be sequence with ratio = product and importance = "
                            f"{self.importance}, got {self.importance_level!r}; a completion is one action, and has "
                            "one weight")
        if self.kl_target is not None and self.kl_coefficient == 0:
            raise UserError("kl_coefficient must be > 0 with kl_target, got 0; the coefficient is adapted by factors")

    def _refuse_idle(self) -> None:
        """Refuses a changed option that has no effect beside the other choices."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name, (other, is_used, rule) in _USED_WITH.items():
            value = getattr(self, name)
            if value != defaults[name] and not is_used(getattr(self, other)):
                default = "null" if defaults[name] is None else str(defaults[name]).lower()
                raise UserError(f"{name} must be left at {default} unless {other} is {rule}, got {value!r}; "
                                "it would have no effect")


_CHOICES = {
    "advantage": ADVANTAGES, "parts": PARTS, "whiten": WHITEN, "overlong": OVERLONG,
    "dynamic_sampling": DYNAMIC_SAMPLING, "loss": LOSSES, "ratio": RATIOS, "mean": MEANS, "importance": IMPORTANCE,
    "importance_level": IMPORTANCE_LEVELS, "kl_in": KL_PLACES, "kl_estimator": KL_ESTIMATORS,
}

# (option, its value, other option, values of the other that go with it)
_TOGETHER: tuple[tuple[str, str | bool, str, tuple], ...] = (
    ("parts", "separate", "advantage", ("grpo",)),          # the others are linear in the reward, or have one return
    ("parts", "separate", "kl_in", ("loss",)),
    ("parts", "separate", "overlong", ("none", "mask")),    # a penalty's size would be divided out again
    ("advantage", "reinforce_pp", "whiten", ("none",)),     # normalises over the batch itself
    ("advantage", "reinforce_pp_baseline", "whiten", ("none",)),
    ("dynamic_sampling", "resample", "advantage", GROUP_ADVANTAGES),
    ("kl_unbiased", True, "kl_in", ("loss",)),              # a reward has no gradient
    ("loss", "cispo", "ratio", ("token",)),
    ("loss", "cispo", "dual_clip", (None,)),
    ("ratio", "product", "mean", ("sequence",)),
    ("ratio", "product", "advantage", tuple(name for name in ADVANTAGES if name not in TOKEN_ADVANTAGES)),
)

# option -> the other option that gives it effect, whether it does at its value, and that in words
_USED_WITH = {
    "gamma": ("advantage", lambda value: value in TOKEN_ADVANTAGES, "reinforce_pp or gae"),
    "lam": ("advantage", lambda value: value == "gae", "gae"),
    "baseline_decay": ("advantage", lambda value: value == "reinforce", "reinforce"),
    "overlong_buffer": ("overlong", lambda value: value == "penalty", "penalty"),
    "overlong_penalty": ("overlong", lambda value: value == "penalty", "penalty"),
    "max_resampling": ("dynamic_sampling", lambda value: value == "resample", "resample"),
    "importance_level": ("importance", lambda value: value != "none", "truncate or mask"),
    "importance_cap": ("importance", lambda value: value != "none", "truncate or mask"),
    "importance_floor": ("importance", lambda value: value == "mask", "mask"),
    "kl_in": ("kl_coefficient", lambda value: value > 0, "above 0"),
    "kl_estimator": ("kl_coefficient", lambda value: value > 0, "above 0"),
    "kl_unbiased": ("kl_coefficient", lambda value: value > 0, "above 0"),
    "kl_horizon": ("kl_target", lambda value: value is not None, "given"),
    "value_coefficient": ("advantage", lambda value: value == "gae", "gae"),
    "value_clip": ("advantage", lambda value: value == "gae", "gae"),
}
