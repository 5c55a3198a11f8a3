"""Everything that can be refused before an actor starts: models, tokenizers, templates, rows, lengths."""

from __future__ import annotations

from dataclasses import dataclass

from rlaif.advantages import ADVANTAGES
from rlaif.config import ExplainerConfig, TrainConfig, UserError
from rlaif.gold import GOLD
from rlaif.judges import Judge, explainer_of, find_judge
from rlaif.model_checks import check_context
from rlaif.models import load_tokenizer, refuse_incomplete
from rlaif.prompts import prompt_rows
from rlaif.reward_config import JudgeConfig


@dataclass(frozen=True)
class Checked:
    """What the checks read on the way, so that nothing is read twice."""

    train_rows: list[dict]
    test_rows: list[dict]
    explainer: ExplainerConfig      # complete: source is set, and with it model and template
    judge: Judge


def check_train(config: TrainConfig) -> Checked:
    """Raises UserError, one line, for anything in `config` that could not train."""
    if config.policy.model is None:
        raise UserError("policy.model must be a Hugging Face name or folder, got null; launch/sft.py makes one")
    if config.algorithm.advantage not in ADVANTAGES:
        raise UserError(f"algorithm.advantage must be one of {', '.join(ADVANTAGES)}, got "
                        f"{config.algorithm.advantage!r}")
    check_devices(config)
    refuse_incomplete(config.policy.model, "policy.model")
    if config.explainer.source == "column":
        raise UserError("explainer.source must be model, server or none in reinforcement learning, got 'column': "
                        "rollouts are new texts")
    judge = find_judge(JudgeConfig(reward=config.reward))
    explainer = explainer_of(judge, config.explainer)
    if judge.kind == "generative" and judge.template.is_pairwise and config.reward.compare == "group":
        raise UserError("reward.compare must be reference with a generative judge of pairs, got 'group'; give "
                        "prompts.reference_column too")
    if judge.template.is_pairwise and config.reward.compare == "reference" and not config.prompts.reference_column:
        raise UserError("prompts.reference_column must be given with reward.compare = reference, got null; name the "
                        "column of the prompts' file, or set reward.compare=group")
    check_context(config.policy.model, config.rollout.engine.max_model_len, "rollout.engine.max_model_len")
    tokenizer = load_tokenizer(config.policy.model)
    room = config.rollout.engine.max_model_len - config.rollout.max_tokens
    train = prompt_rows(config.prompts, "train", tokenizer, room)
    test = prompt_rows(config.prompts, "test", tokenizer, room)
    if config.evaluation.gold is not None:
        refuse_unjudgeable(config.evaluation.gold, {"prompts.train": train, "prompts.test": test})
    return Checked(train, test[: config.evaluation.num_prompts], explainer, judge)


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


def refuse_unjudgeable(gold: str, rows: dict[str, list[dict]]) -> None:
    """Raises UserError for the first prompt that the gold judge cannot read; `rows` by the key they came from."""
    for key, part in rows.items():
        for number, row in enumerate(part):
            try:
                GOLD[gold]([row["prompt"]], [""])
            except ValueError as error:
                raise UserError(f"{key} must suit evaluation.gold = {gold}, got row {number}: {error}; set "
                                "evaluation.gold=null for other prompts") from error
