"""Configuration: dataclasses are the truth; `rlaif.config.files` fills them from YAML and `key=value`.

Every field says its unit and range; `__post_init__` refuses what is out of range by the field's own name, and the
loader puts the path before it. What depends on files, models or the cluster is checked in `rlaif.running.preflight` and
`actors.cluster.placement`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from omegaconf import MISSING

from rlaif.config.algorithm import AlgorithmConfig
from rlaif.config.checkpoint import CheckpointConfig
from rlaif.config.checks import UserError, not_negative, one_of, positive, require, rows_or_null
from rlaif.config.evaluation import EvaluationConfig
from rlaif.config.faults import FaultsConfig
from rlaif.config.learner import DTYPES, LearnerConfig
from rlaif.config.pipeline import PipelineConfig
from rlaif.config.prompts import ChatConfig, PromptsConfig
from rlaif.config.reward_parts import RewardPartConfig
from rlaif.config.stored import MODES, StoredConfig


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
        positive(self, "hidden_size", "num_layers", "num_heads", "intermediate_size", "max_positions",
                  "initializer_range")
        require(self.hidden_size % self.num_heads == 0, "hidden_size", f"a multiple of num_heads {self.num_heads}",
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
    sleeps: bool = False                # of rollout, on GPUs: its memory is given back while the learners learn

    def __post_init__(self) -> None:
        one_of(self, "dtype", DTYPES)
        positive(self, "max_model_len", "max_num_seqs", "tensor_parallel_size", "kv_cache_mb")
        require(0 < self.gpu_memory_utilization <= 1, "gpu_memory_utilization", "in (0, 1]",
                 self.gpu_memory_utilization)


def _fits(config: Any) -> None:
    """What is written must leave room for what it answers to."""
    room = config.engine.max_model_len
    require(config.max_tokens < room, "max_tokens", f"below engine.max_model_len {room}", config.max_tokens)


@dataclass
class RolloutConfig:
    """What the policy writes in a step: groups_per_step prompts, group_size completions each."""

    groups_per_step: int = 16           # prompts, > 0
    group_size: int = 8                 # completions a prompt, >= 1
    max_tokens: int = 32                # tokens of a completion, > 0
    temperature: float = 1.0            # > 0; the learner divides its logits by the same
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        positive(self, "groups_per_step", "group_size", "max_tokens", "temperature")
        _fits(self)


SERVER_APIS = ("chat", "completions")


@dataclass
class ServerConfig:
    """An OpenAI-compatible server that writes explanations, with explainer.source: server."""

    url: str | None = None              # such as http://127.0.0.1:8000/v1
    api: str = "chat"                   # chat (one user message) | completions (the text as it is)
    api_key_env: str | None = None      # name of the environment variable that holds the token; null: no token
    timeout_s: float = 120.0            # of one request, > 0
    max_retries: int = 6                # of one request, with growing, jittered pauses, >= 0; 6 bridge half a minute
    concurrency: int = 32               # requests at once, > 0
    max_consecutive_failures: int = 64  # questions in a row without an answer until the run stops, > 0

    def __post_init__(self) -> None:
        self._refuse_unsafe()
        one_of(self, "api", SERVER_APIS)
        positive(self, "timeout_s", "concurrency", "max_consecutive_failures")
        not_negative(self, "max_retries")

    def _refuse_unsafe(self) -> None:
        """Raises UserError for a url that is none, and for a secret in a place where it would be shown."""
        if set("@?#") & set(self.url or ""):
            raise UserError("url must be without user, password, query or fragment, got one with them; api_key_env "
                            "names the token")
        require(self.url is None or _is_http(self.url), "url", "http://host:port/... or https://...", self.url)
        # Most tokens have small letters.
        if self.api_key_env is not None and not re.fullmatch("[A-Z_][A-Z0-9_]*", self.api_key_env):
            raise UserError("api_key_env must be the name of an environment variable in capitals, got something else "
                            "(not shown: it may be the token itself); export the token and name its variable")


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:      # a port or an IPv6 address that is none
        return False


EXPLANATION_SOURCES = ("model", "server", "column", "none")
ON_UNUSABLE = ("without", "error")


@dataclass
class ExplainerConfig:
    """Stage 1 of the reward. Where a reward folder is used, what is null is taken from there."""

    source: str | None = None           # model (vLLM) | server | column (of the data) | none (no explanations)
    model: str | None = None            # Hugging Face name or folder of the explaining model; its name on the server
    template: str | None = None         # with the fields {prompt}, {completion} and, if given, {principles}
    principles: str = ""                # text the template may use: how to judge, in words
    max_tokens: int | None = None       # tokens of an explanation, > 0; null at last: 64
    temperature: float | None = None    # 0 is greedy; null at last: 0
    num_samples: int | None = None      # explanations a row, whose scores are averaged, >= 1; null at last: 1
    on_unusable: str = "without"        # empty, cut-off or failed: without (judge without explanation) | error
    cache: str | None = None            # SQLite file that keeps explanations by content, model and prompt; null: none
    server: ServerConfig = field(default_factory=ServerConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        require(self.source is None or self.source in EXPLANATION_SOURCES, "source",
                 "null or one of " + ", ".join(EXPLANATION_SOURCES), self.source)
        one_of(self, "on_unusable", ON_UNUSABLE)
        for name, is_right in (("max_tokens", lambda value: value > 0), ("num_samples", lambda value: value > 0),
                               ("temperature", lambda value: 0 <= value < math.inf)):
            value = getattr(self, name)
            require(value is None or is_right(value), name, ">= 0" if name == "temperature" else "> 0", value)
        require(self.num_samples in (None, 1) or self.temperature != 0, "num_samples", "1 at temperature 0",
                self.num_samples)
        require(self.source != "server" or self.server.url is not None, "server.url", "given with source: server",
                 self.server.url)
        if self.max_tokens is not None and self.source in (None, "model"):
            _fits(self)


COMPARISONS = ("group", "reference")


@dataclass
class RewardConfig:
    """Stage 2 of the reward: a folder written by launch/train_reward.py, or another judge (see rlaif.esfp.judges)."""

    model: str | None = None            # folder with reward.yaml, the encoder and its tokenizer; or gold:scenes; null:
                                        # no judge, where TrainConfig.rewards says what the reward is
    dtype: str = "float32"              # float32 | bfloat16
    max_tokens_per_batch: int = 8192    # tokens of a forward pass, > 0
    compare: str = "group"              # pairwise slots: with the others of the group | with the prompt's reference
    engine: EngineConfig = field(default_factory=EngineConfig)      # of a generative judge

    def __post_init__(self) -> None:
        one_of(self, "dtype", DTYPES)
        positive(self, "max_tokens_per_batch")
        one_of(self, "compare", COMPARISONS)


SYNC_BACKENDS = ("shared_memory", "gloo", "nccl", "ipc")


@dataclass
class WeightSyncConfig:
    """Learner to rollout engines."""

    backend: str = "shared_memory"      # shared_memory (any device; engines elsewhere by the object store) | gloo (any
                                        # device, by the network) | nccl (GPUs) | ipc (one GPU for both)
    bucket_mb: int = 64                 # MiB gathered and sent at a time, > 0; the learner keeps two, each as large as
                                        # this or as the largest weight

    def __post_init__(self) -> None:
        one_of(self, "backend", SYNC_BACKENDS)
        positive(self, "bucket_mb")


STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")


@dataclass
class RoleConfig:
    """What one role takes of the cluster, and where; see rlaif.planning.bundles."""

    num_actors: int = 1                 # >= 1
    num_cpus: float = 1.0               # CPUs an actor reserves, > 0; fractions allowed
    num_gpus: float = 0.0               # GPUs an actor reserves, >= 0; fractions allowed
    num_threads: int = 1                # compute threads of an actor on a CPU, >= 1
    pool: str | None = None             # only nodes of `ray start --labels=pool=<this>`; null: any node
    strategy: str | None = None         # Ray's, among this role's actors; null: placement.strategy, with the others
    beside: str | None = None           # role whose GPUs this one shares, so many actors to each of it; null: none

    def __post_init__(self) -> None:
        positive(self, "num_actors", "num_cpus", "num_threads")
        not_negative(self, "num_gpus")
        require(self.strategy is None or self.strategy in STRATEGIES, "strategy",
                "null or one of " + ", ".join(STRATEGIES), self.strategy)
        require(self.pool is None or re.fullmatch("[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", self.pool)
                is not None, "pool", "a label of a node (letters, digits, _ . -)", self.pool)
        require(self.beside is None or (self.pool is None and self.strategy is None), "beside",
                "null with a pool or strategy of its own", self.beside)


@dataclass
class PlacementConfig:
    """Each role's actors; a role has its own CPUs and GPUs."""

    rollout: RoleConfig = field(default_factory=RoleConfig)
    explainer: RoleConfig = field(default_factory=RoleConfig)
    slot: RoleConfig = field(default_factory=RoleConfig)
    functions: RoleConfig = field(default_factory=lambda: RoleConfig(num_cpus=0.25))    # where `rewards` needs them
    learner: RoleConfig = field(default_factory=RoleConfig)
    strategy: str = "PACK"              # Ray's placement strategy
    ready_timeout_s: float = 300.0      # seconds until every actor must answer, > 0

    def __post_init__(self) -> None:
        one_of(self, "strategy", STRATEGIES)
        positive(self, "ready_timeout_s")


@dataclass
class ReportConfig:
    """What the user sees."""

    samples_every: int = 20             # steps between printed samples, 0 prints none
    num_samples: int = 2                # samples printed each time, >= 0
    state_every_s: float = 60.0         # seconds between lines that say what each stage is doing, 0 says none

    def __post_init__(self) -> None:
        not_negative(self, "samples_every", "num_samples", "state_every_s")


@dataclass
class TrainConfig:
    """launch/train.py: reinforcement learning."""

    output_dir: str = MISSING
    mode: str = "train"                 # train | rollout (no learners) | replay (learners alone); see `stored`
    seed: int = 0                       # >= 0
    steps: int = 100                    # updates, >= 1
    policy: ModelConfig = field(default_factory=ModelConfig)
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    explainer: ExplainerConfig = field(default_factory=ExplainerConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    rewards: list[RewardPartConfig] = field(default_factory=list)   # further parts; none: `reward` is all of it
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    sync: WeightSyncConfig = field(default_factory=WeightSyncConfig)
    placement: PlacementConfig = field(default_factory=PlacementConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    faults: FaultsConfig = field(default_factory=FaultsConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    stored: StoredConfig = field(default_factory=StoredConfig)
    report: ReportConfig = field(default_factory=ReportConfig)

    def __post_init__(self) -> None:
        not_negative(self, "seed")
        positive(self, "steps")
        self._check_mode()
        if self.output_dir != MISSING and self.mode != "replay":      # a whole configuration, not its defaults alone
            for split in ("test", "train"):
                self.prompts.sets(split)
            if self.reward.model is None and not self.rewards:
                raise UserError("reward.model must be given where rewards is empty, got nothing; name a judge")

    def _check_mode(self) -> None:
        one_of(self, "mode", MODES)
        if (self.mode == "replay") != (self.stored.read is not None):
            raise UserError(f"stored.read must be given with mode replay and with no other, got {self.stored.read!r} "
                            f"with mode {self.mode}; name output_dir/rollouts of a run, or leave it out")
        if self.mode == "replay" and self.stored.write:
            raise UserError("stored.write must be false with mode replay, got True: what it trains on is stored")
        if self.mode == "train":
            return
        for option, figure in self.evaluation.figures_asked_for().items():
            raise UserError(f"evaluation.{option} must be left out with mode {self.mode}, got {figure!r}: without "
                            f"{'engines' if self.mode == 'replay' else 'learners'} nothing is evaluated")


@dataclass
class SupervisedDataConfig:
    """Rows for supervised training: "scenes:<table>" or a .parquet, .jsonl or .csv file."""

    train: str = MISSING
    dev: str = MISSING
    num_train: int | None = None        # rows to read, > 0; null reads all
    num_dev: int | None = 512           # rows to read, > 0; null reads all
    seed: int = 0                       # of the built-in world

    def __post_init__(self) -> None:
        rows_or_null(self, "num_train", "num_dev")


def fits_scratch(model: ModelConfig, where: str, max_tokens: int, name: str) -> None:
    room = model.scratch.max_positions
    require(model.model is not None or max_tokens <= room, name, f"at most {where}.scratch.max_positions {room}",
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
    messages_column: str | None = None  # of lists of {role, content}, in place of input_template; null: plain text
    chat: ChatConfig = field(default_factory=ChatConfig)
    target_column: str = "completion"
    max_tokens: int = 256               # longest row, input and target, in tokens, > 0
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    checkpoint_every: int = 200         # optimizer steps between checkpoints to resume from, >= 0; 0: when it is to end
    placement: RoleConfig = field(default_factory=RoleConfig)
    ready_timeout_s: float = 300.0      # seconds until every actor must answer, > 0
    log_every: int = 50                 # optimizer steps between progress lines, >= 1

    def __post_init__(self) -> None:
        not_negative(self, "seed", "checkpoint_every")
        positive(self, "steps", "batch_size", "log_every", "max_tokens", "ready_timeout_s")
        fits_scratch(self.policy, "policy", self.max_tokens, "max_tokens")
        require(self.messages_column is None or self.input_template == "{prompt}", "input_template",
                "left at {prompt} with messages_column", self.input_template)
        require(self.checkpoint_every % self.log_every == 0, "checkpoint_every",
                f"a multiple of log_every {self.log_every}", self.checkpoint_every)
