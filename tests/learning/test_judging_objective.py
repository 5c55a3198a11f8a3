import dataclasses
import math

import pytest
import torch
from torch.nn import functional

from rlaif.batch import JUDGED
from rlaif.config.reward import RewardLossConfig
from rlaif.config.train import ScratchConfig
from rlaif.esfp.encoding import compile_template, encode
from rlaif.esfp.slots import Slot, SlotTemplate
from rlaif.learning.judging_objective import JudgingObjective, JudgingOptions
from rlaif.metrics import values
from rlaif.modeling.models import scratch_judge, word_tokenizer
from tests.helpers.batch_examples import table
from tests.helpers.objective_examples import SPLITS, assert_split_changes_nothing, loss_and_gradient

TOKENIZER = word_tokenizer(["red blue cat dog so it is the answer yes no low mid high . runs sits first second same"],
                           masked=True)
CONFIG = ScratchConfig(hidden_size=16, num_layers=2, num_heads=2, intermediate_size=24, max_positions=64,
                       initializer_range=0.3)
VERDICT = Slot("verdict", [["yes"], ["no"], ["so"]], [1.0, 0.0, 0.5])
LEVEL = Slot("level", [["low"], ["high"]], [0.0, 1.0], weight=2.0)
RATING = Slot("rating", [["low"], ["mid"], ["high"], ["yes"]], [1.0, 2.0, 3.0, 4.0], kind="ordinal")
BETTER = Slot("better", [["first"], ["same"], ["second"]], [1.0, 0.5, 0.0], kind="pairwise")
TEXT = "{prompt} {completion} {explanation} the answer is "

TEMPLATES = {
    "slots": SlotTemplate(TEXT + "[verdict] [level] .", [VERDICT, LEVEL], 40),
    "ordinal": SlotTemplate(TEXT + "[rating] [level] .", [RATING, LEVEL], 40),
    "without": SlotTemplate(TEXT + "[verdict] .", [VERDICT], 40, without_explanation="{prompt} so {completion} is "
                                                                                     "[verdict]"),
    "margin": SlotTemplate(TEXT + "[verdict] .", [dataclasses.replace(VERDICT, score="margin")], 40),
    "pairwise": SlotTemplate("{prompt} {completion} so {other} is [better] .", [BETTER], 40),
    "classes": SlotTemplate("{prompt} {sep} {completion} {explanation}", [VERDICT], 40, head="classes"),
    "scalar": SlotTemplate("{prompt} {sep} {completion} {explanation}", [], 40, head="scalar"),
}
TEXTS = ["red cat", "dog", "the blue dog sits", "so", "it is red .", "red red red"]
LABELS = {"slots": [[0, 1], [2, -1], [1, 0], [0, 0], [-1, 1], [2, 1]],
          "ordinal": [[3, 1], [0, -1], [2, 0], [1, 0], [-1, 1], [2, 1]],
          "pairwise": [[0], [2], [-1], [1], [0], [2]]}
LABELS |= {name: [[0], [2], [1], [-1], [0], [2]] for name in ("without", "margin", "classes")}
PREFERENCES = [1.0, 0.0, -1.0, 0.5, -1.0, 1.0]


def judge(name):
    """In float64, with dropout as in training, of which a model from nothing has none."""
    template = TEMPLATES[name]
    return scratch_judge(CONFIG, TOKENIZER, 0, template.head, template.num_classes).double()


def rows_of(name, pairs=False, labels=True):
    """Six rows; with pairs, four of them have another side, of which one is a tie and one has no preference."""
    changes = []
    for row, text in enumerate(TEXTS):
        none = [-1] * max(1, len(TEMPLATES[name].slots))
        change = {"prompt": text, "completion": TEXTS[-1 - row], "explanations": [" ".join(TEXTS[:row])][: row % 3],
                  "labels": LABELS[name][row] if labels else none}
        if pairs and row != 4:
            change |= {"other": TEXTS[(row + 2) % 6], "other_explanations": [TEXTS[row]][: row % 2],
                       "preference": PREFERENCES[row]}
        changes.append(change)
    return table(JUDGED, *changes)


def objective(name, **options):
    return JudgingObjective(TOKENIZER, JudgingOptions(TEMPLATES[name], RewardLossConfig(**options)))


CASES = {
    "labels": lambda: (objective("slots"), judge("slots"), rows_of("slots"), {}),
    "pairs": lambda: (objective("slots"), judge("slots"), rows_of("slots", pairs=True, labels=False), {}),
    "labels and pairs": lambda: (objective("slots"), judge("slots"), rows_of("slots", pairs=True), {}),
    "margin": lambda: (objective("margin"), judge("margin"), rows_of("margin", pairs=True), {}),
    "without": lambda: (objective("without"), judge("without"), rows_of("without", pairs=True), {}),
    "flooded": lambda: (objective("ordinal", flood_radius=1), judge("ordinal"), rows_of("ordinal"), {}),
    "ordinal pairs": lambda: (objective("ordinal", pairs="ordinal"), judge("ordinal"), rows_of("ordinal", pairs=True),
                              {}),
    "pairwise": lambda: (objective("pairwise"), judge("pairwise"), rows_of("pairwise", pairs=True), {}),
    "classes": lambda: (objective("classes"), judge("classes"), rows_of("classes", pairs=True), {}),
    "scalar": lambda: (objective("scalar"), judge("scalar"), rows_of("scalar", pairs=True, labels=False), {}),
    "masked lm": lambda: (objective("slots", masked_lm_weight=0.5, masked_share=0.4), judge("slots"),
                          rows_of("slots", pairs=True), {}),
}
LABELS["scalar"] = None


@pytest.mark.parametrize("split", SPLITS, ids=len)
@pytest.mark.parametrize("name", CASES)
def test_loss_gradient_and_metrics_do_not_depend_on_the_split_into_micro_batches(name, split):
    case = CASES[name]()
    torch.manual_seed(3)    # of the hidden tokens
    assert_split_changes_nothing(*case, split)


# --- references, each from the model's own logits row by row


def own_logits(model, name, prompt, completion, explanations, other=None):
    """Class logits of a row by the tokenizer's own encoding of the whole text and the model's own forward."""
    template = TEMPLATES[name]
    text = template.text
    if not explanations and template.without_explanation is not None:
        text = template.without_explanation
    text = text.replace("{prompt}", prompt).replace("{completion}", completion).replace("{sep}", "[SEP]")
    text = text.replace("{explanation}", explanations[0] if explanations else "").replace("{other}", other or "")
    for slot in template.slots:
        text = text.replace(f"[{slot.name}]", "[MASK]")
    ids = TOKENIZER(text, return_tensors="pt")["input_ids"]
    logits = model(input_ids=ids).logits[0]
    if template.head != "slot":
        return [logits]
    at_slots = logits[ids[0] == TOKENIZER.mask_token_id]
    return [at[TOKENIZER.convert_tokens_to_ids([words[0] for words in slot.classes])]
            for at, slot in zip(at_slots, template.slots, strict=True)]


def own_reward(model, name, *texts):
    template, logits = TEMPLATES[name], own_logits(model, name, *texts)
    if template.head == "scalar":
        return logits[0][0]
    total = 0.0
    for slot, z in zip(template.slots, logits, strict=True):
        score = z[0] - z[1] if slot.score == "margin" else z.softmax(-1) @ z.new_tensor(slot.values)
        total = total + slot.weight * score
    return total


def sides(row):
    return ((row["prompt"], row["completion"], row["explanations"]),
            (row["prompt"], row["other"], row["other_explanations"]))


def own_label_loss(model, name, rows):
    total = 0.0
    for row in rows.to_pylist():
        other = row["other"] if name == "pairwise" else None
        logits = own_logits(model, name, *sides(row)[0], other)
        for z, label in zip(logits, row["labels"], strict=True):
            total = total + (functional.cross_entropy(z, torch.tensor(label)) / 6 if label >= 0 else 0.0)
    return total


def own_pair_loss(model, name, rows):
    total = 0.0
    for row in rows.to_pylist():
        if row["other"] is None or row["preference"] < 0:
            continue
        gap = own_reward(model, name, *sides(row)[0]) - own_reward(model, name, *sides(row)[1])
        wins = row["preference"]
        total = total - (wins * functional.logsigmoid(gap) + (1 - wins) * functional.logsigmoid(-gap)) / 6
    return total


def assert_same(found, want, model, gradient_tolerance=1e-6):
    """Loss and gradient of `found`, an objective with rows, are those of `want`, a scalar of the same model."""
    loss, gradients, _ = found
    assert loss == pytest.approx(want.item(), abs=1e-6) and abs(loss) > 1e-2
    model.zero_grad()
    want.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, atol=gradient_tolerance, rtol=0, msg=name)


@pytest.mark.parametrize("name", ["slots", "without", "ordinal", "pairwise", "classes"])
def test_the_loss_of_labels_is_torchs_cross_entropy_at_the_slots(name):
    model, rows = judge(name), rows_of(name, pairs=name == "pairwise")
    found = loss_and_gradient(objective(name), model, rows, {}, [list(range(6))])
    assert_same(found, own_label_loss(model, name, rows), model)
    assert found[2]["num_truncated"] == 0


@pytest.mark.parametrize("name", ["slots", "without", "margin", "classes", "scalar"])
def test_the_loss_of_pairs_is_bradley_terry_of_the_rewards(name):
    model, rows = judge(name), rows_of(name, pairs=True, labels=False)
    found = loss_and_gradient(objective(name), model, rows, {}, [list(range(6))])
    assert_same(found, own_pair_loss(model, name, rows), model)


@pytest.mark.parametrize("name", ["slots", "classes"])
def test_losses_of_labels_and_of_pairs_are_added(name):
    model, rows = judge(name), rows_of(name, pairs=True)
    found = loss_and_gradient(objective(name), model, rows, {}, [list(range(6))])
    assert_same(found, own_label_loss(model, name, rows) + own_pair_loss(model, name, rows), model)


def test_the_loss_of_ordinal_pairs_is_the_probability_that_the_ratings_agree():
    model, rows = judge("ordinal"), rows_of("ordinal", pairs=True, labels=False)
    want = 0.0
    for row in rows.to_pylist():
        if row["other"] is None or row["preference"] < 0:
            continue
        first, second = (own_logits(model, "ordinal", *side)[0].softmax(-1) for side in sides(row))
        above = sum(first[i] * second[j] * (1.0 if i > j else 0.5 if i == j else 0.0)
                    for i in range(4) for j in range(4))
        wins = row["preference"]
        want = want - (wins * above.log() + (1 - wins) * (1 - above).log()) / 6
    found = loss_and_gradient(objective("ordinal", pairs="ordinal"), model, rows, {}, [list(range(6))])
    assert_same(found, want, model)


def test_ratings_beside_the_label_count_as_right_where_they_are_flooded_and_in_their_slot_only():
    model, rows = judge("ordinal"), rows_of("ordinal")
    want = 0.0
    for row in rows.to_pylist():
        rating, level = own_logits(model, "ordinal", *sides(row)[0])
        first, second = row["labels"]
        if first >= 0:
            want = want - rating.softmax(-1)[max(0, first - 1) : first + 2].sum().log() / 6
        if second >= 0:
            want = want + functional.cross_entropy(level, torch.tensor(second)) / 6
    found = loss_and_gradient(objective("ordinal", flood_radius=1), model, rows, {}, [list(range(6))])
    assert_same(found, want, model)
    assert {"rating_nll", "rating_error", "slot_nll"} <= found[2].keys()


# --- the masked-LM term


class Watched(torch.nn.Module):
    """The objective's module, which notes what it was asked over the whole vocabulary."""

    def __init__(self, module):
        super().__init__()
        self.module, self.asked = module, []

    def forward(self, input_ids, positions, over_vocabulary=False):
        if over_vocabulary:
            self.asked.append((input_ids, positions))
        return self.module(input_ids, positions, over_vocabulary)


def unjudged(rows):
    return table(JUDGED, *(row | {"labels": [-1] * len(row["labels"]), "preference": -1.0} for row in rows.to_pylist()))


def watched(rows, seed=3, **options):
    """The masked-LM term alone: encoded rows, ids with hidden tokens, their places, loss, model, metrics."""
    made, model = objective("slots", masked_lm_weight=1.0, **options), judge("slots")
    module = Watched(made.module(model))
    torch.manual_seed(seed)     # of what is hidden; as the learner does at each step
    none = unjudged(rows)
    loss, metrics = made.loss(module, none, rows.num_rows, {})
    return made._encode(none)[0], *module.asked[0], loss, model, values(metrics)


def test_the_masked_lm_term_is_torchs_cross_entropy_of_the_hidden_tokens_row_by_row():
    encoded, hidden_ids, places, loss, model, metrics = watched(rows_of("slots", pairs=True), masked_share=0.5)
    want, right, num_changed = 0.0, [], 0
    for ids, hidden, row in zip(encoded.input_ids, hidden_ids, places, strict=True):
        chosen = [place for number, place in enumerate(row) if place > ([0, *row])[number]]     # then come zeros
        num_changed += sum(a != b for a, b in zip(ids, hidden, strict=True))
        assert all(ids[place] == hidden[place] for place in range(len(ids)) if place not in chosen)
        if chosen:
            logits = model(input_ids=torch.tensor([hidden])).logits[0, chosen]
            answers = torch.tensor([ids[place] for place in chosen])
            want = want + functional.cross_entropy(logits, answers) / 6
            right += (logits.argmax(-1) == answers).tolist()
    assert num_changed > 10
    assert loss.item() == pytest.approx(want.item(), abs=1e-5) and loss.item() > 1
    assert metrics["masked_lm_accuracy"] == pytest.approx(sum(right) / len(right))


def test_only_the_texts_words_are_hidden():
    encoded, hidden_ids, *_ = watched(rows_of("slots"), masked_share=1.0)
    for ids, hidden, spans in zip(encoded.input_ids, hidden_ids, encoded.text_spans, strict=True):
        inside = {place for start, end in spans for place in range(start, end)}
        changed = {place for place in range(len(ids)) if ids[place] != hidden[place]}
        assert changed <= inside
        assert all(hidden[place] in (TOKENIZER.mask_token_id, *range(5, len(TOKENIZER))) for place in inside)
        assert len(hidden) == len(ids)


def test_what_is_hidden_follows_the_step_and_not_the_company_of_a_row():
    rows = rows_of("slots")
    whole = watched(rows, masked_share=0.5)[1]
    assert whole == watched(rows, masked_share=0.5)[1]
    assert whole != watched(rows, seed=4, masked_share=0.5)[1]
    for row in range(6):
        assert watched(rows.slice(row, 1), masked_share=0.5)[1] == whole[row : row + 1]


def test_without_texts_there_is_nothing_to_hide():
    rows = table(JUDGED, {"prompt": "", "completion": "", "explanations": [], "labels": [-1, -1]})
    *_, loss, _, metrics = watched(rows, masked_share=1.0)
    assert loss.item() == 0.0 and "masked_lm_nll" not in metrics
    loss.backward()


def test_the_weight_of_the_masked_lm_term_multiplies_it():
    rows, model = rows_of("slots"), judge("slots")
    plain, _ = objective("slots").loss(objective("slots").module(model), rows, 6, {})
    alone = watched(rows, masked_share=0.5)[3]
    made = objective("slots", masked_lm_weight=0.25, masked_share=0.5)
    torch.manual_seed(3)
    both, _ = made.loss(made.module(model), rows, 6, {})
    assert both.item() == pytest.approx(plain.item() + 0.25 * alone.item(), abs=1e-5)


# --- rows


def test_lengths_are_those_of_both_sides_and_weights_are_one_a_row():
    rows = rows_of("slots", pairs=True)
    made = objective("slots")
    size = lambda *texts: sum(len(TOKENIZER(text, add_special_tokens=False)["input_ids"]) for text in texts)  # noqa: E731
    want = []
    for row in rows.to_pylist():
        length = 8 + size(row["prompt"], row["completion"], *row["explanations"])    # 6 of the text, 2 special
        if row["other"] is not None:
            length += 8 + size(row["prompt"], row["other"], *row["other_explanations"])
        want.append(length)
    assert made.lengths(rows) == want
    assert made.weights(rows) == [1] * 6


def test_judging_gives_logits_of_the_completions_and_rewards_of_both_sides():
    model, rows, made = judge("slots"), rows_of("slots", pairs=True), objective("slots")
    logits, scores = made.logits(made.module(model), rows)
    assert logits.shape == (6, 2, 3) and scores.shape == (6, 2) and not scores.requires_grad
    for number, row in enumerate(rows.to_pylist()):
        for z, found in zip(own_logits(model, "slots", *sides(row)[0]), logits[number], strict=True):
            torch.testing.assert_close(found[: len(z)], z.float(), atol=1e-5, rtol=0)
        assert scores[number, 0].item() == pytest.approx(own_reward(model, "slots", *sides(row)[0]).item(), abs=1e-5)
        if row["other"] is None:
            assert math.isnan(scores[number, 1])
        else:
            assert scores[number, 1].item() == pytest.approx(own_reward(model, "slots", *sides(row)[1]).item(),
                                                             abs=1e-5)


def test_rows_without_label_and_preference_change_nothing():
    model, rows, made = judge("slots"), unjudged(rows_of("slots", pairs=True)), objective("slots")
    loss, gradients, metrics = loss_and_gradient(made, model, rows, {}, [list(range(6))])
    assert loss == 0.0 and all(not gradient.any() for gradient in gradients.values())
    assert metrics == {"loss": 0.0, "num_truncated": 0.0}


def test_a_pair_is_learnt_the_same_from_either_side():
    model, made = judge("slots"), objective("slots")
    one = rows_of("slots", pairs=True, labels=False)
    turned = []
    for row in one.to_pylist():
        if row["other"] is not None:
            row |= {"completion": row["other"], "other": row["completion"], "explanations": row["other_explanations"],
                    "other_explanations": row["explanations"],
                    "preference": row["preference"] if row["preference"] < 0 else 1 - row["preference"]}
        turned.append(row)
    whole = [list(range(6))]
    first, second = (loss_and_gradient(made, model, rows, {}, whole) for rows in (one, table(JUDGED, *turned)))
    assert first[0] == pytest.approx(second[0], abs=1e-6)
    for name, gradient in first[1].items():
        torch.testing.assert_close(second[1][name], gradient, atol=1e-6, rtol=0, msg=name)
    assert first[2] == pytest.approx(second[2], abs=1e-5)


def test_metrics_by_hand():
    model, rows, made = judge("slots"), rows_of("slots", pairs=True), objective("slots")
    _, metrics = made.loss(made.module(model), rows, 6, {})
    found, right, wins, gaps = values(metrics), [], [], []
    for row in rows.to_pylist():
        logits = own_logits(model, "slots", *sides(row)[0])
        right += [z.argmax().item() == label for z, label in zip(logits, row["labels"], strict=True) if label >= 0]
        if row["other"] is not None and row["preference"] in (0.0, 1.0):
            gap = (own_reward(model, "slots", *sides(row)[0]) - own_reward(model, "slots", *sides(row)[1])).item()
            gaps.append(gap if row["preference"] == 1 else -gap)
            wins.append(gaps[-1] > 0)
    assert found["slot_accuracy"] == pytest.approx(sum(right) / len(right)) and len(right) == 10
    assert found["pair_accuracy"] == pytest.approx(sum(wins) / len(wins)) and len(wins) == 3
    assert found["pair_margin"] == pytest.approx(sum(gaps) / len(gaps), abs=1e-5)


def test_of_several_explanations_the_first_is_read():
    model, made = judge("slots"), objective("slots")
    one, two = (table(JUDGED, {"explanations": texts, "labels": [0, 1]}) for texts in (["cat"], ["cat", "dog"]))
    assert made.loss(made.module(model), one, 1, {})[0] == made.loss(made.module(model), two, 1, {})[0]


def test_a_tokenizer_that_pads_on_the_left_does_not_move_the_slots():
    model, rows = judge("slots"), rows_of("slots", pairs=True)
    left = type(TOKENIZER)(tokenizer_object=TOKENIZER.backend_tokenizer, padding_side="left",
                           **{name: getattr(TOKENIZER, name) for name in ("pad_token", "unk_token", "cls_token",
                                                                          "sep_token", "mask_token")})
    options = JudgingOptions(TEMPLATES["slots"])
    one, other = (made.loss(made.module(model), rows, 6, {})[0].item()
                  for made in (JudgingObjective(TOKENIZER, options), JudgingObjective(left, options)))
    assert one == other


def test_inputs_that_are_cut_are_counted_on_both_sides():
    model, rows = judge("slots"), rows_of("slots", pairs=True)
    short = dataclasses.replace(TEMPLATES["slots"], max_tokens=12)
    compiled = compile_template(TEMPLATES["slots"], TOKENIZER)
    made = JudgingObjective(TOKENIZER, JudgingOptions(short))
    lengths = []
    for row in rows.to_pylist():
        for prompt, completion, explanations in sides(row)[: 1 if row["other"] is None else 2]:
            lengths.append(len(encode(compiled, [prompt], [completion], [[*explanations, None][0]]).input_ids[0]))
    assert sum(made.lengths(rows)) == sum(min(12, length) for length in lengths)
    _, metrics = made.loss(made.module(model), rows, 6, {})
    assert values(metrics)["num_truncated"] == sum(length > 12 for length in lengths) > 0


def test_a_model_that_does_not_fit_the_template_is_refused():
    with pytest.raises(ValueError, match=r"num_labels of the model must be 3 with head classes, got 1"):
        objective("classes").module(judge("scalar"))
    with pytest.raises(ValueError, match=r"max_tokens must be <= 64, the positions of the model, got 65"):
        JudgingObjective(TOKENIZER, JudgingOptions(dataclasses.replace(TEMPLATES["slots"], max_tokens=65))).module(
            judge("slots"))
