"""Configuration of the learners. As rlaif.config.train."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from rlaif.config.checks import not_negative, one_of, positive, require

DTYPES = ("float32", "bfloat16")
OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("constant", "linear", "cosine")


@dataclass
class LoraConfig:
    """Low-rank adapters through peft, in place of training the weights themselves. What is published and saved is
    merged; without the adapters the model is the reference policy."""

    rank: int | None = None             # > 0; null trains the weights themselves
    alpha: float | None = None          # > 0, scales the adapters by alpha / rank; null takes 2 rank
    dropout: float = 0.0                # share of the adapters' inputs, [0, 1); in supervised training only
    target_modules: list[str] = field(default_factory=list)     # ends of layer names; none: every linear layer but the
                                                                # output matrix

    def __post_init__(self) -> None:
        require(self.rank is None or self.rank > 0, "rank", "> 0 or null", self.rank)
        require(self.alpha is None or 0 < self.alpha < math.inf, "alpha", "> 0 or null", self.alpha)
        require(0 <= self.dropout < 1, "dropout", "in [0, 1)", self.dropout)
        for name in ("alpha", "dropout", "target_modules"):
            value = getattr(self, name)
            require(self.rank is not None or not value, name, "left out without lora.rank", value)


@dataclass
class CriticConfig:
    """The values of algorithm.advantage: gae."""

    model: str | None = None            # null: a head on the policy's states | policy: its start, with weights of its
                                        # own | a Hugging Face name or folder with the policy's tokenizer
    learning_rate: float | None = None  # of the critic's weights, > 0; null takes learner.learning_rate

    def __post_init__(self) -> None:
        require(self.learning_rate is None or 0 < self.learning_rate < math.inf, "learning_rate", "> 0 or null",
                self.learning_rate)


@dataclass
class LearnerConfig:
    """DeepSpeed: how weights are updated. The number of ranks is placement.learner.num_actors."""

    optimizer: str = "adamw"            # adamw | muon (Muon for hidden matrices, AdamW for the rest)
    learning_rate: float = 1e-4         # > 0
    adam_learning_rate: float | None = None     # of muon's AdamW part, > 0; null takes learning_rate
    schedule: str = "constant"          # constant | linear | cosine: after warm-up, to be 0 behind the last step
    warmup_steps: int = 0               # optimizer steps, >= 0, fewer than there are
    weight_decay: float = 0.0           # >= 0
    beta2: float = 0.95                 # AdamW's second moment, 0..1
    max_grad_norm: float = 1.0          # > 0
    zero_stage: int = 0                 # 0 | 1 | 2 | 3
    offload: bool = False               # optimizer states on the CPU (ZeRO 1-3)
    micro_batch_tokens: int = 8192      # tokens a forward pass, padding included where rows are padded, > 0
    dtype: str = "float32"              # float32 | bfloat16
    packing: bool = True                # rows end to end, a group's prompt read once, where the model can; else padded
    activation_checkpointing: bool = False      # layers are computed again in the backward pass: less memory, slower
    frozen: list[str] = field(default_factory=list)     # parts of names of weights that are not trained
    lora: LoraConfig = field(default_factory=LoraConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)

    def __post_init__(self) -> None:
        one_of(self, "optimizer", OPTIMIZERS)
        one_of(self, "schedule", SCHEDULES)
        positive(self, "learning_rate", "max_grad_norm", "micro_batch_tokens")
        require(self.adam_learning_rate is None or 0 < self.adam_learning_rate < math.inf, "adam_learning_rate",
                "> 0 or null", self.adam_learning_rate)
        require(self.adam_learning_rate is None or self.optimizer == "muon", "adam_learning_rate",
                "null unless optimizer is muon", self.adam_learning_rate)
        not_negative(self, "warmup_steps", "weight_decay")
        require(0 <= self.beta2 < 1, "beta2", "in [0, 1)", self.beta2)
        one_of(self, "zero_stage", (0, 1, 2, 3))
        require(not self.offload or self.zero_stage > 0, "offload", "false with zero_stage 0", self.offload)
        one_of(self, "dtype", DTYPES)
        require(self.lora.rank is None or not self.frozen, "frozen",
                "empty with lora.rank, which trains the adapters alone", self.frozen)
        require(self.critic.learning_rate is None or self.optimizer == "adamw", "critic.learning_rate",
                "null with optimizer: muon", self.critic.learning_rate)
