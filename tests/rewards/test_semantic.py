import math
from types import SimpleNamespace

import pytest
import torch
from transformers import BertConfig, BertModel

from rlaif.modeling.models import word_tokenizer
from rlaif.rewards.semantic import SentenceEncoder, diversities, similarities

WORDS = "a b c d e f g"
TEXTS = ["a b c d e", "a", "b c", "g f e d c b a", "a b c"]


class Table(torch.nn.Module):
    """States that are read from a table: the state of token i is its row."""

    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(hidden_size=2))
    device = torch.device("cpu")

    def __init__(self, rows):
        super().__init__()
        self.rows = torch.tensor(rows)

    def forward(self, input_ids, attention_mask):
        return SimpleNamespace(last_hidden_state=self.rows[input_ids])


def letters(texts, truncation=False, max_length=None):
    """A tokenizer: letter by letter, a is 1, b is 2."""
    listed = [texts] if isinstance(texts, str) else texts
    ids = [["ab".index(letter) + 1 for letter in text][:max_length] for text in listed]
    return {"input_ids": ids[0] if isinstance(texts, str) else ids}


letters.pad_token_id = 0
# The states of "a" and "b" stand at right angles; that of padding must never count.
BY_HAND = SentenceEncoder(Table([[9.0, 9.0], [1.0, 0.0], [0.0, 2.0]]), letters, max_tokens=4)


@pytest.fixture(scope="module")
def bert():
    tokenizer = word_tokenizer([WORDS], masked=True)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=32, max_position_embeddings=32)
    return BertModel(config).eval(), tokenizer


def test_vectors_are_means_of_length_1_by_hand():
    vectors, num_cut = BY_HAND.encode(["a", "b", "ab", "", "aaaaab"])
    half = 1 / math.sqrt(5)     # of (1/2, 1): a's state and b's, added and halved
    assert vectors.tolist() == [pytest.approx(row) for row in (
        [1.0, 0.0], [0.0, 1.0], [half, 2 * half], [0.0, 0.0], [1.0, 0.0])]      # the last without its b
    assert num_cut == 1


def test_similarity_by_hand():
    found, num_cut = similarities(BY_HAND, ["a", "a", "ab", "a"], ["a", "b", "a", None])
    assert found == [pytest.approx(1.0), pytest.approx(0.0), pytest.approx(1 / math.sqrt(5)), None]
    assert num_cut == 0


def test_diversity_by_hand():
    # Group 7: a, b, a. Each a has cosines 0 and 1 with the others, b twice 0. Group 9 has nobody to differ from.
    found, _ = diversities(BY_HAND, ["a", "b", "b", "a"], [7, 7, 9, 7])
    assert found == [pytest.approx(0.5), pytest.approx(1.0), None, pytest.approx(0.5)]


def test_vectors_agree_with_one_text_at_a_time_without_padding(bert):
    model, tokenizer = bert
    vectors, _ = SentenceEncoder(model, tokenizer, max_tokens_per_batch=24).encode(TEXTS)
    for text, vector in zip(TEXTS, vectors, strict=True):
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        mean = states.mean(0)
        torch.testing.assert_close(vector, mean / mean.norm(), atol=1e-6, rtol=0)


def test_vectors_do_not_depend_on_company_or_order(bert):
    encoder = SentenceEncoder(*bert)
    whole, _ = encoder.encode(TEXTS)
    backwards, _ = encoder.encode([*TEXTS[::-1], *TEXTS])
    torch.testing.assert_close(backwards[: len(TEXTS)].flip(0), whole, atol=1e-6, rtol=0)
    assert torch.equal(backwards[: len(TEXTS)].flip(0), backwards[len(TEXTS):])     # equal texts are read once


def test_diversities_agree_with_a_loop_over_pairs(bert):
    encoder = SentenceEncoder(*bert)
    group_ids = [1, 2, 1, 1, 2]
    vectors, _ = encoder.encode(TEXTS)
    found, _ = diversities(encoder, TEXTS, group_ids)
    for row in range(len(TEXTS)):
        others = [other for other in range(len(TEXTS)) if other != row and group_ids[other] == group_ids[row]]
        mean = sum(float(vectors[row] @ vectors[other]) for other in others) / len(others)
        assert found[row] == pytest.approx(1 - mean, abs=1e-6)


def test_texts_that_are_too_long_are_cut_and_counted(bert):
    encoder = SentenceEncoder(*bert, max_tokens=4)
    vectors, num_cut = encoder.encode(["a b c d e", "a b", "a b f"])
    assert num_cut == 2     # [CLS] a b [SEP] is all that fits
    torch.testing.assert_close(vectors[0], vectors[1], atol=1e-6, rtol=0)
    torch.testing.assert_close(vectors[2], vectors[1], atol=1e-6, rtol=0)


def test_an_encoder_is_loaded_from_its_folder(bert, tmp_path):
    model, tokenizer = bert
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = SentenceEncoder.load(str(tmp_path), "float32", 16, 64, "cpu")
    torch.testing.assert_close(loaded.encode(TEXTS)[0], SentenceEncoder(model, tokenizer).encode(TEXTS)[0])


def test_no_texts_have_no_vectors():
    assert similarities(BY_HAND, [], []) == ([], 0) and diversities(BY_HAND, [], []) == ([], 0)
