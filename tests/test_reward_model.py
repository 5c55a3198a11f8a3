import json
import shutil

import pytest
import torch
from omegaconf import OmegaConf
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import BertConfig, BertForMaskedLM, BertModel, PreTrainedTokenizerFast

from rlaif.reward_model import RewardModel, RewardSpec
from rlaif.slot_scoring import class_logits
from rlaif.slots import Slot, SlotTemplate, encode

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "yes",
    "no",
    "maybe",
    "the",
    "answer",
    "is",
    "low",
    "high",
]
WORDS += ["red", "blue", "cat", "dog", "[", "]", "mask", "so"]
VERDICT = Slot("verdict", [["yes"], ["maybe"], ["no"]], [1.0, 0.0, -1.0])
LEVEL = Slot("level", [["low"], ["high"]], [1.0, 5.0], weight=0.5)
TEXT = "{prompt} {completion} {explanation} the answer is [verdict] [level]"
PROMPTS = ["red cat", "dog", "red cat", "blue blue blue", "dog"]
COMPLETIONS = ["so", "is the cat", "so", "", "is the cat"]
EXPLANATIONS = ["so red", None, "so red", "cat dog cat dog", ""]


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


def config():
    return BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
    )


def reward_model(**changes):
    torch.manual_seed(0)
    model = BertForMaskedLM(config())
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    settings = {
        "prior": [[0.1, 0.2, 0.3], [0.4, 0.5]],
        "explainer": "some/model",
        "facts": {"data_hash": "ab${x}"},
    }
    spec = RewardSpec(SlotTemplate(TEXT, [VERDICT, LEVEL], 16, temperature=1.3), **(settings | changes))
    return RewardModel(model, tokenizer(), spec)


@pytest.fixture
def folder(tmp_path):
    reward_model(explanation_template="why ${so}?\n{prompt}").save(tmp_path / "rm")
    return tmp_path / "rm"


def score(model, rows=range(5), max_tokens_per_batch=40):
    columns = [[column[row] for row in rows] for column in (PROMPTS, COMPLETIONS, EXPLANATIONS)]
    return model.score(*columns, max_tokens_per_batch=max_tokens_per_batch)


def test_a_saved_model_loads_as_the_same_model(folder):
    before = reward_model(explanation_template="why ${so}?\n{prompt}")
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
        encoded = encode(model.compiled, *([column[row]] for column in (PROMPTS, COMPLETIONS, EXPLANATIONS)))
        ids = torch.tensor(encoded.input_ids)
        with torch.no_grad():
            z = class_logits(
                model.model, ids, torch.ones_like(ids), torch.tensor(encoded.slot_positions), model.compiled
            )
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


def test_equal_rows_are_scored_once_and_get_the_same_reward(monkeypatch):
    model = reward_model()
    seen = []
    forward = model.model.base_model.forward
    monkeypatch.setattr(
        model.model.base_model,
        "forward",
        lambda *a, **k: (seen.append(len(k["input_ids"])), forward(*a, **k))[1],
    )
    got = score(model)
    assert sum(seen) == 3
    assert got.reward[0] == got.reward[2] and got.reward[1] == got.reward[4]


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
    got = model.score([long, "dog", long], ["so"] * 3, [None] * 3, max_tokens_per_batch=64)
    assert got.num_truncated == 2


def test_no_rows_give_empty_results():
    got = reward_model().score([], [], [], max_tokens_per_batch=64)
    assert (
        got.reward.shape == (0,) and got.slot_scores.shape == (0, 2) and got.probabilities.shape == (0, 2, 3)
    )


def test_a_mask_in_a_text_does_not_move_the_reward_to_it():
    model = reward_model()
    got = model.score(["red [MASK]"], ["so"], None, max_tokens_per_batch=64)
    want = model.score(["red [ mask ]"], ["so"], None, max_tokens_per_batch=64)
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
    with pytest.raises(ValueError, match=r"must hold every parameter of the masked language model"):
        RewardModel.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.update(format=2), "format in .*reward.yaml must be 1"),
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
    with pytest.raises(ValueError, match=r"texts in reward.yaml must be free of half an interpolation"):
        reward_model(explanation_template="costs ${").save(tmp_path / "rm")
    assert not (tmp_path / "rm").exists()
