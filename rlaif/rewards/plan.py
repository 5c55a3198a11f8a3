"""Which parts a run's reward has: `reward` and `rewards` of the configuration, seen together."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rlaif.config.checks import UserError
from rlaif.config.reward_options import complete_options
from rlaif.config.reward_parts import RewardPartConfig, check_parts
from rlaif.config.train import RewardConfig, RoleConfig

__all__ = ["JudgeOptions", "JudgePart", "RewardPlan", "plan_rewards", "plan_stored"]


@dataclass
class JudgeOptions(RewardConfig):
    """`options` of kind judge: the keys of `reward`, for a judge of its own; without a model: the one of `reward`."""

    model: str | None = None            # as reward.model; null takes all of `reward`
    placement: RoleConfig = field(default_factory=RoleConfig)       # what a judge of its own takes of the cluster


@dataclass(frozen=True)
class JudgePart:
    """A judge and where it runs. placement: None for the judge of `reward`, which runs in role `slot`."""

    name: str
    reward: RewardConfig
    placement: RoleConfig | None


@dataclass(frozen=True)
class RewardPlan:
    """The parts of a run's reward, in the order of the configuration; `judges`: those of kind judge, in that order."""

    parts: tuple[RewardPartConfig, ...]
    judges: tuple[JudgePart, ...]

    @property
    def functions(self) -> tuple[RewardPartConfig, ...]:
        """The parts that function actors answer: user's functions and built-in rules."""
        return tuple(part for part in self.parts if part.kind != "judge")

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each part that is added, by its name."""
        return {str(part.name): part.weight for part in self.parts if part.weight}

    @property
    def is_plain(self) -> bool:
        """Whether one judge's value is the reward as it stands: then there is nothing to combine."""
        part = self.parts[0]
        return len(self.parts) == 1 == len(self.judges) and (part.weight, part.transform) == (1.0, "none")

    @property
    def is_by_group(self) -> bool:
        """Whether a batch of whole groups can be combined by itself; else only a whole step can be."""
        return all(part.over == "group" for part in self.parts)

    def without_comparison(self) -> RewardPlan:
        """The plan for completions that have no group: transforms that compare rows are left out. For evaluation."""
        parts = tuple(dataclasses.replace(part, transform="none", over="group") if part.compares else part
                      for part in self.parts)
        return dataclasses.replace(self, parts=parts)

    def fingerprint(self) -> str:
        """16 hex digits that follow what the parts make of values."""
        ignored = ("timeout_s", "max_skipped")
        parts = [{key: value for key, value in dataclasses.asdict(part).items() if key not in ignored}
                 for part in self.parts]
        content = json.dumps(parts, sort_keys=True, default=str)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def plan_rewards(reward: RewardConfig, rewards: Sequence[RewardPartConfig], name: str = "esfp") -> RewardPlan:
    """The plan of `reward` and `rewards`.

    Without `rewards`, the judge of `reward` is the only part, called `name`, with weight 1. With `rewards`, it is a
    part beside them where `reward.model` is given, unless an entry of kind judge without a model stands for it.
    Raises UserError for parts that do not go together.
    """
    where = [f"rewards[{number}]" for number in range(len(rewards))]
    parts = list(rewards)
    judges = [_judge(part, f"{path}.", reward) for part, path in zip(parts, where, strict=True) if part.kind == "judge"]
    if sum(judge.placement is None for judge in judges) > 1:
        raise UserError("rewards must hold one judge without options.model at most, which stands for reward.model, got "
                        "several; give the others a model of their own")
    if reward.model is not None and all(judge.placement for judge in judges):
        parts, where = [RewardPartConfig(kind="judge", name=name), *parts], ["reward", *where]
        judges = [JudgePart(name, reward, None), *judges]
    if not parts:
        raise UserError("reward.model must name a judge where rewards is empty, got null; give either")
    check_parts(parts, where)
    return RewardPlan(tuple(parts), tuple(judges))


def plan_stored(weights: Mapping[str, float]) -> RewardPlan:
    """The plan of rollouts that are scored already: parts with `weights` by name, none of them to be asked."""
    return RewardPlan(tuple(RewardPartConfig(kind="judge", name=name, weight=weight)
                            for name, weight in weights.items()), ())


def _judge(part: RewardPartConfig, path: str, reward: RewardConfig) -> JudgePart:
    try:
        options = complete_options(JudgeOptions, part.options)
    except UserError as error:
        raise UserError(f"{path}{error}") from error
    assert part.name is not None
    if options.model is not None:
        own = {field.name: getattr(options, field.name) for field in dataclasses.fields(RewardConfig)}
        return JudgePart(part.name, RewardConfig(**own), options.placement)
    if part.options:
        raise UserError(f"{path}options must be empty without options.model, got {part.options!r}; the keys of "
                        "`reward` are set there")
    if reward.model is None:
        raise UserError(f"{path}options.model must be given where reward.model is null, got nothing; name a judge")
    return JudgePart(part.name, reward, None)
