"""Configuration: dataclasses are the truth, YAML holds overrides only, `key=value` on the command line comes last.

Every field says its unit and range; `__post_init__` refuses what is out of range. Nothing here touches files beyond
the YAML itself: what depends on files, models or the cluster is checked in `rlaif.preflight` and `actors.placement`.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException


class UserError(ValueError):
    """A mistake of the user's: one line that names the field or file, the rule, the value and the cure."""


def _require(holds: bool, name: str, rule: str, value: Any) -> None:
    if not holds:
        raise UserError(f"{name} must be {rule}, got {value!r}")


Config = TypeVar("Config")
DTYPES = ("float32", "bfloat16")


@dataclass
class ScratchConfig:
    """A small model built from nothing, with a word-level tokenizer learnt from the training text."""

    hidden_size: int = 128              # > 0, a multiple of num_heads
    num_layers: int = 3                 # > 0
    num_heads: int = 2                  # > 0; vLLM wants hidden_size / num_heads of 64 or more
    intermediate_size: int = 384        # > 0
    max_positions: int = 256            # tokens, > 0
    initializer_range: float = 0.05     # standard deviation of the first weights, > 0

    def __post_init__(self) -> None:
        for name in ("hidden_size", "num_layers", "num_heads", "intermediate_size", "max_positions"):
            _require(getattr(self, name) > 0, f"scratch.{name}", "> 0", getattr(self, name))
        _require(self.hidden_size % self.num_heads == 0, "scratch.hidden_size", "a multiple of num_heads",
                 self.hidden_size)


@dataclass
class ModelConfig:
    """A causal or masked language model: a Hugging Face name or folder, or `scratch`."""

    model: str | None = None            # Hugging Face name or folder; null builds `scratch`
    scratch: ScratchConfig = field(default_factory=ScratchConfig)
    dtype: str = "float32"              # float32 | bfloat16

    def __post_init__(self) -> None:
        _require(self.dtype in DTYPES, "dtype", f"one of {DTYPES}", self.dtype)


@dataclass
class EngineConfig:
    """One vLLM engine."""

    dtype: str = "float32"              # float32 | bfloat16
    max_model_len: int = 256            # tokens of prompt and answer together, > 0
    max_num_seqs: int = 128             # sequences decoded at once, > 0
    tensor_parallel_size: int = 1       # GPUs an engine spans, >= 1
    kv_cache_mb: int = 128              # MiB of KV cache on a CPU, > 0
    gpu_memory_utilization: float = 0.5     # share of each GPU, 0..1
    enforce_eager: bool = True          # no graph capture: starts in seconds

    def __post_init__(self) -> None:
        _require(self.dtype in DTYPES, "engine.dtype", f"one of {DTYPES}", self.dtype)
        for name in ("max_model_len", "max_num_seqs", "tensor_parallel_size", "kv_cache_mb"):
            _require(getattr(self, name) > 0, f"engine.{name}", "> 0", getattr(self, name))
        _require(0 < self.gpu_memory_utilization <= 1, "engine.gpu_memory_utilization", "in (0, 1]",
                 self.gpu_memory_utilization)


@dataclass
class RolloutConfig:
    """What the policy writes in a step: groups_per_step prompts, group_size completions each."""

    groups_per_step: int = 16           # prompts, > 0
    group_size: int = 8                 # completions a prompt, >= 1
    max_tokens: int = 32                # tokens of a completion, > 0
    temperature: float = 1.0            # > 0; the learner divides its logits by the same
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        for name in ("groups_per_step", "group_size", "max_tokens"):
            _require(getattr(self, name) > 0, f"rollout.{name}", "> 0", getattr(self, name))
        _require(self.temperature > 0, "rollout.temperature", "> 0", self.temperature)


@dataclass
class ExplainerConfig:
    """Stage 1 of the reward. What is null is taken from the reward folder."""

    model: str | None = None            # Hugging Face name or folder of the explaining model
    template: str | None = None         # with the fields {prompt}, {completion} and, if given, {principles}
    principles: str = ""                # text the template may use: how to judge, in words
    max_tokens: int = 64                # tokens of an explanation, > 0
    temperature: float = 0.0            # 0 is greedy
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        _require(self.max_tokens > 0, "explainer.max_tokens", "> 0", self.max_tokens)
        _require(self.temperature >= 0, "explainer.temperature", ">= 0", self.temperature)


@dataclass
class RewardConfig:
    """Stage 2 of the reward: a folder written by launch/train_reward.py."""

    model: str = MISSING                # folder with reward.yaml, the masked LM and its tokenizer
    dtype: str = "float32"              # float32 | bfloat16
    max_tokens_per_batch: int = 8192    # padded tokens a forward pass, > 0

    def __post_init__(self) -> None:
        _require(self.dtype in DTYPES, "reward.dtype", f"one of {DTYPES}", self.dtype)
        _require(self.max_tokens_per_batch > 0, "reward.max_tokens_per_batch", "> 0", self.max_tokens_per_batch)


@dataclass
class PromptsConfig:
    """Where prompts come from: "scenes:<table>" (the built-in world) or a .parquet, .jsonl or .csv file."""

    train: str = MISSING
    test: str = MISSING
    num_train: int | None = None        # rows to read, null reads all
    num_test: int | None = None         # rows to read, null reads all
    seed: int = 0                       # of the built-in world
    prompt_column: str = "prompt"
    reference_column: str | None = None     # null: no reference answers


@dataclass
class AlgorithmConfig:
    """The policy update."""

    advantage: str = "grpo"             # see rlaif.advantages
    clip_low: float = 0.2               # ratio is kept above 1 - clip_low, 0..1
    clip_high: float = 0.2              # ratio is kept below 1 + clip_high, >= 0
    kl_coefficient: float = 0.02        # >= 0; 0 holds no reference model
    kl_estimator: str = "k3"            # k1 | k2 | k3
    importance_cap: float = 2.0         # truncation of policy / rollout probability, > 0
    num_epochs: int = 1                 # passes over a step's rollouts, >= 1
    num_minibatches: int = 1            # optimizer steps a pass, >= 1

    def __post_init__(self) -> None:
        _require(0 <= self.clip_low <= 1, "algorithm.clip_low", "in 0..1", self.clip_low)
        _require(self.kl_coefficient >= 0, "algorithm.kl_coefficient", ">= 0", self.kl_coefficient)
        _require(self.num_epochs >= 1, "algorithm.num_epochs", ">= 1", self.num_epochs)
        _require(self.num_minibatches >= 1, "algorithm.num_minibatches", ">= 1", self.num_minibatches)


OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("constant", "linear", "cosine")


@dataclass
class LearnerConfig:
    """DeepSpeed: how weights are updated. The number of ranks is placement.learner.num_actors."""

    optimizer: str = "adamw"            # adamw | muon (Muon for hidden matrices, AdamW for the rest)
    learning_rate: float = 1e-4         # > 0
    adam_learning_rate: float | None = None     # of muon's AdamW part; null takes learning_rate
    schedule: str = "constant"          # constant | linear | cosine: after warm-up, down to zero
    warmup_steps: int = 0               # optimizer steps, >= 0
    weight_decay: float = 0.0           # >= 0
    beta2: float = 0.95                 # AdamW's second moment, 0..1
    max_grad_norm: float = 1.0          # > 0
    zero_stage: int = 0                 # 0 | 1 | 2 | 3
    offload: bool = False               # optimizer states on the CPU (ZeRO 1-3)
    micro_batch_tokens: int = 8192      # padded tokens a forward pass, > 0
    dtype: str = "float32"              # float32 | bfloat16

    def __post_init__(self) -> None:
        _require(self.optimizer in OPTIMIZERS, "learner.optimizer", f"one of {OPTIMIZERS}", self.optimizer)
        _require(self.schedule in SCHEDULES, "learner.schedule", f"one of {SCHEDULES}", self.schedule)
        _require(self.learning_rate > 0, "learner.learning_rate", "> 0", self.learning_rate)
        _require(self.warmup_steps >= 0, "learner.warmup_steps", ">= 0", self.warmup_steps)
        _require(self.zero_stage in (0, 1, 2, 3), "learner.zero_stage", "0, 1, 2 or 3", self.zero_stage)
        _require(not self.offload or self.zero_stage > 0, "learner.offload", "false with zero_stage 0", self.offload)
        _require(self.max_grad_norm > 0, "learner.max_grad_norm", "> 0", self.max_grad_norm)
        _require(self.micro_batch_tokens > 0, "learner.micro_batch_tokens", "> 0", self.micro_batch_tokens)
        _require(self.dtype in DTYPES, "learner.dtype", f"one of {DTYPES}", self.dtype)


SYNC_BACKENDS = ("shared_memory", "nccl", "ipc")


@dataclass
class WeightSyncConfig:
    """Learner to rollout engines."""

    backend: str = "shared_memory"      # shared_memory (any device) | nccl | ipc (GPUs)
    bucket_mb: int = 256                # MiB sent at a time, > 0

    def __post_init__(self) -> None:
        _require(self.backend in SYNC_BACKENDS, "sync.backend", f"one of {SYNC_BACKENDS}", self.backend)
        _require(self.bucket_mb > 0, "sync.bucket_mb", "> 0", self.bucket_mb)


@dataclass
class RoleConfig:
    """What one role takes of the cluster."""

    num_actors: int = 1                 # >= 1
    num_cpus: float = 1.0               # CPUs an actor reserves, > 0; fractions allowed
    num_gpus: float = 0.0               # GPUs an actor reserves, >= 0; fractions allowed
    num_threads: int = 1                # compute threads of an actor on a CPU, >= 1

    def __post_init__(self) -> None:
        _require(self.num_actors >= 1, "placement.*.num_actors", ">= 1", self.num_actors)
        _require(self.num_cpus > 0, "placement.*.num_cpus", "> 0", self.num_cpus)
        _require(self.num_gpus >= 0, "placement.*.num_gpus", ">= 0", self.num_gpus)
        _require(self.num_threads >= 1, "placement.*.num_threads", ">= 1", self.num_threads)


STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")


@dataclass
class PlacementConfig:
    """Each role's actors; a role has its own CPUs and GPUs."""

    rollout: RoleConfig = field(default_factory=RoleConfig)
    explainer: RoleConfig = field(default_factory=RoleConfig)
    slot: RoleConfig = field(default_factory=RoleConfig)
    learner: RoleConfig = field(default_factory=RoleConfig)
    strategy: str = "PACK"              # Ray's placement strategy
    ready_timeout_s: float = 300.0      # seconds until every actor must answer, > 0

    def __post_init__(self) -> None:
        _require(self.strategy in STRATEGIES, "placement.strategy", f"one of {STRATEGIES}", self.strategy)
        _require(self.ready_timeout_s > 0, "placement.ready_timeout_s", "> 0", self.ready_timeout_s)


@dataclass
class EvaluationConfig:
    """Before and after training, on the test prompts, one completion each at the rollout temperature."""

    gold: str | None = None             # "scenes": the exact judge of the built-in world; null: none
    num_prompts: int = 384              # test prompts, > 0

    def __post_init__(self) -> None:
        _require(self.gold in (None, "scenes"), "evaluation.gold", "null or scenes", self.gold)
        _require(self.num_prompts > 0, "evaluation.num_prompts", "> 0", self.num_prompts)


@dataclass
class ReportConfig:
    """What the user sees."""

    samples_every: int = 20             # steps between printed samples, 0 prints none
    num_samples: int = 2                # samples printed each time, >= 0


@dataclass
class TrainConfig:
    """launch/train.py: reinforcement learning."""

    output_dir: str = MISSING
    seed: int = 0
    steps: int = 100                    # updates, >= 1
    policy: ModelConfig = field(default_factory=ModelConfig)
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    explainer: ExplainerConfig = field(default_factory=ExplainerConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    sync: WeightSyncConfig = field(default_factory=WeightSyncConfig)
    placement: PlacementConfig = field(default_factory=PlacementConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    report: ReportConfig = field(default_factory=ReportConfig)

    def __post_init__(self) -> None:
        _require(self.steps >= 1, "steps", ">= 1", self.steps)


@dataclass
class SupervisedDataConfig:
    """Rows for supervised or reward training: "scenes:<table>" or a .parquet, .jsonl or .csv file."""

    train: str = MISSING
    dev: str = MISSING
    num_train: int | None = None        # rows to read, null reads all
    num_dev: int | None = 512           # rows to read, null reads all
    seed: int = 0                       # of the built-in world


@dataclass
class SftConfig:
    """launch/sft.py: supervised training of a policy or an explainer."""

    output_dir: str = MISSING
    seed: int = 0
    steps: int = 1000                   # optimizer steps, >= 1
    batch_size: int = 64                # rows an optimizer step, >= 1
    policy: ModelConfig = field(default_factory=ModelConfig)
    data: SupervisedDataConfig = field(default_factory=SupervisedDataConfig)
    input_template: str = "{prompt}"    # any column of the data as a {field}
    target_column: str = "completion"
    max_tokens: int = 256               # longest row, input and target, in tokens
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    placement: RoleConfig = field(default_factory=RoleConfig)
    log_every: int = 50                 # optimizer steps between progress lines, >= 1

    def __post_init__(self) -> None:
        _require(self.steps >= 1, "steps", ">= 1", self.steps)
        _require(self.batch_size >= 1, "batch_size", ">= 1", self.batch_size)
        _require(self.log_every >= 1, "log_every", ">= 1", self.log_every)


@dataclass
class SlotConfig:
    """One slot of the template and its verbalizer."""

    name: str = MISSING
    classes: list[list[str]] = field(default_factory=list)      # label words of each class, in order
    values: list[float] = field(default_factory=list)           # worth of each class
    weight: float = 1.0


@dataclass
class TemplateConfig:
    """Stage 2's text: fields {prompt}, {completion}, {explanation}; slots as [name]."""

    text: str = "{prompt} {completion} {explanation} The answer is [verdict]."
    slots: list[SlotConfig] = field(default_factory=list)
    max_tokens: int = 256               # tokens of the filled template, > 0


@dataclass
class ExplainerSourceConfig:
    """Who writes the explanations that the slot model is trained and tested on."""

    model: str = MISSING                # folder or name of the explainer
    template: str = "{prompt}\nAnswer: {completion}\nReason:"
    max_tokens: int = 64
    num_actors: int = 1
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    num_threads: int = 1
    engine: EngineConfig = field(default_factory=EngineConfig)


@dataclass
class RewardTrainConfig:
    """launch/train_reward.py: the slot model, trained on explanations that the explainer wrote."""

    output_dir: str = MISSING
    seed: int = 0
    steps: int = 1000
    batch_size: int = 64
    slot_model: ModelConfig = field(default_factory=ModelConfig)
    template: TemplateConfig = field(default_factory=TemplateConfig)
    explainer: ExplainerSourceConfig = field(default_factory=ExplainerSourceConfig)
    data: SupervisedDataConfig = field(default_factory=SupervisedDataConfig)
    label_column: str = "label"         # holds a label word of the (first) slot
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    placement: RoleConfig = field(default_factory=RoleConfig)
    log_every: int = 50

    def __post_init__(self) -> None:
        _require(self.steps >= 1, "steps", ">= 1", self.steps)
        _require(self.batch_size >= 1, "batch_size", ">= 1", self.batch_size)
        _require(self.log_every >= 1, "log_every", ">= 1", self.log_every)


def load(kind: type[Config], path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """A `kind` made of its defaults, the YAML at `path` and `key=value` overrides, in that order.

    Raises UserError: file missing, unknown key (naming the nearest one), wrong type, value out of range, a mandatory
    value not given.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"config must be a YAML file, got {str(path)!r}; see configs/ for ready ones")
    for override in overrides:
        if "=" not in override:
            raise UserError(f"override must be key=value, got {override!r}")
    try:
        given = [OmegaConf.load(path), OmegaConf.from_dotlist(list(overrides))]
    except Exception as error:
        raise UserError(f"config {path} must be YAML, got: {_first_line(error)}") from error
    for source in given:
        _refuse_unknown(kind, OmegaConf.to_container(source), "")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(kind), *given)
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise UserError(f"{missing[0]} must be given, got nothing; set it in {path} or as {missing[0]}=...")
        return OmegaConf.to_object(merged)
    except UserError:
        raise
    except OmegaConfBaseException as error:
        name = getattr(error, "full_key", None) or "config"
        raise UserError(f"{name}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _refuse_unknown(kind: type, given: Any, prefix: str) -> None:
    """Refuses a key that `kind` lacks, naming the nearest one it has."""
    if not isinstance(given, dict):
        return
    hints = {item.name: item for item in dataclasses.fields(kind)}
    for key, value in given.items():
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1, cutoff=0.0)
            raise UserError(f"{prefix}{key} must be a known key, got an unknown one; did you mean {prefix}{near[0]}?")
        default = hints[key].default_factory
        if dataclasses.is_dataclass(default):
            _refuse_unknown(default, value, f"{prefix}{key}.")


def resolved_yaml(config: Any) -> str:
    """The whole configuration as YAML, defaults included: what a run writes beside its results."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))
