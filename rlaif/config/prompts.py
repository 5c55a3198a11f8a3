"""Configuration of the prompts: where they are read, how chat messages become text, which are preferred."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from rlaif.config.checks import UserError, not_negative, one_of, positive, require, rows_or_null

COLUMNS = ("prompt", "messages", "reference", "source", "id", "sample_weight")
JUDGE_READS = ("conversation", "last_user")
PREFERENCES = ("none", "bounds", "middle")
TOO_LONG = ("refuse", "drop")
RESERVED = ("conversation", "chat_template", "tokenize", "add_generation_prompt", "continue_final_message")


@dataclass
class PromptSourceConfig:
    """One set of prompts.

    columns: our name of a column (prompt or messages; reference, source, id, sample_weight): its name in the file. What
    is not named is as in PromptsConfig; without a column for `source` that is the path, without one for `sample_weight`
    the rows of every prompt count alike in the loss.
    """

    path: str = MISSING                 # as PromptsConfig.train
    columns: dict[str, str] = field(default_factory=dict)
    weight: float = 1.0                 # times a row is drawn in an epoch, > 0; a fraction takes turns over the epochs
    num_rows: int | None = None         # rows to read, > 0; null reads all
    split: str | None = None            # of a folder or hub data set; null: the only one, or the one named as ours
    subset: str | None = None           # of a hub data set: its configuration
    revision: str | None = None         # of a hub data set: branch, tag or commit

    def __post_init__(self) -> None:
        for name in self.columns:
            require(name in COLUMNS, "columns", f"a mapping of {', '.join(COLUMNS)} only", name)
        require(not {"prompt", "messages"} <= self.columns.keys(), "columns", "of prompt or messages, not both",
                self.columns)
        for name in ("subset", "revision"):
            require(getattr(self, name) is None or self.path.startswith("hub:"), name,
                    "null unless path is hub:<owner>/<name>", getattr(self, name))
        positive(self, "weight")
        rows_or_null(self, "num_rows")


@dataclass
class ChatConfig:
    """How messages become the tokens that the policy reads and the text that a judge reads."""

    wrap_prompts: bool = False          # a plain prompt becomes one user message; false: the text as it is
    system: str | None = None           # goes before messages that do not begin with a system message of their own
    judge_reads: str = "conversation"   # conversation (a line a message; one user message alone as it is) | last_user
    template_options: dict[Any, Any] = field(default_factory=dict)  # further variables, such as enable_thinking

    def __post_init__(self) -> None:
        one_of(self, "judge_reads", JUDGE_READS)
        require(self.system is None or bool(self.system.strip()), "system", "text or null", self.system)
        for name in self.template_options:
            require(isinstance(name, str) and name not in RESERVED, "template_options",
                    f"a mapping of names other than {', '.join(RESERVED)}", name)


@dataclass
class CurriculumConfig:
    """Prompts by their difficulty: the running mean of the rewards of a prompt's groups.

    A prompt that has no mean yet is always taken. One that has is taken when its turn comes with the probability
        bounds    1 where low < mean < high, else `outside`
        middle    4 t (1 - t), `outside` at least, with t = (mean - low) / (high - low) cut to 0..1
    Else it is skipped until the next epoch, and counted.
    """

    prefer: str = "none"                # none | bounds | middle
    low: float = 0.0                    # mean reward of a prompt that is too hard
    high: float = 1.0                   # mean reward of a prompt that is too easy, > low
    outside: float = 0.1                # probability, 0..1, of a prompt that is either
    decay: float = 0.5                  # share of the old mean in the new, in [0, 1)

    def __post_init__(self) -> None:
        one_of(self, "prefer", PREFERENCES)
        require(self.low < self.high, "high", f"above low {self.low}", self.high)
        require(0 <= self.outside <= 1, "outside", "in 0..1", self.outside)
        require(0 <= self.decay < 1, "decay", "in [0, 1)", self.decay)


@dataclass
class PromptsConfig:
    """Where prompts come from.

    train and test are each "scenes:<table>" (the built-in world), a .parquet, .jsonl or .csv file, a folder of such
    files or one of datasets' save_to_disk, or "hub:<owner>/<name>" (a Hugging Face data set). Several sets, or one with
    more to say, stand under sources and test_sources in their place.
    """

    train: str | None = None
    test: str | None = None
    num_train: int | None = None        # rows to read, > 0; null reads all
    num_test: int | None = None         # rows to read, > 0; null reads all
    seed: int = 0                       # of the built-in world
    prompt_column: str = "prompt"
    reference_column: str | None = None     # null: no reference answers
    messages_column: str | None = None  # of lists of {role, content}, in place of prompt_column; null: plain text
    sources: list[PromptSourceConfig] = field(default_factory=list)         # in place of train
    test_sources: list[PromptSourceConfig] = field(default_factory=list)    # in place of test
    chat: ChatConfig = field(default_factory=ChatConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    too_long: str = "refuse"            # prompts without room for a completion: refuse | drop (and count)
    max_bad_rows: int = 0               # rows without text or with bad messages that are dropped and counted, >= 0

    def __post_init__(self) -> None:
        rows_or_null(self, "num_train", "num_test")
        not_negative(self, "max_bad_rows")
        one_of(self, "too_long", TOO_LONG)
        for split, sources in (("train", self.sources), ("test", self.test_sources)):
            name = "sources" if split == "train" else "test_sources"
            require(not sources or getattr(self, split) is None, split, f"null beside {name}", getattr(self, split))
            require(not sources or getattr(self, f"num_{split}") is None, f"num_{split}",
                    f"null beside {name}, which have num_rows", getattr(self, f"num_{split}"))
        has_messages = self.messages_column or any("messages" in source.columns
                                                   for source in (*self.sources, *self.test_sources))
        require(has_messages or self.chat.wrap_prompts or self.chat.system is None, "chat.system",
                "null without a column of messages and without chat.wrap_prompts", self.chat.system)
        for number, source in enumerate(self.test_sources):
            require(source.weight == 1, f"test_sources[{number}].weight", "1, every test prompt is asked once",
                    source.weight)

    def sets(self, split: str) -> dict[str, PromptSourceConfig]:
        """The sets of `split` ("train" or "test") by the config key they come from, with all their columns named.

        Raises UserError where there is none.
        """
        name = "sources" if split == "train" else "test_sources"
        given = getattr(self, name)
        path = getattr(self, split)
        if not given and path is None:
            raise UserError(f"prompts.{split} must be given, got nothing; name a file, or sets under prompts.{name}")
        sets = {f"prompts.{name}[{number}]": source for number, source in enumerate(given)} or {
            f"prompts.{split}": PromptSourceConfig(path, num_rows=getattr(self, f"num_{split}"))}
        return {key: dataclasses.replace(source, columns=self._columns(source)) for key, source in sets.items()}

    def _columns(self, source: PromptSourceConfig) -> dict[str, str]:
        ours = {"reference": self.reference_column}
        if not {"prompt", "messages"} & source.columns.keys():
            ours |= {"messages": self.messages_column} if self.messages_column else {"prompt": self.prompt_column}
        return {name: column for name, column in ours.items() if column} | source.columns

    @property
    def has_references(self) -> bool:
        """Whether every set to train on has a column of reference answers."""
        return all("reference" in source.columns for source in self.sets("train").values())
