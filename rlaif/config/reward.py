"""Configuration of the reward model: its template, its data, its training, its evaluation. As rlaif.config.train."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from rlaif.config.learner import LearnerConfig
from rlaif.config.train import (
    ExplainerConfig,
    ModelConfig,
    RewardConfig,
    RoleConfig,
    fits_scratch,
    not_negative,
    one_of,
    positive,
    require,
    rows_or_null,
)

SLOT_KINDS = ("verdict", "ordinal", "rubric", "pairwise")


@dataclass
class SlotConfig:
    """One slot of the template and its verbalizer; a rubric is one slot a criterion. See rlaif.esfp.templates."""

    name: str = MISSING
    kind: str = "verdict"               # verdict | ordinal | rubric | pairwise
    classes: list[list[str]] = field(default_factory=list)      # label words of each class, in order
    values: list[float] = field(default_factory=list)           # worth of each class; empty takes the kind's own
    weight: float = 1.0                 # of the slot in the reward; a rubric shares it among its criteria
    score: str = "expected"             # expected (value) | margin (log odds of best against worst)
    criteria: dict[str, str] = field(default_factory=dict)      # rubric: text of each criterion by its name

    def __post_init__(self) -> None:
        one_of(self, "kind", SLOT_KINDS)


@dataclass
class TemplateConfig:
    """Stage 2's text: fields {prompt}, {completion}, {explanation}, {other}, {other_explanation}; slots as [name]."""

    text: str = "{prompt} {completion} {explanation} The answer is [verdict]."
    without_explanation: str | None = None      # the text for a row without one; null leaves the explanation empty
    head: str = "slot"                  # slot | classes | scalar: see rlaif.esfp.slots
    slots: list[SlotConfig] = field(default_factory=list)
    max_tokens: int = 256               # tokens of the filled template, > 0


DATA_KINDS = ("labels", "nli", "pairs", "verdicts", "ratings")


@dataclass
class JudgedDataConfig:
    """Judged rows: "scenes:<table>" or a .parquet, .jsonl or .csv file. See rlaif.data.judged_rows for the kinds."""

    path: str = MISSING
    kind: str = "labels"                # labels | nli | pairs | verdicts | ratings
    columns: dict[str, str] = field(default_factory=dict)       # our name of a column: its name in the file
    labels: dict[str, str] = field(default_factory=dict)        # a label in the file: label word of the slot
    slot: str | None = None             # the slot that the labels are of; null: the first
    where: dict[str, str] = field(default_factory=dict)         # column of the file: value; other rows are left out
    num_rows: int | None = None         # rows to keep, > 0; null keeps all
    skip_rows: int = 0                  # rows to leave out first, >= 0
    weight: float = 1.0                 # times a row is drawn in an epoch, > 0
    seed: int = 0                       # of the built-in world

    def __post_init__(self) -> None:
        one_of(self, "kind", DATA_KINDS)
        rows_or_null(self, "num_rows")
        not_negative(self, "skip_rows")
        positive(self, "weight")


@dataclass
class RewardDataConfig:
    """A mixture of judged rows to train on, and the rows that choose checkpoint and temperature."""

    train: list[JudgedDataConfig] = field(default_factory=list)
    dev: list[JudgedDataConfig] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("train", "dev"):
            require(len(getattr(self, name)) > 0, name, "a list of data sets, one at least", getattr(self, name))


@dataclass
class RewardLossConfig:
    """What reward training minimises: cross-entropy on labels, Bradley-Terry on pairs, and what is switched on here."""

    pairs: str = "bradley_terry"        # bradley_terry | ordinal (OPRM: ordinal slots only)
    flood_radius: int = 0               # ordinal labels: ratings beside the label that count as right, >= 0
    masked_lm_weight: float = 0.0       # of the masked-LM term on the row's own texts, >= 0; 0 leaves it out
    masked_share: float = 0.15          # tokens hidden for that term, 0..1
    consistency_weight: float = 0.0     # of the divergence between two passes with dropout (R-Drop), >= 0; 0: one pass
    explanation_dropout: float = 0.0    # share of a batch's rows shown without explanation, 0..1

    def __post_init__(self) -> None:
        one_of(self, "pairs", ("bradley_terry", "ordinal"))
        not_negative(self, "flood_radius", "masked_lm_weight", "consistency_weight")
        for name in ("masked_share", "explanation_dropout"):
            require(0 <= getattr(self, name) <= 1, name, "in 0..1", getattr(self, name))


@dataclass
class RewardPlacementConfig:
    """What the roles of reward training take of the cluster; they run one after the other."""

    explainer: RoleConfig = field(default_factory=RoleConfig)
    learner: RoleConfig = field(default_factory=RoleConfig)


PRIORS = ("none", "content_free", "dev")
SELECTIONS = ("loss", "slot_accuracy", "pair_accuracy")


@dataclass
class RewardTrainConfig:
    """launch/train_reward.py: the judging model, trained on explanations that the explainer wrote."""

    output_dir: str = MISSING
    seed: int = 0                       # >= 0
    steps: int = 1000                   # optimizer steps, >= 1
    batch_size: int = 64                # rows an optimizer step, >= 1
    slot_model: ModelConfig = field(default_factory=ModelConfig)
    template: TemplateConfig = field(default_factory=TemplateConfig)
    explainer: ExplainerConfig = field(default_factory=ExplainerConfig)
    data: RewardDataConfig = MISSING
    loss: RewardLossConfig = field(default_factory=RewardLossConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    prior: str = "none"                 # taken off class logits: none | content_free (empty input) | dev (fitted)
    fit_temperature: bool = True        # on dev
    dev_every: int = 0                  # optimizer steps between measurements on dev, >= 0; 0 measures at the end only
    select_by: str = "loss"             # loss | slot_accuracy | pair_accuracy: whose best checkpoint on dev is kept
    checkpoint_every: int = 200         # optimizer steps between checkpoints to resume from, >= 0; 0: when it is to end
    placement: RewardPlacementConfig = field(default_factory=RewardPlacementConfig)
    ready_timeout_s: float = 300.0      # seconds until every actor must answer, > 0
    log_every: int = 50                 # optimizer steps between progress lines, >= 1

    def __post_init__(self) -> None:
        not_negative(self, "seed", "dev_every", "checkpoint_every")
        positive(self, "steps", "batch_size", "log_every", "ready_timeout_s")
        one_of(self, "prior", PRIORS)
        one_of(self, "select_by", SELECTIONS)
        fits_scratch(self.slot_model, "slot_model", self.template.max_tokens, "template.max_tokens")
        require(self.learner.lora.rank is None, "learner.lora.rank", "null for a reward model", self.learner.lora.rank)
        require(self.checkpoint_every % self.log_every == 0, "checkpoint_every",
                f"a multiple of log_every {self.log_every}", self.checkpoint_every)


@dataclass
class GenerativeConfig:
    """What a causal LM is asked as a judge, and the words it may answer. See rlaif.esfp.generative_spec."""

    text: str | None = None             # the question, with {prompt}, {completion} and others; null: no such judge
    closing: str = ""                   # stands before the label word, after the reasoning where there is one
    without_explanation: str | None = None      # the question of a row without explanation; null leaves it empty
    principles: str = ""                # text that the question may use: how to judge, in words
    is_chat: bool = False               # the question is the user's turn in the tokenizer's chat template
    slot: SlotConfig = field(default_factory=lambda: SlotConfig(name="verdict", classes=[["yes"], ["no"]]))
    max_tokens: int = 1024              # tokens of question and closing, > 0
    max_reasoning_tokens: int = 0       # tokens the judge may write before its verdict, >= 0; 0: none
    temperature: float = 1.0            # divides the class logits, > 0

    def __post_init__(self) -> None:
        positive(self, "max_tokens", "temperature")
        not_negative(self, "max_reasoning_tokens")


def _public_template() -> TemplateConfig:
    """What most public scalar reward models read: the tokenizer's own form of two texts."""
    return TemplateConfig(text="{prompt}{sep}{completion}", head="scalar", max_tokens=512)


@dataclass
class JudgeConfig:
    """A judge: what `reward.model` names, see rlaif.esfp.judges, and who explains to it."""

    reward: RewardConfig = field(default_factory=RewardConfig)
    template: TemplateConfig = field(default_factory=_public_template)      # of a model without reward.yaml
    generative: GenerativeConfig = field(default_factory=GenerativeConfig)
    explainer: ExplainerConfig = field(default_factory=ExplainerConfig)


@dataclass
class EvaluatePlacementConfig:
    """What the roles of an evaluation take of the cluster; they run one after the other."""

    explainer: RoleConfig = field(default_factory=RoleConfig)
    judge: RoleConfig = field(default_factory=RoleConfig)


@dataclass
class EvaluateConfig:
    """launch/evaluate.py: what a judge says of judged rows, and how far that is right."""

    output_dir: str = MISSING
    seed: int = 0                       # of the bootstrap, of edited rows and of sampled explanations, >= 0
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    data: list[JudgedDataConfig] = field(default_factory=list)
    batch_size: int = 1024              # rows an actor is given at a time, and kept in a file of their own, > 0
    pair_temperature: float = 1.0       # of pairs: P(first is better) = sigmoid(difference in reward / this), > 0
    num_bootstraps: int = 1000          # resamples of an interval, > 0
    with_edits: bool = False            # also score shifts under harmless edits, see rlaif.reward_evaluation.edits
    num_edited_rows: int = 100          # rows drawn for that, each edited in every way, > 0
    placement: EvaluatePlacementConfig = field(default_factory=EvaluatePlacementConfig)
    ready_timeout_s: float = 300.0      # seconds until every actor must answer, > 0

    def __post_init__(self) -> None:
        not_negative(self, "seed")
        positive(self, "num_bootstraps", "num_edited_rows", "batch_size", "pair_temperature", "ready_timeout_s")
        require(len(self.data) > 0, "data", "a list of data sets, one at least", self.data)
