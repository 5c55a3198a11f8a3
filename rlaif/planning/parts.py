"""Which models a run has, and how large they are: found on this machine, or described with the cluster."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from rlaif.config.checks import UserError
from rlaif.config.reward import JudgeConfig
from rlaif.config.train import EngineConfig, ExplainerConfig, TrainConfig
from rlaif.esfp.judges import GOLD_PREFIX, Judge, explainer_of, find_judge
from rlaif.planning.shapes import Models, Shape, is_causal, shape_of
from rlaif.rewards.plan import JudgePart, RewardPlan, plan_rewards, plan_stored
from rlaif.running.rollout_store import StoredRollouts

__all__ = ["JudgeShape", "Parts", "find_parts"]


@dataclass(frozen=True)
class JudgeShape:
    """A judge of the reward. shape: None for a gold judge, which is a few rules. tokens: of a row that it reads.
    engine: of a generative judge, which writes new_tokens, the verdict included; None for an encoder."""

    part: JudgePart
    shape: Shape | None
    tokens: int
    engine: EngineConfig | None = None
    new_tokens: int = 1


@dataclass(frozen=True)
class Parts:
    """The models of a run. explaining: None where no engine of the run explains."""

    explainer: ExplainerConfig          # complete
    plan: RewardPlan
    judges: tuple[JudgeShape, ...]
    policy: Shape
    explaining: Shape | None
    reference: Shape | None
    critic: Shape | None


def find_parts(config: TrainConfig, models: Models) -> Parts:
    """Raises UserError, one line, for a model that is neither on this machine nor one of `models`."""
    if config.policy.model is None:
        raise UserError("policy.model must be a Hugging Face name or folder, got null; launch/sft.py makes one")
    plan = (plan_rewards(config.reward, config.rewards) if config.stored.read is None else
            plan_stored(StoredRollouts(config.stored.read).weights))
    found = {part.name: _here(part, models) for part in plan.judges}
    explainer = _explainer(config, [judge for judge in found.values() if judge is not None], found)
    policy = shape_of(config.policy.model, "causal", models, "policy.model")
    has_reference = config.algorithm.kl_coefficient > 0 and config.learner.lora.rank is None
    return Parts(
        explainer, plan, tuple(_judge_shape(part, found[part.name], config, models) for part in plan.judges), policy,
        shape_of(str(explainer.model), "causal", models, "explainer.model") if explainer.source == "model" else None,
        policy if has_reference else None, _critic(config, policy, models))


def _here(part: JudgePart, models: Models) -> Judge | None:
    """The judge as it is on this machine; None where it is only known by its configuration."""
    model = part.reward.model
    if model is not None and not model.startswith(GOLD_PREFIX) and (model in models or not Path(model).is_dir()):
        return None
    try:
        return find_judge(JudgeConfig(reward=part.reward))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from error


def _explainer(config: TrainConfig, here: list[Judge], found: dict[str, Judge | None]) -> ExplainerConfig:
    asked = config.explainer
    readers = [judge for judge in here if judge.template.reads_explanations]
    if readers or len(here) == len(found):
        judges = readers or here
        return explainer_of(judges[0], asked) if judges else dataclasses.replace(asked, source="none")
    if asked.source is None or (asked.source == "model" and asked.model is None):
        away = next(name for name, judge in found.items() if judge is None)
        raise UserError(f"explainer.source must be given, and explainer.model with source: model, where judge {away!r} "
                        "is not on this machine to say it, got null; name them, or set explainer.source=none")
    return dataclasses.replace(asked, max_tokens=asked.max_tokens or 64, num_samples=asked.num_samples or 1)


def _judge_shape(part: JudgePart, judge: Judge | None, config: TrainConfig, models: Models) -> JudgeShape:
    if judge is None:
        model, key = str(part.reward.model), "reward.model"
        if is_causal(model, models, key):
            engine = part.reward.engine
            return JudgeShape(part, shape_of(model, "causal", models, key), engine.max_model_len, engine)
        return JudgeShape(part, shape_of(model, "masked", models, key), config.rollout.engine.max_model_len)
    if judge.kind == "gold":
        return JudgeShape(part, None, 0)
    if judge.generative is not None:
        spec = judge.generative
        engine = dataclasses.replace(part.reward.engine, dtype=spec.dtype, max_model_len=spec.context_tokens)
        return JudgeShape(part, shape_of(judge.model, "causal", models, "reward.model"), spec.max_tokens, engine,
                          1 + spec.max_reasoning_tokens)
    kind = "masked" if judge.template.head == "slot" else "head"
    return JudgeShape(part, shape_of(judge.model, kind, models, "reward.model"), judge.template.max_tokens)


def _critic(config: TrainConfig, policy: Shape, models: Models) -> Shape | None:
    model = config.learner.critic.model
    if config.algorithm.advantage != "gae" or model is None:
        return None
    return policy if model == "policy" else shape_of(model, "causal", models, "learner.critic.model")
