"""Every family of encoders with a tokenizer of its own kind: templates are filled, slots are read, folders load."""

import math

import pytest
import torch

from rlaif.esfp.encoding import encode
from rlaif.esfp.reward_model import RewardModel, Texts
from rlaif.esfp.reward_spec import RewardSpec
from rlaif.esfp.slots import Slot, SlotTemplate
from tests.helpers.families import FAMILIES, judge_of, tokenizer_of

VERDICT = Slot("verdict", [["yes", "plainly"], ["maybe"], ["no", "not at all"]], [1.0, 0.5, 0.0])
GOOD = Slot("good", [["one"], ["two"], ["five"]], [1.0, 2.0, 5.0], kind="ordinal", score="margin", weight=0.5)
TEMPLATE = SlotTemplate("Is it so? {prompt}{sep}{completion} {explanation} The answer is [verdict]. It is [good].",
                        [VERDICT, GOOD], 100, temperature=1.2, without_explanation="{completion} So: [verdict] [good]")
TEXTS = Texts(["A man in a red coat.", "", "a cat and a dog"], ["It is so.", "no", "(two) {three}"],
              [["Unbelievably well done."], [], ["rather disappointing", "so"]])

families = pytest.mark.parametrize("family", FAMILIES)
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")


def reward_model(family):
    return RewardModel(judge_of(family), tokenizer_of(family), RewardSpec(TEMPLATE))


def pieces(family, word):
    """Ids of a word that stands after a blank."""
    return tokenizer_of(family)(" " + word, add_special_tokens=False)["input_ids"]


@families
def test_label_words_of_several_pieces_are_what_the_tokenizer_makes_of_them(family):
    assert len(pieces(family, "plainly")) > 2 and len(pieces(family, "not at all")) > 2
    model = reward_model(family)
    for k, group in enumerate(VERDICT.classes):
        for w, word in enumerate(group):
            ids, mask = model.compiled.word_ids[0, k, w], model.compiled.piece_mask[0, k, w]
            assert ids[mask].tolist() == pieces(family, word)


@families
def test_slots_are_scored_by_the_models_own_logits_there(family):
    model = reward_model(family)
    got = model.score(TEXTS, max_tokens_per_batch=300)
    assert got.num_truncated == 0 and got.num_without_explanation == 1
    tokenizer = model.tokenizer
    for row, texts in enumerate(TEXTS.explanations):
        scores = []
        for text in texts or [None]:
            encoded = encode(model.compiled, [TEXTS.prompts[row]], [TEXTS.completions[row]], [text])
            ids, positions = encoded.input_ids[0], encoded.slot_positions[0]
            assert [place for place, token in enumerate(ids) if token == tokenizer.mask_token_id] == positions
            with torch.no_grad():
                logits = model.model(input_ids=torch.tensor([ids])).logits[0, positions]
            z = [[torch.logsumexp(torch.stack([at[pieces(family, word)].mean() for word in group]), 0).item() / 1.2
                  for group in slot.classes] for at, slot in zip(logits, TEMPLATE.slots, strict=True)]
            odds = [math.exp(x) / sum(map(math.exp, z[0])) for x in z[0]]
            scores.append((odds[0] + odds[1] / 2, z[1][2] - z[1][0]))
        want = [sum(column) / len(scores) for column in zip(*scores, strict=True)]
        assert got.slot_scores[row].tolist() == pytest.approx(want, abs=1e-4)
        assert got.reward[row].item() == pytest.approx(want[0] + 0.5 * want[1], abs=1e-4)


@families
def test_a_row_is_the_text_that_a_reader_would_write(family):
    """Decoded, a row is its template with the texts in it: no blank is lost or added between words."""
    model = reward_model(family)
    encoded = encode(model.compiled, ["A man reads a book to a cat."], ["It is so."], ["rather disappointing"])
    found = model.tokenizer.decode(encoded.input_ids[0], clean_up_tokenization_spaces=False)
    for token in ("cls", "sep", "mask"):
        found = found.replace(getattr(model.tokenizer, f"{token}_token"), f"<{token}>")
    want = ("<cls>Is it so? A man reads a book to a cat.<sep>It is so. rather disappointing The answer is<mask>."
            " It is<mask>.<sep>")
    bare = lambda text: text.lower().replace(" ", "")  # noqa: E731
    assert bare(found) == bare(want)
    if family in ("roberta", "modernbert"):
        assert found == want


@families
def test_a_folder_of_the_family_loads_as_the_same_model(family, tmp_path):
    model = reward_model(family)
    model.save(tmp_path / "rm")
    again = RewardModel.load(tmp_path / "rm")
    assert again.version() == model.version()
    assert again.model.config.model_type == family
    torch.testing.assert_close(again.score(TEXTS, max_tokens_per_batch=300).reward,
                               model.score(TEXTS, max_tokens_per_batch=300).reward, atol=1e-6, rtol=0)


@families
@pytest.mark.parametrize("head", ["classes", "scalar"])
def test_classifiers_of_the_family_score_by_their_logits(family, head, tmp_path):
    slots = [VERDICT] if head == "classes" else []
    template = SlotTemplate("{prompt}{sep}{completion} {explanation}", slots, 100, head=head)
    model = RewardModel(judge_of(family, head, template.num_classes), tokenizer_of(family), RewardSpec(template))
    model.save(tmp_path / "rm")
    model = RewardModel.load(tmp_path / "rm")
    texts = Texts(TEXTS.prompts, TEXTS.completions)
    got = model.score(texts, max_tokens_per_batch=300)
    encoded = encode(model.compiled, texts.prompts, texts.completions, None)
    for row, ids in enumerate(encoded.input_ids):
        with torch.no_grad():
            logits = model.model(input_ids=torch.tensor([ids])).logits[0]
        odds = logits.softmax(-1)
        want = odds[0] + odds[1] / 2 if head == "classes" else logits[0]
        assert got.reward[row].item() == pytest.approx(want.item(), abs=1e-4)


@families
def test_rewards_do_not_depend_on_the_company_of_a_row(family):
    model = reward_model(family)
    together = model.score(TEXTS, max_tokens_per_batch=10_000).reward
    for row in range(3):
        alone = Texts(*([column[row]] for column in (TEXTS.prompts, TEXTS.completions, TEXTS.explanations)))
        assert model.score(alone, max_tokens_per_batch=1).reward[0].item() == pytest.approx(together[row].item(),
                                                                                            abs=1e-5)


@families
def test_a_template_or_a_vocabulary_larger_than_the_model_is_refused(family):
    tokenizer, model = tokenizer_of(family), judge_of(family)
    long = SlotTemplate("{prompt} is [verdict]", [VERDICT], 131)
    with pytest.raises(ValueError, match=r"max_tokens must be <= \d+, the positions of the model, got 131"):
        RewardModel(model, tokenizer, RewardSpec(long))
    other = judge_of(family)
    other.resize_token_embeddings(len(tokenizer) - 1)
    with pytest.raises(ValueError, match=rf"tokenizer must have at most the model's {len(tokenizer) - 1} tokens, got "):
        RewardModel(other, tokenizer, RewardSpec(TEMPLATE))
