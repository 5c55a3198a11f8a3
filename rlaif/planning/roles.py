"""Which roles a run has, in the order of their bundles."""

from __future__ import annotations

import dataclasses

from rlaif.config.train import ExplainerConfig, RoleConfig, TrainConfig
from rlaif.rewards.plan import JudgePart, RewardPlan

__all__ = ["judge_role", "roles"]


def roles(config: TrainConfig, explainer: ExplainerConfig, plan: RewardPlan) -> dict[str, RoleConfig]:
    """Every role of the run, in bundle order: no explainers where the complete `explainer` asks for none, and of the
    judges and reward functions those that `plan` needs. With config.mode replay the learners alone, with rollout all
    but the learners; a role beside one that is not there has its place to itself."""
    placement = config.placement
    found = {"rollout": placement.rollout}
    if explainer.source != "none":
        found["explainer"] = placement.explainer
    found |= {judge_role(judge): judge.placement or placement.slot for judge in plan.judges}
    if not plan.is_plain:
        found["functions"] = placement.functions
    found |= {"learner": placement.learner}
    if config.mode == "train":
        return found
    found = {name: role for name, role in found.items() if (name == "learner") == (config.mode == "replay")}
    return {name: role if role.beside is None or role.beside in found else dataclasses.replace(role, beside=None)
            for name, role in found.items()}


def judge_role(judge: JudgePart) -> str:
    """The role of a judge: slot for the one of `reward`, judge_<name> for one with a place of its own."""
    return "slot" if judge.placement is None else f"judge_{judge.name}"
