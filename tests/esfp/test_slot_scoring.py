import dataclasses
import math

import pytest
import torch
from torch.nn import functional
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    DebertaV2Config,
    DistilBertConfig,
    ModernBertConfig,
    RobertaConfig,
)

from rlaif.esfp.encoding import compile_template, encode
from rlaif.esfp.slot_scoring import (
    check_model,
    class_logits,
    combine,
    entropies,
    score_margins,
    scores_of,
    slot_probabilities,
    slot_scores,
)
from rlaif.esfp.slots import Slot, SlotTemplate
from rlaif.modeling.collate import pad_right
from tests.helpers.slot_examples import LEVEL, VERDICT, WORDS, compiled, word_piece

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def bert(**kwargs):
    torch.manual_seed(0)
    return randomise(BertForMaskedLM(BertConfig(vocab_size=len(WORDS), **SMALL, **kwargs))).eval()


def randomise(model):
    """Every parameter random: a bias of zero would hide that it was forgotten."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def read(model, template, encoded):
    return class_logits(model, encoded.input_ids, encoded.slot_positions, template)


MODELS = {
    "bert": BertConfig(vocab_size=24, **SMALL),
    "roberta": RobertaConfig(vocab_size=24, pad_token_id=0, max_position_embeddings=40, **SMALL),
    "deberta-v2": DebertaV2Config(
        vocab_size=24, relative_attention=True, pos_att_type=["c2p", "p2c"], **SMALL
    ),
    "distilbert": DistilBertConfig(vocab_size=24, dim=16, n_layers=2, n_heads=2, hidden_dim=32),
    "modernbert": ModernBertConfig(
        vocab_size=24, pad_token_id=0, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3, **SMALL
    ),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
@pytest.mark.parametrize("kind", MODELS)
def test_class_logits_are_the_models_own_logits_at_the_slots(kind):
    torch.manual_seed(0)
    model = randomise(AutoModelForMaskedLM.from_config(MODELS[kind])).eval()
    template = compiled("[level] {prompt} {completion} {explanation} [verdict] .", (VERDICT, LEVEL))
    check_model(model, template)
    encoded = encode(template, ["red cat", "dog"], ["blue", ""], ["so so so", None])
    ids, mask = pad_right(encoded.input_ids, template.tokenizer.pad_token_id)
    positions = torch.tensor(encoded.slot_positions)
    with torch.no_grad():
        got = read(model, template, encoded)
        full = model(input_ids=ids, attention_mask=mask).logits
    for b in range(2):
        verdict, level = (full[b, positions[b, s]] for s in range(2))
        yes = torch.logsumexp(verdict[[WORDS.index("yes"), WORDS.index("sure")]], 0)
        want = [yes, verdict[WORDS.index("maybe")], verdict[WORDS.index("no")]]
        torch.testing.assert_close(got[b, 0], torch.stack(want), atol=1e-5, rtol=1e-5)
        want = torch.stack([level[WORDS.index("low")], level[WORDS.index("high")], torch.tensor(-math.inf)])
        torch.testing.assert_close(got[b, 1], want, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
@pytest.mark.parametrize("kind", MODELS)
def test_a_word_of_several_pieces_has_the_mean_of_their_logits(kind):
    torch.manual_seed(0)
    model = randomise(AutoModelForMaskedLM.from_config(MODELS[kind])).eval()
    template = compiled("{prompt} is [v] .", (Slot("v", [["cats", "so"], ["no maybe ."]], [1.0, 0.0]),))
    encoded = encode(template, ["red cat"], [""], None)
    with torch.no_grad():
        got = read(model, template, encoded)[0, 0]
        at_slot = model(input_ids=torch.tensor(encoded.input_ids)).logits[0, encoded.slot_positions[0][0]]
    logit = {word: at_slot[WORDS.index(word)].item() for word in WORDS}
    cats, so = (logit["cat"] + logit["##s"]) / 2, logit["so"]
    want = [math.log(math.exp(cats) + math.exp(so)), (logit["no"] + logit["maybe"] + logit["."]) / 3]
    assert got.tolist() == pytest.approx(want, abs=1e-5)


def test_the_rows_around_a_row_do_not_change_its_class_logits():
    model, template = bert(), compiled()
    encoded = encode(template, ["red cat", "dog"], ["blue", ""], ["so so so", None])
    with torch.no_grad():
        together = read(model, template, encoded)[1:]
        single = class_logits(model, encoded.input_ids[1:], encoded.slot_positions[1:], template)
    torch.testing.assert_close(together, single, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(("head", "num_labels"), [("classes", 3), ("scalar", 1)])
def test_a_classifiers_logits_are_the_models_own_without_padding(kind, head, num_labels):
    torch.manual_seed(0)
    config = type(MODELS[kind])(**(MODELS[kind].to_diff_dict() | {"num_labels": num_labels}))
    model = randomise(AutoModelForSequenceClassification.from_config(config)).eval()
    slots = [VERDICT] if head == "classes" else []
    template = compile_template(SlotTemplate("{prompt} so {completion}", slots, 32, head=head), word_piece())
    check_model(model, template)
    encoded = encode(template, ["red cat", "dog"], ["blue . .", ""], None)
    with torch.no_grad():
        got = read(model, template, encoded)
        want = [model(input_ids=torch.tensor([ids])).logits for ids in encoded.input_ids]
    assert got.shape == (2, 1, num_labels)
    torch.testing.assert_close(got[:, 0], torch.cat(want), atol=1e-5, rtol=1e-5)


def test_gradients_are_finite_where_slots_have_unequal_classes():
    model = bert()
    template = compiled("{prompt} [verdict] [level]", (VERDICT, LEVEL))
    logits = read(model, template, encode(template, ["red"], [""], None))
    combine(scores_of(logits, template, 1.0), template.weights).sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert any(gradient.abs().sum() > 0 for gradient in gradients)


def test_a_model_without_a_known_head_is_refused():
    model = bert()
    model.config.model_type = "mystery"
    with pytest.raises(ValueError, match=r"model_type must be one of bert, .*, got mystery"):
        check_model(model, compiled())


def test_a_model_that_cannot_hold_the_template_or_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match=r"max_tokens must be <= 16, the positions of the model, got 32"):
        check_model(bert(max_position_embeddings=16), compiled())
    tokenizer = word_piece()
    tokenizer.add_tokens(["extra"])
    with pytest.raises(ValueError, match=r"tokenizer must have at most the model's 24 tokens, got 25"):
        check_model(bert(), compiled(tokenizer=tokenizer))
    torch.manual_seed(0)
    roberta = AutoModelForMaskedLM.from_config(MODELS["roberta"])  # 40 positions, the first after the pad id
    check_model(roberta, compiled(max_tokens=39))
    with pytest.raises(ValueError, match=r"max_tokens must be <= 39"):
        check_model(roberta, compiled(max_tokens=40))


def test_a_classifier_of_another_size_is_refused():
    template = compile_template(SlotTemplate("{prompt}", [VERDICT], 32, head="classes"), word_piece())
    model = AutoModelForSequenceClassification.from_config(BertConfig(vocab_size=24, num_labels=2, **SMALL))
    with pytest.raises(ValueError, match=r"num_labels of the model must be 3 with head classes, got 2"):
        check_model(model, template)


# --- scores


def test_probabilities_scores_and_reward_by_hand():
    logits = torch.tensor([[[math.log(3.0), 0.0, -math.inf], [math.log(4.0), math.log(2.0), math.log(2.0)]]])
    values = torch.tensor([[1.0, -1.0, 0.0], [0.0, 2.0, 4.0]])
    probabilities = slot_probabilities(logits, 1.0)
    torch.testing.assert_close(probabilities, torch.tensor([[[0.75, 0.25, 0.0], [0.5, 0.25, 0.25]]]))
    scores = slot_scores(probabilities, values)
    torch.testing.assert_close(scores, torch.tensor([[0.5, 1.5]]))
    torch.testing.assert_close(combine(scores, torch.tensor([2.0, 1.0])), torch.tensor([2.5]))
    # at temperature 1/2 odds of 3:1 become 9:1
    torch.testing.assert_close(slot_probabilities(logits, 0.5)[0, 0], torch.tensor([0.9, 0.1, 0.0]))


def test_a_prior_equal_to_the_logits_leaves_even_odds():
    logits = torch.tensor([[[2.0, 0.5, -math.inf], [1.0, 2.0, 3.0]]])
    got = slot_probabilities(logits, 0.7, prior=logits[0])
    torch.testing.assert_close(got, torch.tensor([[[0.5, 0.5, 0.0], [1 / 3, 1 / 3, 1 / 3]]]))


def test_a_constant_added_to_the_logits_changes_nothing():
    logits = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(slot_probabilities(logits + 7.0, 0.8), slot_probabilities(logits, 0.8))


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(ValueError, match=r"temperature must be > 0, got 0"):
        slot_probabilities(torch.zeros(1, 1, 2), 0)


def test_margins_by_hand():
    # best: classes 0 and 2, worst: class 1; log(0.5 + 0.2) - log 0.3. The absent class of the second slot is worth 0.
    logs = torch.tensor([[[0.5, 0.3, 0.2], [0.8, 0.2, 0.0]]]).log()
    values = torch.tensor([[1.0, -1.0, 1.0], [1.0, 5.0, 0.0]])
    class_mask = torch.tensor([[True, True, True], [True, True, False]])
    want = [[math.log(0.7 / 0.3), math.log(0.2 / 0.8)]]
    torch.testing.assert_close(score_margins(logs, values, class_mask), torch.tensor(want))


def test_a_margin_moves_with_the_temperature_as_the_logits_do():
    slot = dataclasses.replace(VERDICT, score="margin")
    template = compiled(slots=(slot,))
    logits = torch.tensor([[[2.0, 7.0, -1.0]]])
    assert scores_of(logits, template, 1.0).item() == pytest.approx(3.0)     # whatever stands between the two
    assert scores_of(logits, template, 2.0).item() == pytest.approx(1.5)
    assert scores_of(logits, template, 2.0, torch.tensor([[1.0, 9.0, 0.0]])).item() == pytest.approx(1.0)


def test_a_score_whose_probability_vanishes_in_float32_stays_finite():
    slot = dataclasses.replace(VERDICT, score="margin")
    logits = torch.tensor([[[300.0, 0.0, -300.0]]], requires_grad=True)
    score = scores_of(logits, compiled(slots=(slot,)), 1.0)
    score.sum().backward()
    assert score.item() == pytest.approx(600.0)
    assert logits.grad.flatten().tolist() == pytest.approx([1.0, 0.0, -1.0])


def test_each_slot_is_scored_by_its_own_kind_of_score():
    slots = (dataclasses.replace(LEVEL, score="margin"), VERDICT)
    template = compiled("{prompt} [level] [verdict]", slots)
    logits = torch.tensor([[[0.0, 1.5, -math.inf], [math.log(2.0), 0.0, 0.0]]])
    torch.testing.assert_close(scores_of(logits, template, 1.0), torch.tensor([[1.5, 0.25]]))
    torch.testing.assert_close(scores_of(logits, template, 1.0, torch.zeros(2, 3)), torch.tensor([[1.5, 0.25]]))


def test_the_logit_of_a_scalar_head_is_its_score():
    template = compile_template(SlotTemplate("{prompt}", [], 32, head="scalar"), word_piece())
    torch.testing.assert_close(scores_of(torch.tensor([[[3.0]], [[-1.0]]]), template, 2.0),
                               torch.tensor([[1.5], [-0.5]]))


def test_entropies_by_hand():
    probabilities = torch.tensor([[[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]], [[0.25, 0.5, 0.25], [1 / 3, 1 / 3, 1 / 3]]])
    want = torch.tensor([[math.log(2), 0.0], [1.5 * math.log(2), math.log(3)]])
    torch.testing.assert_close(entropies(probabilities), want)
    other = torch.distributions.Categorical(probs=probabilities[1]).entropy()
    torch.testing.assert_close(entropies(probabilities)[1], other)


def test_scores_agree_with_a_reference_in_float64():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 1, 3, generator=generator)
    prior = torch.randn(1, 3, generator=generator)
    got = scores_of(logits, compiled(), 0.7, prior)
    odds = functional.softmax((logits - prior).double() / 0.7, dim=-1)
    torch.testing.assert_close(got.double(), odds[..., 0] - odds[..., 2], atol=1e-6, rtol=0)
