"""What can be refused of a model before an actor starts: reward folders, encoders, explainers, context lengths."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rlaif.config.checks import UserError
from rlaif.config.train import ExplainerConfig
from rlaif.esfp.encoding import compile_template
from rlaif.esfp.explanations import check_template
from rlaif.esfp.reward_model import AUTO_CLASSES
from rlaif.esfp.reward_spec import ExplainerReference, RewardSpec, check_folder, read_spec
from rlaif.esfp.slot_scoring import check_model
from rlaif.esfp.slots import SlotTemplate
from rlaif.modeling.models import absolute, context_length, load_tokenizer, refuse_incomplete, skeleton


def check_reward_folder(folder: str) -> RewardSpec:
    """The specification of a reward folder whose weights are whole and whose tokenizer fits its template."""
    check_folder(Path(folder))
    spec = read_spec(Path(folder))
    refuse_incomplete(folder, "reward.model")
    check_slot_model(folder, spec.template, has_head=True)
    return spec


def check_slot_model(model: str, template: SlotTemplate, *, has_head: bool = False) -> None:
    """Raises UserError unless the encoder of a name or folder can read `template` with its tokenizer.

    has_head: it is read by its own head, which must be of the template's size; else a classifier's is drawn anew.
    """
    try:
        classes = {} if has_head or template.head == "slot" else {"num_labels": template.num_classes}
        check_model(skeleton(model, AUTO_CLASSES[template.head], **classes),
                    compile_template(template, load_tokenizer(model)))
    except (OSError, ValueError) as error:
        raise UserError(f"{str(error).strip().splitlines()[0]} (in {model})") from error


def complete_explainer(config: ExplainerConfig, reward: RewardSpec, reward_folder: str) -> ExplainerConfig:
    """`config` with what it leaves open taken from the reward folder; a relative path there is seen from there.

    Its source is "none" where neither says who explains, or the template reads no explanations.
    """
    known = reward.explainer
    if config.source == "none" or not reward.template.reads_explanations or (
            config.source is None and config.model is None and known is None):
        return dataclasses.replace(config, source="none")
    model, where = config.model, "explainer.model"
    if model is None and known is not None:
        beside = str(Path(reward_folder) / known.model)
        model = beside if Path(beside).is_dir() else known.model
        where = f"explainer (in {Path(reward_folder) / 'reward.yaml'})"
    template = config.template or (known.template if known is not None else None)
    if model is None or template is None:
        missing = "model" if model is None else "template"
        raise UserError(f"explainer.{missing} must be given, got nothing in the config or in {reward_folder!r}")
    source = config.source or (known.source if known is not None and config.model is None else "model")
    if source == "server" and config.server.url is None:
        raise UserError(f"explainer.server.url must be given, got nothing: {reward_folder!r} was trained with a "
                        "server's explanations")
    principles = config.principles or (known.principles if known is not None else "")
    check_template(template, principles, "explainer.template")
    if source == "model":
        refuse_incomplete(model, where)
        model = absolute(model)
    config = dataclasses.replace(config, source=source, model=model, template=template, principles=principles)
    return with_sampling(config, known)


def with_sampling(config: ExplainerConfig, known: ExplainerReference | None = None) -> ExplainerConfig:
    """`config` with the length, temperature and number of its explanations set, from the reward folder's explainer
    where there is one; its cache is seen from any folder, as actors may run in another one."""
    usual = known or ExplainerReference("", "")
    chosen = {name: getattr(usual, name) if getattr(config, name) is None else getattr(config, name)
              for name in ("max_tokens", "temperature", "num_samples")}
    if config.num_samples is None and chosen["temperature"] == 0:
        chosen["num_samples"] = 1       # equal ones are one
    cache = config.cache if config.cache is None else str(Path(config.cache).resolve())
    return dataclasses.replace(config, cache=cache, **chosen)


def check_explainer(config: ExplainerConfig) -> None:
    """Raises UserError if the complete `config` asks its model for more than it can read."""
    if config.source == "model":
        check_context(config.model, config.engine.max_model_len, "explainer.engine.max_model_len")


def check_context(model: str | None, max_model_len: int, key: str) -> None:
    """Raises UserError if `max_model_len` is more than the model can attend over."""
    assert model is not None
    longest = context_length(model)
    if max_model_len > longest:
        raise UserError(f"{key} must be at most the {longest} tokens that {model!r} can attend over, got "
                        f"{max_model_len}")
