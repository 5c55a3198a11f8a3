"""`reward.yaml`: how texts become a reward, where its parts come from, and what is known of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rlaif.esfp.slots import Slot, SlotTemplate

__all__ = ["ExplainerReference", "RewardSpec", "check_folder", "read_spec", "remove_spec", "spec_content", "write_spec"]

FORMAT = 2  # of reward.yaml; raised when an older reader would misread it
_SPEC_FILE = "reward.yaml"


@dataclass(frozen=True)
class ExplainerReference:
    """Stage 1 as the slot model was trained with it."""

    model: str  # model name, or folder as seen from the reward folder
    template: str  # the text that asks for an explanation
    principles: str = ""  # what the explainer was told about how to judge
    max_tokens: int = 64  # tokens of an explanation, > 0
    temperature: float = 0.0  # 0 is greedy
    num_samples: int = 1  # explanations a row, >= 1
    source: str = "model"  # model (vLLM) | server: then `model` is its name there


@dataclass(frozen=True)
class RewardSpec:
    """What `reward.yaml` says."""

    template: SlotTemplate
    # nats, for each slot one a class: class logits of content-free input
    prior: list[list[float]] | None = None
    explainer: ExplainerReference | None = None  # None where there are no explanations
    facts: dict[str, Any] = field(default_factory=dict)  # free: hashes of data and config, figures of the evaluation

    def __post_init__(self) -> None:
        if self.prior is None:
            return
        sizes = [len(row) for row in self.prior]
        wanted = [len(slot.classes) for slot in self.template.slots]
        if sizes != wanted:
            raise ValueError(
                f"prior must have one number a class of each slot {wanted}, got {sizes}; measure it again")


def check_folder(folder: Path) -> None:
    """Raises ValueError, one line, unless all parts of a reward model are in `folder`."""
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


def remove_spec(folder: Path) -> None:
    """Makes `folder` one that does not load, until `write_spec`."""
    (folder / _SPEC_FILE).unlink(missing_ok=True)


def write_spec(folder: str | Path, spec: RewardSpec) -> None:
    """Writes reward.yaml into `folder`."""
    OmegaConf.save(spec_content(spec), Path(folder) / _SPEC_FILE)


def spec_content(spec: RewardSpec) -> DictConfig:
    """What `write_spec` writes; a ValueError of one line where YAML cannot hold it."""
    try:
        return OmegaConf.create({"format": FORMAT, **asdict(spec)})
    except OmegaConfBaseException as error:
        problem = str(error).splitlines()[0]
        raise ValueError(
            f"texts in {_SPEC_FILE} must be free of half an interpolation, got {problem}; take out '${{'"
        ) from error


def read_spec(folder: Path) -> RewardSpec:
    """The specification in a reward folder; a ValueError of one line where it cannot be read."""
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
        explainer = raw.pop("explainer", None)
        if explainer is not None:
            explainer = ExplainerReference(**explainer)
        return RewardSpec(template=SlotTemplate(slots=slots, **template), explainer=explainer, **raw)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path} must have the fields of RewardSpec, got a misfit: {error}; mend it"
        ) from error
    except ValueError as error:
        raise ValueError(f"{error} (in {path})") from error
