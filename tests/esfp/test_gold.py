import pytest

from rlaif import scenes
from rlaif.esfp.gold import GOLD, judge_scenes

ROWS = scenes.rows("judged-dev", seed=0, num_rows=60)
PROMPT = "Say something that must be true: A man in a pale shirt eats a fruit."


def test_gold_and_fluent_by_hand():
    answers = ["A man eats a fruit.", "A woman eats a fruit.", "man a eats fruit"]
    assert judge_scenes([PROMPT] * 3, answers) == {"gold": [1.0, 0.0, 0.0], "fluent": [1.0, 1.0, 0.0]}


def test_gold_is_the_label_of_the_world_row_by_row():
    found = GOLD["scenes"]([row["prompt"] for row in ROWS], [row["completion"] for row in ROWS])
    assert found["gold"] == [float(row["label"] == "yes") for row in ROWS]
    assert found["fluent"] == [float(row["label"] != "garbled") for row in ROWS]
    assert 0 < sum(found["gold"]) < sum(found["fluent"]) < len(ROWS)


def test_the_reference_of_every_prompt_is_gold():
    rows = scenes.rows("prompts-test", seed=0, num_rows=30)
    assert judge_scenes([row["prompt"] for row in rows], [row["reference"] for row in rows])["gold"] == [1.0] * 30


def test_a_prompt_of_another_world_is_refused_not_scored():
    with pytest.raises(ValueError, match=r"prompt must be an instruction and a sentence of the scenes, got 'Hello'"):
        judge_scenes(["Hello"], ["A man eats a fruit."])
    with pytest.raises(ValueError):
        judge_scenes([PROMPT], [])
