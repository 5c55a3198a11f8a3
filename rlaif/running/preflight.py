"""Everything that can be refused before an actor starts: models, tokenizers, templates, rows, lengths."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import AutoModelForCausalLM

from rlaif.config.algorithm import GROUP_ADVANTAGES, AlgorithmConfig
from rlaif.config.checks import UserError
from rlaif.config.learner import CriticConfig, LearnerConfig
from rlaif.config.reward import JudgeConfig
from rlaif.config.train import ExplainerConfig, RolloutConfig, TrainConfig
from rlaif.data.prompts import PromptSet, read_prompts
from rlaif.esfp.gold import GOLD
from rlaif.esfp.judges import Judge, explainer_of, find_judge
from rlaif.esfp.model_checks import check_context
from rlaif.learning.lora import refuse_unknown_targets
from rlaif.modeling.models import load_tokenizer, refuse_incomplete, skeleton
from rlaif.planning.bundles import groups
from rlaif.rewards.plan import RewardPlan, plan_rewards, plan_stored
from rlaif.rewards.rules import check_rules
from rlaif.running.identity import tokenizer_hash
from rlaif.running.rollout_store import StoredRollouts


@dataclass(frozen=True)
class Checked:
    """What the checks read on the way, so that nothing is read twice."""

    train: PromptSet | None         # None where there is nothing to roll out
    test_rows: list[dict]
    plan: RewardPlan
    judges: Mapping[str, Judge]     # of the plan, by the name of their part
    explainer: ExplainerConfig      # complete: source is set, and with it model and template
    remarks: list[str]              # what the user should know and did not ask for
    stored: StoredRollouts | None = None        # rollouts to train on in place of prompts

    @property
    def class_names(self) -> list[str]:
        """What the classes of every slot are called, slot after slot; of the first judge, whose slots are kept."""
        if self.stored is not None:
            return list(self.stored.header["class_names"])
        first = next(iter(self.judges.values()), None)
        return [] if first is None else [f"{slot.name}:{words[0]}" for slot in first.template.slots
                                         for words in slot.classes]


def check_train(config: TrainConfig) -> Checked:
    """Raises UserError, one line, for anything in `config` that could not train."""
    if config.policy.model is None:
        raise UserError("policy.model must be a Hugging Face name or folder, got null; launch/sft.py makes one")
    check_devices(config)
    refuse_incomplete(config.policy.model, "policy.model")
    if config.mode != "rollout":
        num_steps = config.steps * config.algorithm.num_epochs * config.algorithm.num_minibatches
        check_learner(config.learner, "reinforcement learning", config.policy.model, num_steps, config.algorithm)
    if config.mode == "replay":
        return check_replay(config)
    if config.explainer.source == "column":
        raise UserError("explainer.source must be model, server or none in reinforcement learning, got 'column': "
                        "rollouts are new texts")
    plan, judges = find_rewards(config)
    check_algorithm(config.algorithm, config.rollout, plan)
    explainer = find_explainer(config, judges)
    check_context(config.policy.model, config.rollout.engine.max_model_len, "rollout.engine.max_model_len")
    tokenizer = load_tokenizer(config.policy.model)
    room = config.rollout.engine.max_model_len - config.rollout.max_tokens
    train, test = (read_prompts(config.prompts, split, tokenizer, room) for split in ("train", "test"))
    if config.evaluation.gold is not None:
        refuse_unjudgeable(config.evaluation.gold, {"prompts.train": train.rows, "prompts.test": test.rows})
    refuse_unmeasured(config, plan)
    return Checked(train, test.rows[: config.evaluation.num_prompts], plan, judges, explainer,
                   [*_dropped("train", train), *_dropped("test", test)])


def check_replay(config: TrainConfig) -> Checked:
    """Of a run that trains on stored rollouts, whose parts of the reward are those of the run that stored them. Raises
    UserError for rollouts that are not there, too few, or of another tokenizer or temperature."""
    stored = StoredRollouts(str(config.stored.read))
    plan = plan_stored(stored.weights)
    check_algorithm(config.algorithm, config.rollout, plan)
    groups_per_step = config.rollout.groups_per_step
    if len(stored.groups) < config.steps * groups_per_step:
        raise UserError(f"steps must be at most {len(stored.groups) // groups_per_step} with rollout.groups_per_step = "
                        f"{groups_per_step} and the {len(stored.groups)} groups in {stored.folder}, got "
                        f"{config.steps}; store more, or train for fewer steps")
    for name, here in (("tokenizer", tokenizer_hash(load_tokenizer(str(config.policy.model)))),
                       ("temperature", config.rollout.temperature)):
        if stored.header.get(name) != here:
            field = "policy.model's tokenizer" if name == "tokenizer" else "rollout.temperature"
            raise UserError(f"{field} must be that of the rollouts in {stored.folder} ({stored.header.get(name)}), got "
                            f"{here}; set it as in the run that stored them")
    explainer = dataclasses.replace(config.explainer, source="none")
    return Checked(None, [], plan, {}, explainer, [], stored)


def rollouts_made_of(config: TrainConfig, checked: Checked) -> dict[str, Any]:
    """What stored rollouts say of the run that made them: see rlaif.running.rollout_store."""
    return {"tokenizer": tokenizer_hash(load_tokenizer(str(config.policy.model))), "policy": config.policy.model,
            "temperature": config.rollout.temperature, "group_size": config.rollout.group_size,
            "groups_per_step": config.rollout.groups_per_step, "seed": config.seed, "mode": config.mode,
            "weights": checked.plan.weights, "class_names": checked.class_names}


def _dropped(split: str, prompts: PromptSet) -> list[str]:
    counts = {"bad rows": prompts.num_bad, "prompts that are too long": prompts.num_too_long}
    return [f"prompts.{split}: {count} {what} dropped" for what, count in counts.items() if count]


def check_algorithm(algorithm: AlgorithmConfig, rollout: RolloutConfig, plan: RewardPlan) -> None:
    """Raises UserError for an update that the rollouts or the reward's parts leave nothing to do."""
    if algorithm.advantage in GROUP_ADVANTAGES and rollout.group_size == 1:
        raise UserError(f"rollout.group_size must be > 1 with algorithm.advantage = {algorithm.advantage}, got 1: it "
                        "compares the completions of a prompt with each other")
    if algorithm.overlong_buffer is not None and algorithm.overlong_buffer > rollout.max_tokens:
        raise UserError(f"algorithm.overlong_buffer must be at most rollout.max_tokens = {rollout.max_tokens}, got "
                        f"{algorithm.overlong_buffer}")
    if algorithm.parts == "separate" and len(plan.weights) < 2:
        raise UserError("algorithm.parts must be together with a single part of the reward, got 'separate'; add others "
                        "under rewards")


# kinds of training whose learners drop nothing out, and why
NO_DROPOUT = {"reinforcement learning": "the policy must be the function that its engine samples from",
              "preference training": "policy and reference are compared as they are, without dropout"}


def check_learner(learner: LearnerConfig, training: str, policy: str | None, num_steps: int,
                  algorithm: AlgorithmConfig | None = None) -> None:
    """Raises UserError for options of the learners that would be without effect, and for a critic or adapters that do
    not fit the models.

    training: what it is called in a message, such as those of NO_DROPOUT. policy: name or folder of the causal LM that
    is trained; None where there is none yet. num_steps: optimizer steps of the run. algorithm: of reinforcement
    learning.
    """
    has_critic = algorithm is not None and algorithm.advantage == "gae"
    if not has_critic and learner.critic != CriticConfig():
        where = f"in {training}" if algorithm is None else f"with algorithm.advantage = {algorithm.advantage}"
        raise UserError(f"learner.critic must be left out {where}, got {learner.critic}; only gae has a critic")
    if learner.critic.model not in (None, "policy"):
        refuse_incomplete(learner.critic.model, "learner.critic.model")
    if learner.warmup_steps >= num_steps:
        raise UserError(f"learner.warmup_steps must be below the {num_steps} optimizer steps of the run, got "
                        f"{learner.warmup_steps}: the rate would be reached at its end or never")
    if learner.lora.dropout > 0 and training in NO_DROPOUT:
        raise UserError(f"learner.lora.dropout must be 0 in {training}, got {learner.lora.dropout:g}: "
                        f"{NO_DROPOUT[training]}")
    if learner.lora.rank is not None and policy is None:
        raise UserError(f"learner.lora.rank must be null without policy.model, got {learner.lora.rank}: what adapters "
                        "are added to would stay as it was drawn")
    if learner.lora.target_modules:
        refuse_unknown_targets(skeleton(policy, AutoModelForCausalLM), learner.lora)


def find_rewards(config: TrainConfig) -> tuple[RewardPlan, dict[str, Judge]]:
    """The parts of the reward, and the judges among them. Raises UserError for one that is not there or does not fit.
    """
    name = "esfp"
    if config.reward.model is not None:
        kind = find_judge(JudgeConfig(reward=config.reward)).kind
        name = kind if kind in ("gold", "generative") else name
    plan = plan_rewards(config.reward, config.rewards, name)
    check_rules(plan.functions, config.prompts.has_references)
    judges = {}
    for part in plan.judges:
        try:
            judge = find_judge(JudgeConfig(reward=part.reward))
            if judge.kind == "generative" and judge.template.is_pairwise and part.reward.compare == "group":
                raise UserError("reward.compare must be reference with a generative judge of pairs, got 'group'; give "
                                "prompts.reference_column too")
            if judge.template.is_pairwise and part.reward.compare == "reference" and not config.prompts.has_references:
                raise UserError("prompts.reference_column must be given with reward.compare = reference, got null; "
                                "name the column of the prompts' file, or set reward.compare=group")
        except ValueError as error:
            raise error if part.placement is None else UserError(f"{error} (in reward part {part.name})") from error
        judges[part.name] = judge
    if config.algorithm.dynamic_sampling == "resample" and not plan.is_by_group:
        names = ", ".join(str(part.name) for part in plan.parts if part.over != "group")
        raise UserError(f"over must be group with algorithm.dynamic_sampling = resample, got batch in reward part "
                        f"{names}: a step is rolled out in several rounds")
    return plan, judges


def find_explainer(config: TrainConfig, judges: Mapping[str, Judge]) -> ExplainerConfig:
    """The complete configuration of stage 1, for the first judge that reads explanations; the others read the same."""
    readers = [judge for judge in judges.values() if judge.template.reads_explanations]
    if judges:
        return explainer_of((readers or list(judges.values()))[0], config.explainer)
    if config.explainer.source not in (None, "none"):
        raise UserError(f"explainer.source must be null or none without a judge, got {config.explainer.source!r}")
    return dataclasses.replace(config.explainer, source="none")


def refuse_unmeasured(config: TrainConfig, plan: RewardPlan) -> None:
    """Raises UserError for a figure that evaluation goes by and the run will not measure."""
    known = {"reward", "completion_tokens", "identical_share", "max_logprob_gap"}
    if config.algorithm.kl_coefficient > 0:
        known.add("kl")
    if not plan.is_plain:
        known |= {f"part_{part.name}" for part in plan.parts}
    if config.evaluation.gold is not None:
        known |= GOLD[config.evaluation.gold]([], []).keys()
    for option, name in config.evaluation.figures_asked_for().items():
        plain = name.removeprefix("greedy_")
        if plain not in known or (plain != name and plain in ("kl", "max_logprob_gap")):
            cure = ("set algorithm.kl_coefficient above 0" if name == "kl" else
                    f"there are {', '.join(sorted(known))}, and greedy_... of most")
            raise UserError(f"evaluation.{option} must go by a figure that is measured, got {name!r}; {cure}")


def check_devices(config: TrainConfig) -> None:
    """Raises UserError for GPUs that do not fit the engines, the ranks or the way weights travel."""
    placement = config.placement
    for name, role, engine in (("rollout", placement.rollout, config.rollout.engine),
                               ("explainer", placement.explainer, config.explainer.engine)):
        size = engine.tensor_parallel_size
        if size > 1 and role.num_gpus != size:
            raise UserError(f"placement.{name}.num_gpus must be {name}.engine.tensor_parallel_size = {size}, got "
                            f"{role.num_gpus:g}")
    for name in ("rollout", "explainer", "slot", "functions", "learner"):
        num_gpus = getattr(placement, name).num_gpus
        if num_gpus > 1 and num_gpus != int(num_gpus):
            raise UserError(f"placement.{name}.num_gpus must be whole above 1, got {num_gpus:g}")
    rollout, learner, backend = placement.rollout, placement.learner, config.sync.backend
    _check_sharing(config)
    if backend in ("nccl", "ipc") and not (rollout.num_gpus and learner.num_gpus):
        raise UserError("sync.backend must be shared_memory or gloo where rollouts or learners have no GPU, got "
                        f"{backend!r}")
    if backend == "nccl" and rollout.num_gpus + learner.num_gpus <= 1:
        raise UserError("sync.backend must be ipc or shared_memory where rollout and learner share a GPU, got 'nccl'")
    if backend == "ipc" and not (rollout.num_actors == learner.num_actors == 1
                                 and rollout.num_gpus + learner.num_gpus <= 1):
        raise UserError("sync.backend must be nccl or shared_memory unless one rollout and one learner share a "
                        f"GPU (num_gpus of 1 at most together), got 'ipc' with {rollout.num_gpus + learner.num_gpus:g}")


def _check_sharing(config: TrainConfig) -> None:
    """Raises UserError for two learners on a GPU, and for engines that would sleep where that gives nobody room."""
    placement = config.placement
    roles = {name: getattr(placement, name) for name in ("rollout", "explainer", "slot", "functions", "learner")}
    bundles = [bundle for group in groups(roles, placement.strategy) for bundle in group.bundles]
    shared = [bundle for bundle in bundles if any(role == "learner" for role, _ in bundle.actors)]
    learner = placement.learner
    # More than half of a GPU is a GPU: no second bundle fits on it.
    if learner.num_actors > 1 and 0 < learner.num_gpus < 1 and (
            len(shared) < learner.num_actors or min(bundle.num_gpus for bundle in shared) <= 0.5):
        raise UserError(f"placement.learner.num_gpus must be 1 for each of {learner.num_actors} ranks, NCCL wants "
                        f"no two on a GPU, got {learner.num_gpus:g}; or more than half a GPU with a role beside it")
    for name, engine in (("explainer", config.explainer.engine), ("reward", config.reward.engine)):
        if engine.sleeps:
            raise UserError(f"{name}.engine.sleeps must be false, got true: only rollout engines sleep")
    if not config.rollout.engine.sleeps:
        return
    if placement.rollout.num_gpus == 0:
        raise UserError("rollout.engine.sleeps must be false without GPUs, got true with placement.rollout.num_gpus = "
                        "0: an engine on a CPU cannot give its memory back")
    if config.pipeline.max_staleness > 0:
        raise UserError("rollout.engine.sleeps must be false with pipeline.max_staleness = "
                        f"{config.pipeline.max_staleness}, got true: engines write while the learners learn")
    if not any({"rollout", "learner"} <= {role for role, _ in bundle.actors} for bundle in shared):
        raise UserError("rollout.engine.sleeps must be false unless rollouts and learners share GPUs, got true; set "
                        "placement.rollout.beside=learner")


def refuse_unjudgeable(gold: str, rows: dict[str, list[dict]]) -> None:
    """Raises UserError for the first prompt that the gold judge cannot read; `rows` by the key they came from."""
    for key, part in rows.items():
        for number, row in enumerate(part):
            try:
                GOLD[gold]([row["prompt"]], [""])
            except ValueError as error:
                raise UserError(f"{key} must suit evaluation.gold = {gold}, got row {number}: {error}; set "
                                "evaluation.gold=null for other prompts") from error
