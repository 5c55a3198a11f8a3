import dataclasses
import json
import math
import random
import shutil

import pytest
import torch
from omegaconf import OmegaConf
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    PreTrainedTokenizerFast,
)

import rlaif.esfp.reward_model
from rlaif.esfp.encoding import encode
from rlaif.esfp.pairing import tie_scores
from rlaif.esfp.reward_model import RewardModel, Texts
from rlaif.esfp.reward_spec import ExplainerReference, RewardSpec
from rlaif.esfp.slot_scoring import class_logits
from rlaif.esfp.slots import Slot, SlotTemplate

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "yes", "no", "maybe", "the", "answer", "is", "low", "high"]
WORDS += ["red", "blue", "cat", "dog", "[", "]", "mask", "so", "first", "second", "equal"]
VERDICT = Slot("verdict", [["yes"], ["maybe"], ["no"]], [1.0, 0.0, -1.0])
LEVEL = Slot("level", [["low"], ["high"]], [1.0, 5.0], weight=0.5)
TEXT = "{prompt} {completion} {explanation} the answer is [verdict] [level]"
PROMPTS = ["red cat", "dog", "red cat", "blue blue blue", "dog"]
COMPLETIONS = ["so", "is the cat", "so", "", "is the cat"]
EXPLANATIONS = [["so red"], [], ["so red"], ["cat dog cat dog"], [""]]
BETTER = Slot("better", [["first"], ["equal"], ["second"]], [1.0, 0.5, 0.0], kind="pairwise")
NICER = Slot("nicer", [["yes"], ["no"]], [3.0, 1.0], weight=2.0, kind="pairwise")
PAIR = "{prompt} {completion} {explanation} so {other} {other_explanation} [better] [nicer]"


def tokenizer():
    backend = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = {
        "unk_token": "[UNK]",
        "pad_token": "[PAD]",
        "mask_token": "[MASK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
    }
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def config(**changes):
    return BertConfig(vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                      intermediate_size=32, **changes)


def randomised(model):
    """Every parameter random, and so large that each word of an input matters."""
    for name, parameter in model.named_parameters():
        is_scale = name.endswith("LayerNorm.weight")
        torch.nn.init.normal_(parameter, mean=float(is_scale), std=0.8 if parameter.ndim == 2 else 0.3)
    return model


def reward_model(template=None, **changes):
    torch.manual_seed(0)
    model = randomised(BertForMaskedLM(config()))
    explainer = ExplainerReference("some/model", "why ${so}?\n{prompt} {completion}")
    settings = {"explainer": explainer, "facts": {"data_hash": "ab${x}"}}
    if template is None:
        template = SlotTemplate(TEXT, [VERDICT, LEVEL], 16, temperature=1.3)
        settings["prior"] = [[0.1, 0.2, 0.3], [0.4, 0.5]]
    return RewardModel(model, tokenizer(), RewardSpec(template, **(settings | changes)))


def pairwise_model(text=PAIR, slots=(BETTER, NICER), **changes):
    return reward_model(SlotTemplate(text, list(slots), 40, temperature=0.8, **changes))


def classifier_model(head, num_labels, **changes):
    torch.manual_seed(0)
    slots = [Slot("verdict", [["good"], ["fair"], ["poor"]], [1.0, 0.5, 0.0], weight=2.0)] if head == "classes" else []
    template = SlotTemplate("{prompt} {sep} {completion} {explanation}", slots, 16, temperature=1.3, head=head)
    model = randomised(BertForSequenceClassification(config(num_labels=num_labels)))
    return RewardModel(model, tokenizer(), RewardSpec(template, **changes))


@pytest.fixture
def folder(tmp_path):
    reward_model().save(tmp_path / "rm")
    return tmp_path / "rm"


def score(model, rows=range(5), max_tokens_per_batch=40):
    columns = [[column[row] for row in rows] for column in (PROMPTS, COMPLETIONS, EXPLANATIONS)]
    return model.score(Texts(*columns), max_tokens_per_batch=max_tokens_per_batch)


def test_a_saved_model_loads_as_the_same_model(folder):
    before = reward_model()
    after = RewardModel.load(folder)
    assert after.spec == before.spec
    assert after.version() == before.version()
    assert not after.model.training
    torch.testing.assert_close(score(after).reward, score(before).reward, atol=0, rtol=0)


def test_scores_agree_with_the_formula_row_by_row():
    model = reward_model()
    got = score(model)
    model.model.eval()
    for row in range(5):
        explanation = [*EXPLANATIONS[row], None][0]
        encoded = encode(model.compiled, [PROMPTS[row]], [COMPLETIONS[row]], [explanation])
        with torch.no_grad():
            z = class_logits(model.model, encoded.input_ids, encoded.slot_positions, model.compiled)
        verdict = torch.softmax((z[0, 0] - torch.tensor([0.1, 0.2, 0.3])) / 1.3, 0)
        level = torch.softmax((z[0, 1, :2] - torch.tensor([0.4, 0.5])) / 1.3, 0)
        want = torch.stack([verdict[0] - verdict[2], level[0] + 5 * level[1]])
        torch.testing.assert_close(got.probabilities[row, 0], verdict, atol=1e-5, rtol=1e-5)
        assert got.probabilities[row, 1, 2] == 0
        torch.testing.assert_close(got.slot_scores[row], want, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(got.reward[row], want[0] + 0.5 * want[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("max_tokens_per_batch", [1, 16, 40, 10_000])
def test_rewards_do_not_depend_on_batches_or_order(max_tokens_per_batch):
    model = reward_model()
    want = score(model)
    order = [3, 1, 4, 0, 2]
    got = score(model, order, max_tokens_per_batch)
    torch.testing.assert_close(got.reward, want.reward[order], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got.slot_scores, want.slot_scores[order], atol=1e-5, rtol=1e-5)


@pytest.fixture
def rows_read(monkeypatch):
    """How many rows the model has been given."""
    seen = []

    def counted(model, input_ids, *others):
        seen.append(len(input_ids))
        return class_logits(model, input_ids, *others)

    monkeypatch.setattr(rlaif.esfp.reward_model, "class_logits", counted)
    return seen


def test_equal_rows_are_scored_once_and_get_the_same_reward(rows_read):
    got = score(reward_model())
    assert sum(rows_read) == 3
    assert got.reward[0] == got.reward[2] and got.reward[1] == got.reward[4]


def test_rows_that_are_equal_in_what_the_template_shows_are_scored_once(rows_read):
    model = reward_model(SlotTemplate("{completion} [verdict]", [VERDICT], 16))
    got = model.score(Texts(["red", "blue", "cat"], ["so"] * 3, [["a"], ["b"], []]), max_tokens_per_batch=64)
    assert sum(rows_read) == 1 and len(set(got.reward.tolist())) == 1


def test_scoring_uses_eval_mode_without_a_gradient_and_puts_the_mode_back():
    model = reward_model()
    model.model.train()
    first, second = score(model), score(model)
    assert torch.equal(first.reward, second.reward)  # dropout is off
    assert not first.reward.requires_grad
    assert model.model.training


def test_every_truncated_row_is_counted_even_when_rows_are_equal():
    model = reward_model()
    long = "red " * 30
    got = model.score(Texts([long, "dog", long], ["so"] * 3), max_tokens_per_batch=64)
    assert got.num_truncated == 2


def test_no_rows_give_empty_results():
    got = reward_model().score(Texts([], [], []), max_tokens_per_batch=64)
    assert got.reward.shape == (0,) and got.slot_scores.shape == (0, 2) and got.probabilities.shape == (0, 2, 3)
    assert got.num_truncated == got.num_without_explanation == 0
    got = pairwise_model().score_groups(Texts([], [], []), [], max_tokens_per_batch=64)
    assert got.reward.shape == (0,) and got.slot_scores.shape == (0, 2) and got.probabilities.shape == (0, 2, 3)


def test_a_mask_in_a_text_does_not_move_the_reward_to_it():
    model = reward_model()
    got = model.score(Texts(["red [MASK]"], ["so"]), max_tokens_per_batch=64)
    want = model.score(Texts(["red [ mask ]"], ["so"]), max_tokens_per_batch=64)
    torch.testing.assert_close(got.reward, want.reward)


def test_the_version_follows_weights_and_template():
    model = reward_model()
    version = model.version()
    assert len(version) == 16 and reward_model().version() == version
    assert reward_model(prior=None).version() != version
    assert reward_model(facts={"note": 1}).version() == version
    with torch.no_grad():
        model.model.cls.predictions.bias[0] += 1e-3
    assert model.version() != version


def test_a_model_loads_in_the_dtype_asked_for(folder):
    model = RewardModel.load(folder, torch.bfloat16)
    assert model.model.dtype == torch.bfloat16
    got, want = score(model), score(RewardModel.load(folder))
    assert got.reward.dtype == torch.float32
    torch.testing.assert_close(got.reward, want.reward, atol=0.2, rtol=0.1)
    assert isinstance(model.version(), str)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (["reward.yaml"], "must have reward.yaml, got none in"),
        (["config.json"], "must have config.json, got none in"),
        (["model.safetensors"], r"must have weights as \*.safetensors, got none in"),
        (["tokenizer.json", "tokenizer_config.json"], "must have a tokenizer, got no tokenizer.json in"),
    ],
)
def test_a_folder_with_a_part_missing_is_refused_in_one_line(folder, missing, message):
    for name in missing:
        (folder / name).unlink()
    with pytest.raises(ValueError, match=message) as caught:
        RewardModel.load(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"reward model must be a folder, got .*nowhere"):
        RewardModel.load(tmp_path / "nowhere")


def test_weights_without_a_masked_lm_head_are_refused(folder):
    BertModel(config()).save_pretrained(folder)
    (folder / "config.json").write_text(
        json.dumps(config().to_dict() | {"architectures": ["BertForMaskedLM"]})
    )
    with pytest.raises(ValueError, match=r"must hold every parameter of a model with head slot, got none for"):
        RewardModel.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.update(format=1), "format in .*reward.yaml must be 2"),
        (lambda raw: raw.update(explainer="some/model"), "reward.yaml must have the fields of RewardSpec"),
        (lambda raw: raw["template"].update(head="scalar"), "slots must be 0 with head scalar, got 2"),
        (lambda raw: raw["template"]["slots"][0].update(kind="likert"), "kind of slot verdict must be one of"),
        (lambda raw: raw.pop("template"), "reward.yaml must have the fields of RewardSpec"),
        (lambda raw: raw.update(colour="red"), "reward.yaml must have the fields of RewardSpec"),
        (lambda raw: raw["template"].update(max_tokens=0), "max_tokens must be >= 1, got 0"),
        (lambda raw: raw["template"].update(max_tokens=100_000), "max_tokens must be <= 512"),
        (lambda raw: raw.update(prior=[[1.0]]), "prior must have one number a class"),
    ],
)
def test_a_bad_reward_yaml_is_refused_with_its_place(folder, change, message):
    raw = OmegaConf.to_container(OmegaConf.load(folder / "reward.yaml"), resolve=False)
    change(raw)
    OmegaConf.save(OmegaConf.create(raw), folder / "reward.yaml")
    with pytest.raises(ValueError, match=message) as caught:
        RewardModel.load(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "- 1", "a: [", "${"])
def test_a_reward_yaml_that_is_no_mapping_is_refused(folder, text):
    (folder / "reward.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"reward.yaml must be") as caught:
        RewardModel.load(folder)
    assert "\n" not in str(caught.value)


def test_a_save_that_is_cut_short_leaves_a_folder_that_does_not_load(folder, monkeypatch):
    model = RewardModel.load(folder)
    monkeypatch.setattr(
        model.tokenizer, "save_pretrained", lambda *_: (_ for _ in ()).throw(OSError("disk full"))
    )
    with pytest.raises(OSError, match=r"disk full"):
        model.save(folder)
    with pytest.raises(ValueError, match=r"must have reward.yaml, got none"):
        RewardModel.load(folder)


def test_pickled_weights_are_not_read(folder):
    shutil.move(folder / "model.safetensors", folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"must have weights as \*.safetensors"):
        RewardModel.load(folder)


def test_a_text_that_omegaconf_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    explainer = ExplainerReference("some/model", "costs ${")
    with pytest.raises(ValueError, match=r"texts in reward.yaml must be free of half an interpolation"):
        reward_model(explainer=explainer).save(tmp_path / "rm")
    assert not (tmp_path / "rm").exists()


# --- explanations


@pytest.mark.parametrize("kind", ["expected", "margin"])
def test_a_row_with_several_explanations_gets_the_mean_of_their_scores(kind):
    template = SlotTemplate(TEXT, [dataclasses.replace(VERDICT, score=kind), LEVEL], 24, temperature=1.3)
    model = reward_model(template)
    several = [["so red", "cat", "dog dog"], ["blue"], [], ["so", "so"]]
    got = model.score(Texts(PROMPTS[:4], COMPLETIONS[:4], several), max_tokens_per_batch=64)
    for row, texts in enumerate(several):
        parts = [model.score(Texts(PROMPTS[row : row + 1], COMPLETIONS[row : row + 1], [[text] if text else []]),
                             max_tokens_per_batch=64) for text in texts or [None]]
        for name in ("probabilities", "slot_scores", "reward"):
            want = torch.cat([getattr(part, name) for part in parts]).mean(0)
            torch.testing.assert_close(getattr(got, name)[row], want, atol=1e-5, rtol=1e-5, msg=name)
    again = model.score(Texts(PROMPTS[:4], COMPLETIONS[:4], [row[::-1] for row in several]), max_tokens_per_batch=64)
    torch.testing.assert_close(again.reward, got.reward, atol=1e-6, rtol=1e-6)


def test_entropy_is_that_of_the_mean_of_the_probabilities():
    model = reward_model(SlotTemplate(TEXT, [VERDICT, LEVEL], 24))
    got = model.score(Texts(PROMPTS[:2], COMPLETIONS[:2], [["so red", "cat"], ["dog"]]), max_tokens_per_batch=64)
    for row in range(2):
        for s, size in ((0, 3), (1, 2)):
            odds = got.probabilities[row, s, :size].tolist()
            assert got.entropy[row, s].item() == pytest.approx(-sum(p * math.log(p) for p in odds), abs=1e-5)


def test_rows_without_explanation_are_read_in_their_own_form_and_counted():
    model = reward_model(SlotTemplate(TEXT, [VERDICT, LEVEL], 24, without_explanation="{completion} is [verdict] the "
                                                                                     "[level]"))
    plain = reward_model(SlotTemplate("{completion} is [verdict] the [level]", [VERDICT, LEVEL], 24))
    got = score(model)
    assert got.num_without_explanation == 1     # row 1; row 4 has an explanation, which is empty
    want = plain.score(Texts(PROMPTS[1:2], COMPLETIONS[1:2]), max_tokens_per_batch=64)
    torch.testing.assert_close(got.reward[1:2], want.reward, atol=1e-5, rtol=1e-5)
    assert abs(got.reward[1] - got.reward[4]) > 1e-3
    nobody = model.score(Texts(PROMPTS, COMPLETIONS), max_tokens_per_batch=64)
    assert nobody.num_without_explanation == 5 and nobody.reward[1] == pytest.approx(got.reward[1].item(), abs=1e-5)


def test_where_the_template_reads_no_explanation_none_is_missed():
    got = score(reward_model(SlotTemplate("{completion} [verdict]", [VERDICT], 16)))
    assert got.num_without_explanation == 0


def test_rows_are_counted_as_cut_once_whatever_the_number_of_their_explanations():
    model = reward_model()
    got = model.score(Texts(["red", "red"], ["so", "so"], [["cat " * 30, "dog " * 30, "so"], ["so"]]),
                      max_tokens_per_batch=64)
    assert got.num_truncated == 1


def test_one_text_in_the_place_of_a_list_of_explanations_is_our_own_mistake():
    with pytest.raises(AssertionError, match=r"a row has a list of explanations, not one text"):
        reward_model().score(Texts(["red"], ["so"], ["because"]), max_tokens_per_batch=64)


# --- pairs


def pairs(num_rows=24):
    generator = random.Random(0)
    text = lambda: " ".join(generator.choices(WORDS[8:], k=generator.randint(0, 4)))  # noqa: E731
    texts = lambda: [text() for _ in range(generator.randint(0, 2))]  # noqa: E731
    column = lambda make: [make() for _ in range(num_rows)]  # noqa: E731
    return Texts(column(text), column(text), column(texts), column(text), column(texts))


PAIRWISE = {"expected": {}, "without": {"without_explanation": "{completion} so {other} [better] [nicer]"},
            "margin": {"slots": [dataclasses.replace(slot, score="margin") for slot in (BETTER, NICER)]}}


@pytest.mark.parametrize("name", PAIRWISE)
def test_swapping_the_two_sides_turns_the_score_round(name):
    model = pairwise_model(**PAIRWISE[name])
    centres = torch.tensor([0.0, 0.0] if name == "margin" else [0.5, 2.0])
    torch.testing.assert_close(tie_scores(model.spec.template.slots), centres)
    texts = pairs()
    got, turned = (model.score(part, max_tokens_per_batch=200) for part in (texts, texts.swapped()))
    torch.testing.assert_close(turned.slot_scores, 2 * centres - got.slot_scores, atol=1e-5, rtol=0)
    torch.testing.assert_close(turned.reward, 2 * (centres * model.compiled.weights).sum() - got.reward, atol=1e-5,
                               rtol=0)
    torch.testing.assert_close(turned.probabilities[:, 0], got.probabilities[:, 0].flip(-1), atol=1e-6, rtol=0)
    torch.testing.assert_close(turned.probabilities[:, 1, :2], got.probabilities[:, 1, :2].flip(-1), atol=1e-6, rtol=0)
    assert not got.probabilities[:, 1, 2].any() and got.reward.std() > 1e-2
    assert turned.num_without_explanation == got.num_without_explanation > 0


@pytest.mark.parametrize("name", PAIRWISE)
def test_equal_sides_are_a_tie(name):
    model = pairwise_model(**PAIRWISE[name])
    got = model.score(Texts(["red"], ["so"], [["cat"]], ["so"], [["cat"]]), max_tokens_per_batch=200)
    torch.testing.assert_close(got.slot_scores, tie_scores(model.spec.template.slots).unsqueeze(0), atol=1e-5, rtol=0)


def test_both_orders_are_read_and_their_mean_is_taken():
    model = pairwise_model()
    model.model.eval()
    texts = pairs(12)
    got = model.score(texts, max_tokens_per_batch=200)
    for row in range(12):
        mine, theirs = ([*column[row], None][0] for column in (texts.explanations, texts.other_explanations))
        if max(len(texts.explanations[row]), len(texts.other_explanations[row])) > 1:
            continue
        prompt, one, other = texts.prompts[row], texts.completions[row], texts.others[row]
        parts = []
        for sides in (([one], [mine], [other], [theirs]), ([other], [theirs], [one], [mine])):
            encoded = encode(model.compiled, [prompt], *sides)
            with torch.no_grad():
                logits = class_logits(model.model, encoded.input_ids, encoded.slot_positions, model.compiled)
            parts.append(torch.softmax(logits[0] / 0.8, dim=-1))
        better = (parts[0][0] + parts[1][0].flip(-1)) / 2
        torch.testing.assert_close(got.probabilities[row, 0], better, atol=1e-5, rtol=0)
        assert got.slot_scores[row, 0].item() == pytest.approx((better[0] + better[1] / 2).item(), abs=1e-5)


def test_explanations_of_the_two_sides_are_taken_in_step_and_the_last_of_the_shorter_again():
    model = pairwise_model()
    got = model.score(Texts(["red"], ["so"], [["cat", "dog"]], ["is"], [["blue"]]), max_tokens_per_batch=200)
    parts = [model.score(Texts(["red"], ["so"], [[text]], ["is"], [["blue"]]), max_tokens_per_batch=200)
             for text in ("cat", "dog")]
    torch.testing.assert_close(got.reward, (parts[0].reward + parts[1].reward) / 2, atol=1e-5, rtol=0)


def test_in_a_group_everyone_meets_everyone_else():
    model = pairwise_model()
    completions, group_ids = ["so", "is cat", "", "dog", "so", "the"], [1, 2, 1, 1, 2, 3]
    explanations = [["cat"], [], ["so"], [], ["red"], ["dog"]]
    prompts = [f"{['red', 'blue', 'mask'][group - 1]}" for group in group_ids]
    got = model.score_groups(Texts(prompts, completions, explanations), group_ids, max_tokens_per_batch=200)
    for row, group in enumerate(group_ids):
        others = [other for other in range(6) if group_ids[other] == group and other != row]
        if not others:
            assert got.slot_scores[row].tolist() == [0.5, 2.0]
            torch.testing.assert_close(got.probabilities[row], torch.tensor([[1 / 3] * 3, [0.5, 0.5, 0.0]]))
            continue
        met = model.score(Texts([prompts[row]] * len(others), [completions[row]] * len(others),
                                [explanations[row]] * len(others), [completions[other] for other in others],
                                [explanations[other] for other in others]), max_tokens_per_batch=200)
        torch.testing.assert_close(got.slot_scores[row], met.slot_scores.mean(0), atol=1e-5, rtol=0)
        torch.testing.assert_close(got.probabilities[row], met.probabilities.mean(0), atol=1e-5, rtol=0)
        assert got.reward[row].item() == pytest.approx(met.reward.mean().item(), abs=1e-5)
    assert got.num_without_explanation == 2


def test_the_rewards_of_a_group_do_not_depend_on_its_order_and_sum_to_ties():
    model = pairwise_model()
    texts = Texts(["red"] * 4, ["so", "is cat", "", "dog"])
    got = model.score_groups(texts, [7] * 4, max_tokens_per_batch=200)
    assert got.slot_scores.mean(0).tolist() == pytest.approx([0.5, 2.0], abs=1e-5)
    turned = Texts(texts.prompts, texts.completions[::-1])
    again = model.score_groups(turned, [7] * 4, max_tokens_per_batch=200)
    torch.testing.assert_close(again.reward, got.reward.flip(0), atol=1e-5, rtol=0)


def test_groups_change_nothing_where_completions_are_judged_one_by_one():
    model = reward_model()
    texts = Texts(PROMPTS, COMPLETIONS, EXPLANATIONS)
    got = model.score_groups(texts, [1, 1, 1, 2, 2], max_tokens_per_batch=64)
    torch.testing.assert_close(got.reward, score(model).reward, atol=1e-5, rtol=0)


# --- other heads


@pytest.mark.parametrize(("head", "num_labels"), [("classes", 3), ("scalar", 1)])
def test_a_classifier_scores_saves_and_loads_as_the_same_model(tmp_path, head, num_labels):
    model = classifier_model(head, num_labels)
    model.save(tmp_path / "rm")
    again = RewardModel.load(tmp_path / "rm")
    assert again.spec == model.spec and again.version() == model.version()
    assert isinstance(again.model, BertForSequenceClassification)
    got = score(again)
    torch.testing.assert_close(got.reward, score(model).reward, atol=1e-6, rtol=0)
    for row in range(5):
        ids = encode(model.compiled, [PROMPTS[row]], [COMPLETIONS[row]], [[*EXPLANATIONS[row], None][0]]).input_ids
        with torch.no_grad():
            z = again.model(input_ids=torch.tensor(ids)).logits[0] / 1.3
        if head == "scalar":
            assert got.reward[row].item() == pytest.approx(z[0].item(), abs=1e-5)
            continue
        odds = torch.softmax(z, 0)
        torch.testing.assert_close(got.probabilities[row, 0], odds, atol=1e-5, rtol=0)
        assert got.slot_scores[row, 0].item() == pytest.approx((odds[0] + odds[1] / 2).item(), abs=1e-5)
        assert got.reward[row].item() == pytest.approx(2 * got.slot_scores[row, 0].item(), abs=1e-5)
    if head == "scalar":
        assert got.probabilities.shape == (5, 1, 0) and got.entropy.tolist() == [[0.0]] * 5


def test_a_classifier_folder_of_another_size_is_refused_with_its_place(tmp_path):
    classifier_model("classes", 3).save(tmp_path / "rm")
    raw = OmegaConf.to_container(OmegaConf.load(tmp_path / "rm" / "reward.yaml"), resolve=False)
    raw["template"]["slots"][0] |= {"classes": [["good"], ["poor"]], "values": [1.0, 0.0]}
    OmegaConf.save(OmegaConf.create(raw), tmp_path / "rm" / "reward.yaml")
    with pytest.raises(ValueError, match=r"num_labels of the model must be 2 with head classes, got 3.* \(in "):
        RewardModel.load(tmp_path / "rm")


def test_a_masked_lm_folder_is_no_classifier(folder):
    raw = OmegaConf.to_container(OmegaConf.load(folder / "reward.yaml"), resolve=False)
    raw["template"] |= {"head": "scalar", "slots": [], "text": "{prompt} {completion}"}
    raw["prior"] = None
    OmegaConf.save(OmegaConf.create(raw), folder / "reward.yaml")
    with pytest.raises(ValueError, match=r"must hold every parameter of a model with head scalar, got none for 4 such "
                                         r"as bert.pooler"):
        RewardModel.load(folder)


def test_a_prior_is_taken_off_the_logits_before_the_temperature():
    template = SlotTemplate("{completion} [verdict]", [VERDICT], 16, temperature=2.0)
    plain, shifted = reward_model(template), reward_model(template, prior=[[1.0, 0.0, -1.0]])
    texts = Texts(["red"], ["so"])
    odds = plain.score(texts, max_tokens_per_batch=64).probabilities[0, 0].log() - torch.tensor([0.5, 0.0, -0.5])
    got = shifted.score(texts, max_tokens_per_batch=64).probabilities[0, 0]
    torch.testing.assert_close(got, torch.softmax(odds, 0), atol=1e-6, rtol=0)
