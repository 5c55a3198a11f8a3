"""Configuration: dataclasses are the truth; `rlaif.config_file` fills them from YAML and `key=value`.

Every field says its unit and range; `__post_init__` refuses what is out of range by the field's own name, and the
loader puts the path before it. What depends on files, models or the cluster is checked in `rlaif.preflight` and
`actors.placement`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


class UserError(ValueError):
    """A mistake of the user's: one line that names the field or file, the rule, the value and the cure."""


def _require(holds: bool, name: str, rule: str, value: Any) -> None:
    if not holds:
        raise UserError(f"{name} must be {rule}, got {value!r}")


def _positive(config: Any, *names: str) -> None:
    for name in names:
        _require(0 < getattr(config, name) < math.inf, name, "> 0", getattr(config, name))


def _not_negative(config: Any, *names: str) -> None:
    for name in names:
        _require(0 <= getattr(config, name) < math.inf, name, ">= 0", getattr(config, name))


def _one_of(config: Any, name: str, choices: tuple) -> None:
    _require(getattr(config, name) in choices, name, "one of " + ", ".join(map(str, choices)), getattr(config, name))


def _rows(config: Any, *names: str) -> None:
    for name in names:
        _require(getattr(config, name) is None or getattr(config, name) > 0, name, "> 0 or null", getattr(config, name))


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
        _positive(self, "hidden_size", "num_layers", "num_heads", "intermediate_size", "max_positions",
                  "initializer_range")
        _require(self.hidden_size % self.num_heads == 0, "hidden_size", f"a multiple of num_heads {self.num_heads}",
                 self.hidden_size)


@dataclass
class ModelConfig:
    """A causal or masked language model: a Hugging Face name or folder, or `scratch`."""

    model: str | None = None            # Hugging Face name or folder; null builds `scratch`
    scratch: ScratchConfig = field(default_factory=ScratchConfig)


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
        _one_of(self, "dtype", DTYPES)
        _positive(self, "max_model_len", "max_num_seqs", "tensor_parallel_size", "kv_cache_mb")
        _require(0 < self.gpu_memory_utilization <= 1, "gpu_memory_utilization", "in (0, 1]",
                 self.gpu_memory_utilization)


def _fits(config: Any) -> None:
    """What is written must leave room for what it answers to."""
    room = config.engine.max_model_len
    _require(config.max_tokens < room, "max_tokens", f"below engine.max_model_len {room}", config.max_tokens)


@dataclass
class RolloutConfig:
    """What the policy writes in a step: groups_per_step prompts, group_size completions each."""

    groups_per_step: int = 16           # prompts, > 0
    group_size: int = 8                 # completions a prompt, >= 1
    max_tokens: int = 32                # tokens of a completion, > 0
    temperature: float = 1.0            # > 0; the learner divides its logits by the same
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        _positive(self, "groups_per_step", "group_size", "max_tokens", "temperature")
        _fits(self)


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
        _positive(self, "max_tokens")
        _not_negative(self, "temperature")
        _fits(self)


@dataclass
class RewardConfig:
    """Stage 2 of the reward: a folder written by launch/train_reward.py."""

    model: str = MISSING                # folder with reward.yaml, the masked LM and its tokenizer
    dtype: str = "float32"              # float32 | bfloat16
    max_tokens_per_batch: int = 8192    # padded tokens a forward pass, > 0

    def __post_init__(self) -> None:
        _one_of(self, "dtype", DTYPES)
        _positive(self, "max_tokens_per_batch")


@dataclass
class PromptsConfig:
    """Where prompts come from: "scenes:<table>" (the built-in world) or a .parquet, .jsonl or .csv file."""

    train: str = MISSING
    test: str = MISSING
    num_train: int | None = None        # rows to read, > 0; null reads all
    num_test: int | None = None         # rows to read, > 0; null reads all
    seed: int = 0                       # of the built-in world
    prompt_column: str = "prompt"
    reference_column: str | None = None     # null: no reference answers

    def __post_init__(self) -> None:
        _rows(self, "num_train", "num_test")


@dataclass
class AlgorithmConfig:
    """The policy update."""

    advantage: str = "grpo"             # see rlaif.advantages
    clip_low: float = 0.2               # ratio is kept above 1 - clip_low, 0..1
    clip_high: float = 0.2              # ratio is kept below 1 + clip_high, >= 0
    kl_coefficient: float = 0.02        # >= 0; 0 holds no reference model
    kl_estimator: str = "k3"            # k1 | k2 | k3
    importance_cap: float | None = 2.0  # truncation of policy / rollout probability, >= 1; null: no weighting
    num_epochs: int = 1                 # passes over a step's rollouts, >= 1
    num_minibatches: int = 1            # optimizer steps a pass, >= 1

    def __post_init__(self) -> None:
        _require(0 <= self.clip_low <= 1, "clip_low", "in 0..1", self.clip_low)
        _not_negative(self, "clip_high", "kl_coefficient")
        _one_of(self, "kl_estimator", ("k1", "k2", "k3"))
        _require(self.importance_cap is None or 1 <= self.importance_cap < math.inf, "importance_cap", ">= 1 or null",
                 self.importance_cap)
        _positive(self, "num_epochs", "num_minibatches")


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
        _one_of(self, "optimizer", OPTIMIZERS)
        _one_of(self, "schedule", SCHEDULES)
        _positive(self, "learning_rate", "max_grad_norm", "micro_batch_tokens")
        _require(self.adam_learning_rate is None or 0 < self.adam_learning_rate < math.inf, "adam_learning_rate",
                 "> 0 or null", self.adam_learning_rate)
        _not_negative(self, "warmup_steps", "weight_decay")
        _require(0 <= self.beta2 < 1, "beta2", "in [0, 1)", self.beta2)
        _one_of(self, "zero_stage", (0, 1, 2, 3))
        _require(not self.offload or self.zero_stage > 0, "offload", "false with zero_stage 0", self.offload)
        _one_of(self, "dtype", DTYPES)


SYNC_BACKENDS = ("shared_memory", "nccl", "ipc")


@dataclass
class WeightSyncConfig:
    """Learner to rollout engines."""

    backend: str = "shared_memory"      # shared_memory (any device) | nccl | ipc (GPUs)
    bucket_mb: int = 256                # MiB sent at a time, > 0

    def __post_init__(self) -> None:
        _one_of(self, "backend", SYNC_BACKENDS)
        _positive(self, "bucket_mb")


@dataclass
class RoleConfig:
    """What one role takes of the cluster."""

    num_actors: int = 1                 # >= 1
    num_cpus: float = 1.0               # CPUs an actor reserves, > 0; fractions allowed
    num_gpus: float = 0.0               # GPUs an actor reserves, >= 0; fractions allowed
    num_threads: int = 1                # compute threads of an actor on a CPU, >= 1

    def __post_init__(self) -> None:
        _positive(self, "num_actors", "num_cpus", "num_threads")
        _not_negative(self, "num_gpus")


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
        _one_of(self, "strategy", STRATEGIES)
        _positive(self, "ready_timeout_s")


@dataclass
class EvaluationConfig:
    """Before and after training, on the test prompts, one completion each at the rollout temperature."""

    gold: str | None = None             # "scenes": the exact judge of the built-in world; null: none
    num_prompts: int = 384              # test prompts, > 0

    def __post_init__(self) -> None:
        _require(self.gold in (None, "scenes"), "gold", "null or scenes", self.gold)
        _positive(self, "num_prompts")


@dataclass
class ReportConfig:
    """What the user sees."""

    samples_every: int = 20             # steps between printed samples, 0 prints none
    num_samples: int = 2                # samples printed each time, >= 0

    def __post_init__(self) -> None:
        _not_negative(self, "samples_every", "num_samples")


@dataclass
class TrainConfig:
    """launch/train.py: reinforcement learning."""

    output_dir: str = MISSING
    seed: int = 0                       # >= 0
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
        _not_negative(self, "seed")
        _positive(self, "steps")


@dataclass
class SupervisedDataConfig:
    """Rows for supervised or reward training: "scenes:<table>" or a .parquet, .jsonl or .csv file."""

    train: str = MISSING
    dev: str = MISSING
    num_train: int | None = None        # rows to read, > 0; null reads all
    num_dev: int | None = 512           # rows to read, > 0; null reads all
    seed: int = 0                       # of the built-in world

    def __post_init__(self) -> None:
        _rows(self, "num_train", "num_dev")


def _fits_scratch(model: ModelConfig, where: str, max_tokens: int, name: str) -> None:
    room = model.scratch.max_positions
    _require(model.model is not None or max_tokens <= room, name, f"at most {where}.scratch.max_positions {room}",
             max_tokens)


@dataclass
class SftConfig:
    """launch/sft.py: supervised training of a policy or an explainer."""

    output_dir: str = MISSING
    seed: int = 0                       # >= 0
    steps: int = 1000                   # optimizer steps, >= 1
    batch_size: int = 64                # rows an optimizer step, >= 1
    policy: ModelConfig = field(default_factory=ModelConfig)
    data: SupervisedDataConfig = field(default_factory=SupervisedDataConfig)
    input_template: str = "{prompt}"    # any column of the data as a {field}
    target_column: str = "completion"
    max_tokens: int = 256               # longest row, input and target, in tokens, > 0
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    placement: RoleConfig = field(default_factory=RoleConfig)
    log_every: int = 50                 # optimizer steps between progress lines, >= 1

    def __post_init__(self) -> None:
        _not_negative(self, "seed")
        _positive(self, "steps", "batch_size", "log_every", "max_tokens")
        _fits_scratch(self.policy, "policy", self.max_tokens, "max_tokens")


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
    principles: str = ""                # text the template may use as {principles}
    max_tokens: int = 64                # tokens of an explanation, > 0
    num_actors: int = 1                 # this and the next three as in RoleConfig
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    num_threads: int = 1
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        _positive(self, "max_tokens", "num_actors", "num_cpus", "num_threads")
        _not_negative(self, "num_gpus")
        _fits(self)


@dataclass
class RewardTrainConfig:
    """launch/train_reward.py: the slot model, trained on explanations that the explainer wrote."""

    output_dir: str = MISSING
    seed: int = 0                       # >= 0
    steps: int = 1000                   # optimizer steps, >= 1
    batch_size: int = 64                # rows an optimizer step, >= 1
    slot_model: ModelConfig = field(default_factory=ModelConfig)
    template: TemplateConfig = field(default_factory=TemplateConfig)
    explainer: ExplainerSourceConfig = field(default_factory=ExplainerSourceConfig)
    data: SupervisedDataConfig = field(default_factory=SupervisedDataConfig)
    label_column: str = "label"         # holds a label word of the (first) slot
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    placement: RoleConfig = field(default_factory=RoleConfig)
    log_every: int = 50                 # optimizer steps between progress lines, >= 1

    def __post_init__(self) -> None:
        _not_negative(self, "seed")
        _positive(self, "steps", "batch_size", "log_every")
        _fits_scratch(self.slot_model, "slot_model", self.template.max_tokens, "template.max_tokens")
