"""Configuration of launch/dpo.py: a policy learns from pairs of completions. As rlaif.config.train."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from rlaif.config.checks import not_negative, one_of, positive, require
from rlaif.config.learner import LearnerConfig
from rlaif.config.prompts import ChatConfig
from rlaif.config.train import ModelConfig, RoleConfig, SupervisedDataConfig

SELECT_BY = ("loss", "preference_accuracy")


@dataclass
class DpoConfig:
    """launch/dpo.py: direct preference optimisation on rows of a prompt, a better and a worse completion."""

    output_dir: str = MISSING
    seed: int = 0                       # >= 0
    steps: int = 500                    # optimizer steps, >= 1
    batch_size: int = 32                # pairs an optimizer step, >= 1
    policy: ModelConfig = field(default_factory=ModelConfig)    # to start from; as it was at the start, the reference
    data: SupervisedDataConfig = field(default_factory=SupervisedDataConfig)
    input_template: str = "{prompt}"    # any column of the data as a {field}
    messages_column: str | None = None  # of lists of {role, content}, in place of input_template; null: plain text
    chat: ChatConfig = field(default_factory=ChatConfig)
    chosen_column: str = "chosen"       # text, or messages of which the last is the assistant's
    rejected_column: str = "rejected"   # likewise
    max_tokens: int = 512               # input and the longer completion, in tokens, > 0
    beta: float = 0.1                   # pull to the reference, reward per nat, > 0
    label_smoothing: float = 0.0        # share of pairs whose label is taken to be wrong, [0, 0.5)
    learner: LearnerConfig = field(default_factory=lambda: LearnerConfig(learning_rate=1e-6))
    dev_every: int = 0                  # optimizer steps between looks at dev, >= 0; the best weights are kept
    select_by: str = "loss"             # figure on dev that is best: loss | preference_accuracy
    checkpoint_every: int = 200         # optimizer steps between checkpoints to resume from, >= 0; 0: when it is to end
    placement: RoleConfig = field(default_factory=RoleConfig)
    ready_timeout_s: float = 300.0      # seconds until every actor must answer, > 0
    log_every: int = 10                 # optimizer steps between progress lines, >= 1

    def __post_init__(self) -> None:
        not_negative(self, "seed", "dev_every", "checkpoint_every")
        positive(self, "steps", "batch_size", "log_every", "max_tokens", "beta", "ready_timeout_s")
        require(0 <= self.label_smoothing < 0.5, "label_smoothing", "in [0, 0.5)", self.label_smoothing)
        one_of(self, "select_by", SELECT_BY)
        require(self.chosen_column != self.rejected_column, "rejected_column", "another one than chosen_column",
                self.rejected_column)
        require(self.messages_column is None or self.input_template == "{prompt}", "input_template",
                "left at {prompt} with messages_column", self.input_template)
        require(self.checkpoint_every % self.log_every == 0, "checkpoint_every",
                f"a multiple of log_every {self.log_every}", self.checkpoint_every)
