"""Small model folders, built once: what a run needs beside its data."""

from dataclasses import dataclass
from pathlib import Path

import pytest

import actors  # noqa: F401  before any test imports ray, as in every launcher
from rlaif import scenes
from rlaif.config.train import ScratchConfig
from rlaif.esfp.reward_model import RewardModel
from rlaif.esfp.reward_spec import ExplainerReference, RewardSpec
from rlaif.esfp.slots import Slot, SlotTemplate
from rlaif.modeling.models import scratch_causal_lm, scratch_judge, word_tokenizer

SCRATCH = ScratchConfig(hidden_size=16, num_layers=1, num_heads=2, intermediate_size=16, max_positions=256)
REASON = "{prompt}\nAnswer: {completion}\nReason:"
TEMPLATE = SlotTemplate(
    "{prompt} {completion} {explanation} The answer is [verdict].",
    [Slot("verdict", [["yes"], ["no"], ["garbled"]], [1.0, 0.0, 0.0])], max_tokens=192)
WORDS = " ".join(scenes.vocabulary("Answer: Reason: The answer is"))


@dataclass(frozen=True)
class Folders:
    """Complete model folders of the scenes world; copy one before changing it."""

    causal: Path
    reward: Path


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    tokenizer = word_tokenizer([WORDS], masked=False)
    scratch_causal_lm(SCRATCH, tokenizer, seed=0).save_pretrained(root / "causal")
    tokenizer.save_pretrained(root / "causal")
    tokenizer = word_tokenizer([WORDS], masked=True)
    spec = RewardSpec(TEMPLATE, explainer=ExplainerReference("../causal", REASON))
    RewardModel(scratch_judge(SCRATCH, tokenizer, 0, "slot", 3), tokenizer, spec).save(root / "reward")
    return Folders(root / "causal", root / "reward")
