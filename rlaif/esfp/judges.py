"""Which judge `reward.model` names, checked before anything starts.

    gold:<name>                 an exact judge of rlaif.esfp.gold
    folder with reward.yaml     a reward model, see rlaif.esfp.reward_spec
    folder with judge.yaml      a generative judge: `format: 1` and the fields of GenerativeSpec, see
                                rlaif.esfp.generative_spec; its model is a name, or a folder as seen from the judge's
                                folder ("." is that folder)
    any other name or folder    a causal LM where `generative.text` asks it something, else an encoder that reads
                                `template`: by default the scalar head of a public reward model
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoConfig

from rlaif.config.checks import UserError
from rlaif.config.reward import GenerativeConfig, JudgeConfig, TemplateConfig
from rlaif.config.train import ExplainerConfig
from rlaif.esfp.generative_judge import compile_question
from rlaif.esfp.generative_spec import GenerativeSpec, JudgeQuestion, from_dict, to_dict
from rlaif.esfp.gold import GOLD
from rlaif.esfp.model_checks import (
    check_context,
    check_explainer,
    check_reward_folder,
    check_slot_model,
    complete_explainer,
)
from rlaif.esfp.reward_model import AUTO_CLASSES, RewardModel, Scored, Texts
from rlaif.esfp.reward_spec import RewardSpec
from rlaif.esfp.slot_scoring import entropies
from rlaif.esfp.slots import Slot, SlotTemplate
from rlaif.esfp.templates import slot_template
from rlaif.modeling.models import absolute, context_length, load_judge, load_tokenizer, refuse_incomplete, skeleton
from rlaif.modeling.weights import checkpoint_shapes

__all__ = ["GOLD_PREFIX", "JUDGE_FILE", "Judge", "explainer_of", "find_judge", "gold_scored", "gold_version",
           "load_encoder", "read_judge", "write_judge"]

GOLD_PREFIX, JUDGE_FILE, REWARD_FILE = "gold:", "judge.yaml", "reward.yaml"
FORMAT = 1      # of judge.yaml; raised when an older reader would misread it

# The label words of a gold judge's verdict, in the order of `gold_scored`.
_GOLD_SLOT = Slot("verdict", [["yes"], ["no"], ["garbled"]], [1.0, 0.0, 0.0])


@dataclass(frozen=True)
class Judge:
    """A judge that is there and fits its model. `template` says of every kind which slots and classes it has."""

    kind: str                               # reward | encoder | generative | gold
    model: str                              # folder as an absolute path, name on a hub, or name of the gold judge
    template: SlotTemplate
    reward: RewardSpec | None = None        # of the kinds reward and encoder
    generative: GenerativeSpec | None = None


def find_judge(config: JudgeConfig, key: str = "") -> Judge:
    """The judge that `config` names. Raises ValueError, one line, for one that is not there or does not fit.

    key: what stands before the config's own keys in messages, such as "judge.".
    """
    model = config.reward.model
    if model is None:
        raise UserError(f"{key}reward.model must be given, got nothing; name a judge")
    if model.startswith(GOLD_PREFIX):
        name = model.removeprefix(GOLD_PREFIX)
        if name not in GOLD:
            raise UserError(f"{key}reward.model must name one of {', '.join(GOLD)} after {GOLD_PREFIX!r}, got {name!r}")
        return Judge("gold", name, SlotTemplate("{prompt} {completion}", [_GOLD_SLOT], 1, head="classes"))
    own = [name for name in (REWARD_FILE, JUDGE_FILE) if (Path(model) / name).is_file()]
    if len(own) > 1:
        raise UserError(f"{key}reward.model must hold {REWARD_FILE} or {JUDGE_FILE}, got both in {model!r}; remove one")
    if own and config.generative.text is not None:
        raise UserError(f"{key}generative.text must be null with a folder that has {own[0]}, got "
                        f"{config.generative.text!r}; the folder says what is asked")
    if own == [REWARD_FILE]:
        spec = check_reward_folder(model)
        return Judge("reward", str(absolute(model)), spec.template, reward=spec)
    if own == [JUDGE_FILE]:
        return _generative(read_judge(model), f"model (in {Path(model) / JUDGE_FILE})")
    if config.generative.text is not None:
        return _generative(_generative_spec(config, key), f"{key}reward.model")
    return _encoder(config, key)


def explainer_of(judge: Judge, config: ExplainerConfig, key: str = "") -> ExplainerConfig:
    """`config` completed for `judge` and rows of a file. Raises UserError for one that cannot explain to it."""
    if not judge.template.reads_explanations:
        if config.source not in (None, "none"):
            raise UserError(f"{key}explainer.source must be null or none for a judge that reads no explanations, got "
                            f"{config.source!r}")
        return dataclasses.replace(config, source="none")
    if config.source == "column":
        return config
    try:
        complete = complete_explainer(config, judge.reward or RewardSpec(judge.template), judge.model)
        check_explainer(complete)
    except UserError as error:
        raise UserError(f"{key if str(error).startswith('explainer.') else ''}{error}") from error
    return complete


def read_judge(folder: str | Path) -> GenerativeSpec:
    """The generative judge in `folder`, its model as seen from here; a ValueError of one line where it cannot be read.
    """
    path = Path(folder) / JUDGE_FILE
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be YAML, got {str(error).splitlines()[0]}; write it again") from error
    if not isinstance(raw, dict) or raw.pop("format", None) != FORMAT:
        raise ValueError(f"format in {path} must be {FORMAT}, got another; see rlaif.esfp.judges")
    try:
        spec = from_dict(raw)
    except ValueError as error:
        raise ValueError(f"{error} (in {path})") from error
    beside = Path(folder) / spec.model
    return dataclasses.replace(spec, model=str(beside.resolve()) if beside.is_dir() else spec.model)


def write_judge(folder: str | Path, spec: GenerativeSpec) -> None:
    """Writes judge.yaml into `folder`, made if absent; `spec.model` is a name, or a folder as seen from `folder`."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    content = yaml.safe_dump({"format": FORMAT, **to_dict(spec)}, sort_keys=False, allow_unicode=True, width=120)
    (Path(folder) / JUDGE_FILE).write_text(content, encoding="utf-8")


def load_encoder(judge: Judge, dtype: str, device: str) -> RewardModel:
    """The model of a judge of the kinds reward and encoder, in eval mode."""
    assert judge.reward is not None
    if judge.kind == "reward":
        return RewardModel.load(judge.model, getattr(torch, dtype), device)
    template = judge.template
    model = load_judge(judge.model, dtype, 0, template.head, template.num_classes, is_trained=True)
    return RewardModel(model.to(device).eval(), load_tokenizer(judge.model), judge.reward)


def gold_scored(name: str, texts: Texts) -> Scored:
    """What the gold judge `name` says of `texts`, as probabilities of 0 and 1. ValueError for a prompt it cannot read.
    """
    verdicts = GOLD[name](texts.prompts, texts.completions)
    rewards = torch.tensor(verdicts["gold"], dtype=torch.float32)
    fluent = torch.tensor(verdicts["fluent"], dtype=torch.float32)
    classes = torch.where(rewards > 0, 0, torch.where(fluent > 0, 1, 2))
    probabilities = torch.nn.functional.one_hot(classes, 3).float().unsqueeze(1)
    return Scored(probabilities, rewards.unsqueeze(1), entropies(probabilities), rewards, 0, 0)


def gold_version(name: str) -> str:
    """16 hex digits for the gold judge `name`."""
    return hashlib.sha256(json.dumps([GOLD_PREFIX, name]).encode()).hexdigest()[:16]


def _generative(spec: GenerativeSpec, where: str) -> Judge:
    """The judge of `spec`, once its model is there and knows its label words."""
    spec = dataclasses.replace(spec, model=str(absolute(spec.model)))
    refuse_incomplete(spec.model, where)
    longest = context_length(spec.model)
    if spec.context_tokens > longest:
        raise UserError(f"max_tokens and max_reasoning_tokens must leave the verdict a place in the {longest} tokens "
                        f"that {spec.model!r} can attend over, got {spec.max_tokens} and {spec.max_reasoning_tokens}; "
                        "lower them")
    try:
        compile_question(spec, load_tokenizer(spec.model))
    except ValueError as error:
        raise UserError(f"{error} (in {spec.model})") from error
    fields = ["prompt", "completion", *(["explanation"] if spec.reads_explanations else []),
              *(["other"] if spec.is_pairwise else [])]
    template = SlotTemplate(" ".join(f"{{{name}}}" for name in fields), [spec.slot], spec.max_tokens, head="classes")
    return Judge("generative", spec.model, template, generative=spec)


def _generative_spec(config: JudgeConfig, key: str) -> GenerativeSpec:
    asked: GenerativeConfig = config.generative
    assert asked.text is not None
    other = " {other}" if asked.slot.kind == "pairwise" else ""
    described = TemplateConfig(text="{prompt} {completion}" + other, head="classes", slots=[asked.slot])
    slot = slot_template(described, f"{key}generative").slots[0]
    try:
        question = JudgeQuestion(asked.text, asked.closing, asked.without_explanation, asked.principles, asked.is_chat)
        return GenerativeSpec(question, slot, config.reward.model, asked.max_tokens, asked.max_reasoning_tokens,
                              config.reward.dtype, asked.temperature)
    except ValueError as error:
        raise UserError(f"{error} (under {key}generative)") from error


def _encoder(config: JudgeConfig, key: str) -> Judge:
    """An encoder without reward.yaml, whose head is as `template` says."""
    model = config.reward.model
    template = slot_template(config.template, f"{key}template")
    if Path(model).is_dir() and not (Path(model) / "config.json").is_file():
        raise UserError(f"{key}reward.model must hold {REWARD_FILE}, {JUDGE_FILE} or a model with config.json, got "
                        f"folder {model!r} without any")
    refuse_incomplete(model, f"{key}reward.model")
    hint = f"{model!r} has no {REWARD_FILE}, so {key}template says what it reads"
    try:
        if template.head != "slot":
            _refuse_headless(model, template)
        check_slot_model(model, template)
    except (OSError, ValueError) as error:
        raise UserError(f"{str(error).strip().splitlines()[0]}; {hint}") from error
    check_context(model, template.max_tokens, f"{key}template.max_tokens")
    return Judge("encoder", str(absolute(model)), template, reward=RewardSpec(template))


def _refuse_headless(model: str, template: SlotTemplate) -> None:
    """Raises UserError for a model without a trained head of the template's size: transformers would draw one."""
    num_labels = AutoConfig.from_pretrained(model, trust_remote_code=False).num_labels
    if num_labels != template.num_classes:
        raise UserError(f"num_labels of the model must be {template.num_classes} with head {template.head}, got "
                        f"{num_labels}")
    if not Path(model).is_dir():
        return      # not loaded yet: nothing can be said of its weights
    whole: Any = skeleton(model, AUTO_CLASSES[template.head])
    there = checkpoint_shapes(model)
    for name, _ in whole.named_parameters():
        if not name.startswith(whole.base_model_prefix + ".") and name not in there:
            raise UserError(f"weights of the model must hold its head, got none named {name}")
