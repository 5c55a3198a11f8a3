"""What reward training refuses of its losses and its dev rows before anything starts."""

import pyarrow as pa
import pytest

from actors.fitting.reward_training import refuse_loss, refuse_selection
from rlaif.batch import JUDGED, from_rows
from rlaif.config.checks import UserError
from rlaif.config.reward import JudgedDataConfig, RewardDataConfig, RewardLossConfig, RewardTrainConfig
from rlaif.esfp.slots import Slot, SlotTemplate

STARS = Slot("stars", [["one"], ["two"], ["three"]], [1.0, 2.0, 3.0], kind="ordinal")
VERDICT = Slot("verdict", [["yes"], ["no"]], [1.0, 0.0])
RATED = SlotTemplate("{completion} [stars]", [STARS], 16)
JUDGED_BOTH = SlotTemplate("{completion} [stars] [verdict]", [STARS, VERDICT], 16)
SCALAR = SlotTemplate("{completion}", [], 16, head="scalar")


def config(**changes) -> RewardTrainConfig:
    rows = [JudgedDataConfig("rows.jsonl")]
    return RewardTrainConfig("out", data=RewardDataConfig(rows, rows), **changes)


def dev(labels: list[list[int]], preferences: list[float]) -> pa.Table:
    return from_rows([{"prompt": "p", "completion": "c", "explanations": [], "other": None if wins < 0 else "o",
                       "other_explanations": [], "labels": label, "preference": wins, "source": ""}
                      for label, wins in zip(labels, preferences, strict=True)], JUDGED)


@pytest.mark.parametrize(("changes", "template", "message"), [
    ({"loss": RewardLossConfig(pairs="ordinal")}, SCALAR, "template must have one ordinal slot"),
    ({"loss": RewardLossConfig(flood_radius=1)}, SCALAR, "template must have an ordinal slot"),
    ({"loss": RewardLossConfig(masked_lm_weight=0.1)}, SCALAR, "loss.masked_lm_weight must be 0 with template.head"),
    ({"loss": RewardLossConfig(consistency_weight=1.0)}, SCALAR, "loss.consistency_weight must be 0 with "),
    ({"prior": "dev"}, SCALAR, "prior must be none with template.head = scalar"),
])
def test_a_loss_that_the_template_cannot_have_is_refused(changes, template, message):
    with pytest.raises(UserError, match=f"^{message}"):
        refuse_loss(config(**changes), template)
    refuse_loss(config(), template)


@pytest.mark.parametrize(("changes", "rows", "template", "message"), [
    ({"prior": "dev"}, dev([[-1]], [1.0]), RATED, "data.dev must hold labels of slots with prior = dev, got none in 1"),
    ({}, dev([[-1], [-1]], [0.5, 0.5]), RATED, "data.dev must hold labels or decided pairs, got 2 ties"),
    ({"select_by": "slot_accuracy", "loss": RewardLossConfig(flood_radius=1)}, dev([[2]], [-1.0]), RATED,
     "data.dev must hold labels of slots with select_by = slot_accuracy"),
    ({"select_by": "slot_accuracy", "loss": RewardLossConfig(flood_radius=1)}, dev([[2, -1]], [-1.0]), JUDGED_BOTH,
     "data.dev must hold labels of slots with select_by = slot_accuracy"),
    ({"select_by": "pair_accuracy"}, dev([[2]], [-1.0]), RATED, "data.dev must hold pairs, judged one side at a time"),
])
def test_dev_rows_that_cannot_say_what_is_asked_are_refused(changes, rows, template, message):
    with pytest.raises(UserError, match=f"^{message}"):
        refuse_selection(config(**changes), template, rows)


def test_dev_rows_that_can_say_it_pass():
    refuse_selection(config(select_by="slot_accuracy", prior="dev"), RATED, dev([[2]], [-1.0]))
    flooded = RewardLossConfig(flood_radius=1)
    refuse_selection(config(select_by="slot_accuracy", loss=flooded), JUDGED_BOTH, dev([[2, 0]], [-1.0]))
    refuse_selection(config(select_by="pair_accuracy"), SCALAR, dev([[-1]], [1.0]))
