"""Everything that can be refused before an actor starts: models, tokenizers, templates, rows, lengths."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoModelForMaskedLM

from rlaif.advantages import ADVANTAGES
from rlaif.config import ExplainerConfig, TrainConfig, UserError
from rlaif.explanations import check_template
from rlaif.gold import GOLD
from rlaif.models import absolute, context_length, load_tokenizer, refuse_incomplete, skeleton
from rlaif.prompts import prompt_rows
from rlaif.reward_model import RewardSpec, read_spec
from rlaif.slot_scoring import check_model
from rlaif.slots import SlotTemplate, compile_template


@dataclass(frozen=True)
class Checked:
    """What the checks read on the way, so that nothing is read twice."""

    train_rows: list[dict]
    test_rows: list[dict]
    explainer: ExplainerConfig      # complete: model and template are set
    reward: RewardSpec


def check_train(config: TrainConfig) -> Checked:
    """Raises UserError, one line, for anything in `config` that could not train."""
    if config.policy.model is None:
        raise UserError("policy.model must be a Hugging Face name or folder, got null; launch/sft.py makes one")
    if config.algorithm.advantage not in ADVANTAGES:
        raise UserError(f"algorithm.advantage must be one of {', '.join(ADVANTAGES)}, got "
                        f"{config.algorithm.advantage!r}")
    check_devices(config)
    refuse_incomplete(config.policy.model, "policy.model")
    reward = check_reward_folder(config.reward.model)
    explainer = complete_explainer(config.explainer, reward, config.reward.model)
    check_context(config.policy.model, config.rollout.engine.max_model_len, "rollout.engine.max_model_len")
    check_context(explainer.model, explainer.engine.max_model_len, "explainer.engine.max_model_len")
    tokenizer = load_tokenizer(config.policy.model)
    room = config.rollout.engine.max_model_len - config.rollout.max_tokens
    train = prompt_rows(config.prompts, "train", tokenizer, room)
    test = prompt_rows(config.prompts, "test", tokenizer, room)
    if config.evaluation.gold is not None:
        refuse_unjudgeable(config.evaluation.gold, {"prompts.train": train, "prompts.test": test})
    return Checked(train, test[: config.evaluation.num_prompts], explainer, reward)


def check_devices(config: TrainConfig) -> None:
    """Raises UserError for GPUs that do not fit the engines, the ranks or the way weights travel."""
    placement = config.placement
    for name, role, engine in (("rollout", placement.rollout, config.rollout.engine),
                               ("explainer", placement.explainer, config.explainer.engine)):
        size = engine.tensor_parallel_size
        if size > 1 and role.num_gpus != size:
            raise UserError(f"placement.{name}.num_gpus must be {name}.engine.tensor_parallel_size = {size}, got "
                            f"{role.num_gpus:g}")
    for name in ("rollout", "explainer", "slot", "learner"):
        num_gpus = getattr(placement, name).num_gpus
        if num_gpus > 1 and num_gpus != int(num_gpus):
            raise UserError(f"placement.{name}.num_gpus must be whole above 1, got {num_gpus:g}")
    rollout, learner, backend = placement.rollout, placement.learner, config.sync.backend
    if learner.num_actors > 1 and 0 < learner.num_gpus < 1:
        raise UserError(f"placement.learner.num_gpus must be 1 for each of {learner.num_actors} ranks, NCCL wants "
                        f"no two on a GPU, got {learner.num_gpus:g}")
    if backend != "shared_memory" and not (rollout.num_gpus and learner.num_gpus):
        raise UserError(f"sync.backend must be shared_memory where rollouts or learners have no GPU, got {backend!r}")
    if backend == "nccl" and rollout.num_gpus + learner.num_gpus <= 1:
        raise UserError("sync.backend must be ipc or shared_memory where rollout and learner share a GPU, got 'nccl'")
    if backend == "ipc" and not (rollout.num_actors == learner.num_actors == 1
                                 and rollout.num_gpus + learner.num_gpus <= 1):
        raise UserError("sync.backend must be nccl or shared_memory unless one rollout and one learner share a "
                        f"GPU (num_gpus of 1 at most together), got 'ipc' with {rollout.num_gpus + learner.num_gpus:g}")


def check_reward_folder(folder: str) -> RewardSpec:
    """The specification of a reward folder whose weights are whole and whose tokenizer fits its template."""
    spec = read_spec(Path(folder))
    refuse_incomplete(folder, "reward.model")
    check_slot_model(folder, spec.template)
    return spec


def check_slot_model(model: str, template: SlotTemplate) -> None:
    """Raises UserError unless the masked LM of a name or folder can read `template` with its tokenizer."""
    try:
        check_model(skeleton(model, AutoModelForMaskedLM), compile_template(template, load_tokenizer(model)))
    except ValueError as error:
        raise UserError(f"{error} (in {model})") from error


def refuse_unjudgeable(gold: str, rows: dict[str, list[dict]]) -> None:
    """Raises UserError for the first prompt that the gold judge cannot read; `rows` by the key they came from."""
    for key, part in rows.items():
        for number, row in enumerate(part):
            try:
                GOLD[gold]([row["prompt"]], [""])
            except ValueError as error:
                raise UserError(f"{key} must suit evaluation.gold = {gold}, got row {number}: {error}; set "
                                "evaluation.gold=null for other prompts") from error


def complete_explainer(config: ExplainerConfig, reward: RewardSpec, reward_folder: str) -> ExplainerConfig:
    """`config` with what it leaves open taken from the reward folder; a relative path there is seen from there."""
    model, where = config.model, "explainer.model"
    if model is None and reward.explainer is not None:
        beside = str(Path(reward_folder) / reward.explainer)
        model = beside if Path(beside).is_dir() else reward.explainer
        where = f"explainer (in {Path(reward_folder) / 'reward.yaml'})"
    template = config.template or reward.explanation_template
    if model is None or template is None:
        missing = "model" if model is None else "template"
        raise UserError(f"explainer.{missing} must be given, got nothing in the config or in {reward_folder!r}")
    refuse_incomplete(model, where)
    principles = config.principles or reward.principles
    check_template(template, principles, "explainer.template")
    return dataclasses.replace(config, model=absolute(model), template=template, principles=principles)


def check_context(model: str | None, max_model_len: int, key: str) -> None:
    """Raises UserError if `max_model_len` is more than the model can attend over."""
    assert model is not None
    longest = context_length(model)
    if max_model_len > longest:
        raise UserError(f"{key} must be at most the {longest} tokens that {model!r} can attend over, got "
                        f"{max_model_len}")
