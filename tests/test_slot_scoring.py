import math

import pytest
import torch
from transformers import (
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    DebertaV2Config,
    DistilBertConfig,
    ModernBertConfig,
    RobertaConfig,
)

from rlaif.slot_scoring import check_model, class_logits, combine, slot_probabilities, slot_scores
from rlaif.slots import encode
from tests.slot_examples import LEVEL, VERDICT, WORDS, compiled, word_piece

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def bert(**kwargs):
    torch.manual_seed(0)
    return randomise(BertForMaskedLM(BertConfig(vocab_size=len(WORDS), **SMALL, **kwargs))).eval()


def randomise(model):
    """Every parameter random: a bias of zero would hide that it was forgotten."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def padded(template, encoded):
    longest = max(map(len, encoded.input_ids))
    ids = [row + [template.tokenizer.pad_token_id] * (longest - len(row)) for row in encoded.input_ids]
    mask = [[1] * len(row) + [0] * (longest - len(row)) for row in encoded.input_ids]
    return torch.tensor(ids), torch.tensor(mask), torch.tensor(encoded.slot_positions)


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
    ids, mask, positions = padded(template, encoded)
    with torch.no_grad():
        got = class_logits(model, ids, mask, positions, template)
        full = model(input_ids=ids, attention_mask=mask).logits
    for b in range(2):
        verdict, level = (full[b, positions[b, s]] for s in range(2))
        yes = torch.logsumexp(verdict[[WORDS.index("yes"), WORDS.index("sure")]], 0)
        want = [yes, verdict[WORDS.index("maybe")], verdict[WORDS.index("no")]]
        torch.testing.assert_close(got[b, 0], torch.stack(want), atol=1e-5, rtol=1e-5)
        want = torch.stack([level[WORDS.index("low")], level[WORDS.index("high")], torch.tensor(-math.inf)])
        torch.testing.assert_close(got[b, 1], want, atol=1e-5, rtol=1e-5)


def test_class_logits_do_not_depend_on_padding():
    model, template = bert(), compiled()
    encoded = encode(template, ["red cat", "dog"], ["blue", ""], ["so so so", None])
    ids, mask, positions = padded(template, encoded)
    alone = len(encoded.input_ids[1])
    with torch.no_grad():
        together = class_logits(model, ids, mask, positions, template)[1:]
        single = class_logits(model, ids[1:, :alone], mask[1:, :alone], positions[1:], template)
    torch.testing.assert_close(together, single, atol=1e-5, rtol=1e-5)


def test_gradients_are_finite_where_slots_have_unequal_classes():
    model = bert()
    template = compiled("{prompt} [verdict] [level]", (VERDICT, LEVEL))
    ids, mask, positions = padded(template, encode(template, ["red"], [""], None))
    probabilities = slot_probabilities(class_logits(model, ids, mask, positions, template), 1.0)
    combine(slot_scores(probabilities, template.values), template.weights).sum().backward()
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


# --- scores
# ------------------------------------------------------------------------------------------------------


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
