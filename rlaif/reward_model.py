"""The ESFP reward model: a folder with a slot model, its tokenizer and `reward.yaml`, which scores texts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from yaml import YAMLError

from rlaif.bucketing import token_budget_batches
from rlaif.collate import pad_right
from rlaif.slot_scoring import check_model, class_logits, combine, slot_probabilities, slot_scores
from rlaif.slots import Encoded, Slot, SlotTemplate, compile_template, encode

__all__ = ["RewardModel", "RewardSpec", "Scored"]

FORMAT = 1  # of reward.yaml; raised when an older reader would misread it
_SPEC_FILE = "reward.yaml"


@dataclass(frozen=True)
class RewardSpec:
    """What `reward.yaml` says: how texts become a reward, and where the model comes from."""

    template: SlotTemplate
    prior: list[list[float]] | None = (
        None  # nats, for each slot one a class: class logits of content-free input
    )
    explainer: str | None = None  # stage 1: model name or folder; None where there are no explanations
    explanation_template: str | None = None  # stage 1: the text that asks for an explanation
    principles: str = ""  # stage 1: what the explainer was told about how to judge
    facts: dict[str, Any] = field(
        default_factory=dict
    )  # free: hashes of data and config, figures of the evaluation

    def __post_init__(self) -> None:
        if self.prior is None:
            return
        sizes = [len(row) for row in self.prior]
        wanted = [len(slot.classes) for slot in self.template.slots]
        if sizes != wanted:
            raise ValueError(
                f"prior must have one number a class of each slot {wanted}, got {sizes}; measure it again"
            )


@dataclass(frozen=True, eq=False)
class Scored:
    """What the model says of N rows, in the order they were given, on the CPU."""

    probabilities: Tensor  # [N, S, K] float32, 0 for classes a slot does not have
    slot_scores: Tensor  # [N, S] float32, unit of the reward
    reward: Tensor  # [N] float32
    num_truncated: int  # rows of which a text was cut


class RewardModel:
    """Texts in, rewards out."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, spec: RewardSpec) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.spec = spec
        self.compiled = compile_template(spec.template, tokenizer)
        check_model(model, self.compiled)
        self._prior = None
        if spec.prior is not None:
            self._prior = torch.zeros(self.compiled.values.shape)
            for s, row in enumerate(spec.prior):
                self._prior[s, : len(row)] = torch.tensor([float(value) for value in row])

    @classmethod
    def load(cls, folder: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> RewardModel:
        """The reward model in `folder`, in eval mode. No code of the folder is run and no pickle is read.

        A ValueError of one line, naming the folder, where a part is missing or does not fit the others.
        """
        folder = Path(folder)
        spec = read_spec(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model, loading = AutoModelForMaskedLM.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
        if loading["missing_keys"] or loading["mismatched_keys"]:
            missing = sorted(map(str, [*loading["missing_keys"], *loading["mismatched_keys"]]))
            raise ValueError(
                f"weights in {folder} must hold every parameter of the masked language model, got none for "
                f"{len(missing)} such as {missing[0]}; save the folder with RewardModel.save"
            )
        try:
            return cls(model.to(device).eval(), tokenizer, spec)
        except ValueError as error:
            raise ValueError(f"{error} (in {folder})") from error

    def save(self, folder: str | Path) -> None:
        """Writes the folder. `reward.yaml` comes last: a folder whose writing was cut short does not load."""
        folder = Path(folder)
        _spec_content(self.spec)    # refuses before anything is written
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _SPEC_FILE).unlink(missing_ok=True)
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        write_spec(folder, self.spec)

    @torch.no_grad()
    def score(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        explanations: Sequence[str | None] | None = None,
        *,
        max_tokens_per_batch: int,
    ) -> Scored:
        """Probabilities, slot scores and rewards of N rows, in eval mode and without a gradient.

        prompts, completions, explanations: as in `slots.encode`. max_tokens_per_batch: padded tokens of one
        forward pass, >= 1. Rows that are equal in what the template shows are scored once. Rows go through
        the model by length; the result depends neither on that nor on the company of a row, up to rounding.
        """
        encoded = encode(self.compiled, prompts, completions, explanations)
        number: dict[tuple[int, ...], int] = {}  # ids of a row -> number of the distinct row
        first: list[int] = []  # a row for each distinct row
        which: list[int] = []  # the distinct row of each row
        for row, ids in enumerate(encoded.input_ids):
            key = (*ids, *encoded.slot_positions[row])
            if key not in number:
                number[key] = len(first)
                first.append(row)
            which.append(number[key])

        lengths = [len(encoded.input_ids[row]) for row in first]
        logits = torch.empty(len(first), *self.compiled.values.shape)
        was_training = self.model.training
        self.model.eval()
        try:
            for batch in token_budget_batches(lengths, max_tokens_per_batch):
                logits[batch] = self._class_logits(encoded, [first[item] for item in batch]).cpu()
        finally:
            self.model.train(was_training)

        probabilities = slot_probabilities(logits, self.spec.template.temperature, self._prior)
        probabilities = probabilities[torch.tensor(which, dtype=torch.int64)]
        scores = slot_scores(probabilities, self.compiled.values)
        return Scored(probabilities, scores, combine(scores, self.compiled.weights), encoded.num_truncated)

    def version(self) -> str:
        """16 hex digits that follow what decides a reward: weights as loaded, template, prior, vocabulary."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        rest = [asdict(self.spec.template), self.spec.prior, sorted(self.tokenizer.get_vocab().items())]
        digest.update(json.dumps(rest).encode())
        return digest.hexdigest()[:16]

    def _class_logits(self, encoded: Encoded, rows: list[int]) -> Tensor:
        """Class logits [B, S, K] of some rows of `encoded`, padded on the right."""
        input_ids, attention_mask = pad_right([encoded.input_ids[row] for row in rows], self.tokenizer.pad_token_id)
        positions = torch.tensor([encoded.slot_positions[row] for row in rows])
        device = self.model.device
        return class_logits(
            self.model, input_ids.to(device), attention_mask.to(device), positions.to(device), self.compiled
        )


def _check_folder(folder: Path) -> None:
    cure = "point at a folder written by RewardModel.save"
    if not folder.is_dir():
        raise ValueError(f"reward model must be a folder, got {folder}; {cure}")
    names = {path.name for path in folder.iterdir()}
    if _SPEC_FILE not in names:
        raise ValueError(f"reward model must have {_SPEC_FILE}, got none in {folder}; {cure}")
    if "config.json" not in names:
        raise ValueError(f"reward model must have config.json, got none in {folder}; {cure}")
    if not any(name.endswith(".safetensors") for name in names):
        raise ValueError(f"reward model must have weights as *.safetensors, got none in {folder}; {cure}")
    if not {"tokenizer.json", "tokenizer_config.json"} & names:
        raise ValueError(f"reward model must have a tokenizer, got no tokenizer.json in {folder}; {cure}")


def write_spec(folder: str | Path, spec: RewardSpec) -> None:
    """Writes reward.yaml into `folder`."""
    OmegaConf.save(_spec_content(spec), Path(folder) / _SPEC_FILE)


def _spec_content(spec: RewardSpec) -> DictConfig:
    try:
        return OmegaConf.create({"format": FORMAT, **asdict(spec)})
    except OmegaConfBaseException as error:
        problem = str(error).splitlines()[0]
        raise ValueError(
            f"texts in {_SPEC_FILE} must be free of half an interpolation, got {problem}; take out '${{'"
        ) from error


def read_spec(folder: Path) -> RewardSpec:
    """The specification in a complete reward folder; a ValueError of one line where it is not complete."""
    _check_folder(folder)
    path = folder / _SPEC_FILE
    try:
        # Not resolved: a text may hold "${".
        raw = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OmegaConfBaseException, YAMLError, OSError, ValueError) as error:
        raise ValueError(
            f"{path} must be YAML, got {str(error).splitlines()[0]}; save the folder again"
        ) from error
    if not isinstance(raw, dict) or raw.pop("format", None) != FORMAT:
        raise ValueError(
            f"format in {path} must be {FORMAT}, got another; use the version of rlaif that wrote it"
        )
    try:
        template = dict(raw.pop("template"))
        slots = [Slot(**slot) for slot in template.pop("slots")]
        return RewardSpec(template=SlotTemplate(slots=slots, **template), **raw)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path} must have the fields of RewardSpec, got a misfit: {error}; mend it"
        ) from error
    except ValueError as error:
        raise ValueError(f"{error} (in {path})") from error
