import pytest
import torch

from rlaif.batch import JUDGED, from_rows
from rlaif.esfp.reward_model import Scored, Texts
from rlaif.esfp.slots import Slot, SlotTemplate
from rlaif.reward_evaluation.scored_rows import SCORED_ROWS, of_both_orders, one_side_at_a_time, scored_rows, texts_of

VERDICTS = SlotTemplate("{prompt} {completion} [good] [short]", [
    Slot("good", [["yes"], ["maybe"], ["no"]], [1.0, 0.5, 0.0]), Slot("short", [["yes"], ["no"]], [1.0, 0.0])], 32)
PAIRWISE = SlotTemplate("{prompt} {completion} {other} [better] [safer]", [
    Slot("better", [["first"], ["same"], ["second"]], [1.0, 0.5, 0.0], kind="pairwise"),
    Slot("safer", [["first"], ["second"]], [1.0, 0.0], weight=2.0, kind="pairwise", score="margin")], 32)


def judged(*rows):
    return from_rows([{"prompt": "p", "completion": "c", "explanations": [], "other": None, "other_explanations": [],
                       "labels": [0, -1], "preference": -1.0, "source": "s"} | row for row in rows], JUDGED)


def said(probabilities, scores):
    probabilities, scores = torch.tensor(probabilities), torch.tensor(scores)
    return Scored(probabilities, scores, torch.zeros_like(scores), scores.sum(-1), 1, 2)


def test_other_sides_stand_behind_all_completions_and_come_back_to_their_rows():
    rows = judged({"completion": "a"}, {"completion": "b", "explanations": ["why b"], "other": "x",
                                        "other_explanations": ["why x", "why else"], "preference": 1.0},
                  {"prompt": "q", "completion": "c"}, {"prompt": "q", "completion": "d", "other": "y"})
    assert one_side_at_a_time(rows) == Texts(
        ["p", "p", "q", "q", "p", "q"], ["a", "b", "c", "d", "x", "y"],
        [[], ["why b"], [], [], ["why x", "why else"], []])
    probabilities = [[[n / 8, 1 - n / 8, 0.0], [0.25, 0.75, 0.0]] for n in range(6)]
    scored = said(probabilities, [[float(n), 0.5] for n in range(6)])
    table = scored_rows(rows, scored, VERDICTS, start=100)
    assert table["row"].to_pylist() == [100, 101, 102, 103]
    assert table["reward"].to_pylist() == [0.5, 1.5, 2.5, 3.5]
    assert table["other_reward"].to_pylist() == [None, 4.5, None, 5.5]
    assert table["probabilities"][3].as_py() == [0.375, 0.625, 0.0, 0.25, 0.75], "the second slot has two classes"
    assert table["other_probabilities"].to_pylist()[:2] == [None, [0.5, 0.5, 0.0, 0.25, 0.75]]
    assert table["probabilities_first"].null_count == 4


def test_an_id_follows_the_texts_and_nothing_else():
    rows = judged({}, {"source": "t", "preference": 1.0}, {"completion": "other"}, {"other": "c"}, {"prompt": ""})
    scored = said([[[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]] * 6, [[0.0, 0.0]] * 6)
    ids = scored_rows(rows, scored, VERDICTS, start=0)["id"].to_pylist()
    assert ids[0] == ids[1] and len(set(ids)) == 4


def test_rows_of_a_scalar_head_have_no_probabilities():
    template = SlotTemplate("{prompt} {completion}", [], 32, head="scalar")
    scored = said(torch.zeros(2, 1, 0).tolist(), [[0.5], [-1.0]])
    table = scored_rows(judged({"other": "x", "preference": 0.0}), scored, template, start=0)
    assert table["probabilities"].to_pylist() == table["other_probabilities"].to_pylist() == [[]]
    assert (table["reward"][0].as_py(), table["other_reward"][0].as_py()) == (0.5, -1.0)


def test_both_orders_are_seen_from_the_completion_and_averaged():
    first = said([[[0.75, 0.125, 0.125], [0.5, 0.5, 0.0]]], [[0.8125, 1.0]])
    second = said([[[0.25, 0.5, 0.25], [0.25, 0.75, 0.0]]], [[0.5, -2.0]])
    mean, there, back = of_both_orders(first, second, PAIRWISE)
    assert there.tolist() == first.probabilities.tolist()
    assert back.tolist() == [[[0.25, 0.5, 0.25], [0.75, 0.25, 0.0]]]
    assert mean.probabilities.tolist() == [[[0.5, 0.3125, 0.1875], [0.625, 0.375, 0.0]]]
    # better: (0.8125 + 1 - 0.5) / 2; safer, in nats: (1 - -2) / 2; reward: 0.65625 + 2 * 1.5
    assert mean.slot_scores.tolist() == [[0.65625, 1.5]] and mean.reward.tolist() == [3.65625]
    entropy = -sum(p * torch.log(torch.tensor(p)) for p in (0.5, 0.3125, 0.1875))
    assert mean.entropy[0, 0].item() == pytest.approx(entropy.item())
    assert (mean.num_truncated, mean.num_without_explanation) == (1, 2)


def test_swapping_the_sides_turns_the_averaged_pair_round():
    torch.manual_seed(0)
    draws = [torch.rand(5, 2, 3) for _ in range(2)]
    for draw in draws:
        draw[:, 1, 2] = 0
    first, second = (said((draw / draw.sum(-1, keepdim=True)).tolist(), draw[..., 0].tolist()) for draw in draws)
    there, one, two = of_both_orders(first, second, PAIRWISE)
    back, two_back, one_back = of_both_orders(second, first, PAIRWISE)
    turned = there.probabilities.clone()
    turned[:, 0], turned[:, 1, :2] = there.probabilities[:, 0].flip(-1), there.probabilities[:, 1, :2].flip(-1)
    torch.testing.assert_close(back.probabilities, turned)
    torch.testing.assert_close(there.slot_scores + back.slot_scores, torch.tensor([[1.0, 0.0]] * 5))
    torch.testing.assert_close(one_back[:, 0], one[:, 0].flip(-1))
    torch.testing.assert_close(two_back[:, 0], two[:, 0].flip(-1))


def test_a_pairwise_judge_has_one_reward_a_pair_and_both_orders_beside():
    rows = judged({"other": "x", "other_explanations": ["why x"], "labels": [0, 0], "preference": 1.0})
    assert texts_of(rows) == Texts(["p"], ["c"], [[]], ["x"], [["why x"]])
    first = said([[[0.75, 0.125, 0.125], [0.5, 0.5, 0.0]]], [[0.8125, 1.0]])
    mean, there, back = of_both_orders(first, first, PAIRWISE)
    table = scored_rows(rows, mean, PAIRWISE, 0, first=there, second=back)
    assert table["probabilities_first"].to_pylist() == [[0.75, 0.125, 0.125, 0.5, 0.5]]
    assert table["probabilities_second"].to_pylist() == [[0.125, 0.125, 0.75, 0.5, 0.5]]
    assert table["other_reward"].to_pylist() == [None] and table.schema.equals(SCORED_ROWS)
