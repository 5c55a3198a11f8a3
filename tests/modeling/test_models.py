import shutil

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertForMaskedLM,
    BertForSequenceClassification,
    LlamaForCausalLM,
)

from rlaif import scenes
from rlaif.config.checks import UserError
from rlaif.config.train import ScratchConfig
from rlaif.modeling.models import (
    absolute,
    context_length,
    load_causal_lm,
    load_judge,
    load_tokenizer,
    published_shapes,
    refuse_incomplete,
    scratch_causal_lm,
    scratch_judge,
    skeleton,
    word_tokenizer,
)
from rlaif.modeling.weights import checkpoint_shapes

TEXT = "A woman in a red coat plays a guitar on a bench."
CONFIG = ScratchConfig(hidden_size=16, num_layers=1, num_heads=2, intermediate_size=16, max_positions=48)
BUILD = {"causal": scratch_causal_lm,
         "masked": lambda config, tokenizer, seed: scratch_judge(config, tokenizer, seed, "slot", 1)}
LOAD = {"causal": load_causal_lm, "masked": lambda model, dtype: load_judge(model, dtype, 0, "slot", 1)}
kinds = pytest.mark.parametrize("kind", BUILD)


def tokenizer_of(kind):
    return word_tokenizer([TEXT, "Answer: why?"], masked=kind == "masked")


@pytest.fixture
def folder(kind, tmp_path):
    path = tmp_path / "model"
    tokenizer = tokenizer_of(kind)
    BUILD[kind](CONFIG, tokenizer, seed=0).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@kinds
def test_words_and_marks_are_tokens_and_a_text_comes_back(kind):
    tokenizer = tokenizer_of(kind)
    ids = tokenizer(TEXT)["input_ids"]
    words = tokenizer.convert_ids_to_tokens(ids)
    body = ["A", "woman", "in", "a", "red", "coat", "plays", "a", "guitar", "on", "a", "bench", "."]
    assert words == (["[CLS]", *body, "[SEP]"] if kind == "masked" else body)
    assert tokenizer.decode(ids, skip_special_tokens=True) == TEXT


@kinds
def test_an_unknown_word_is_the_unknown_token_and_case_counts(kind):
    tokenizer = tokenizer_of(kind)
    words = tokenizer.convert_ids_to_tokens(tokenizer("a zebra Red", add_special_tokens=False)["input_ids"])
    assert words == ["a", "<unk>", "<unk>"]


@kinds
def test_the_vocabulary_is_exact(kind):
    tokenizer = tokenizer_of(kind)
    words = set(TEXT.replace(".", " .").split()) | {"Answer", ":", "why", "?"}
    special = {"causal": {"<pad>", "<unk>", "<bos>", "<eos>"}, "masked": {"<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"}}
    assert set(tokenizer.get_vocab()) == words | special[kind]
    model = BUILD[kind](CONFIG, tokenizer, seed=0)
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer) == len(words | special[kind])
    assert model.get_output_embeddings().weight.shape[0] == len(tokenizer)


def test_every_text_of_the_built_in_world_comes_back():
    rows = scenes.rows("explainer-dev", seed=0, num_rows=40)
    texts = [text for row in rows for text in row.values()]
    tokenizer = word_tokenizer(texts, masked=False)
    assert tokenizer.batch_decode(tokenizer(texts)["input_ids"]) == texts


@kinds
def test_a_folder_reloads_with_the_same_ids_texts_and_weights(kind, folder):
    before, after = tokenizer_of(kind), AutoTokenizer.from_pretrained(folder)
    for text in (TEXT, "Answer: a zebra", "", "why?why"):
        ids = before(text)["input_ids"]
        assert after(text)["input_ids"] == ids
        assert after.decode(ids) == before.decode(ids)
    assert load_tokenizer(str(folder)).all_special_ids == before.all_special_ids
    model, again = BUILD[kind](CONFIG, before, seed=0), LOAD[kind](str(folder), "float32")
    assert type(again) is {"causal": LlamaForCausalLM, "masked": BertForMaskedLM}[kind]
    for (name, one), (other_name, other) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert name == other_name and torch.equal(one, other)
    assert next(LOAD[kind](str(folder), "bfloat16").parameters()).dtype == torch.bfloat16


@kinds
def test_the_weights_of_a_new_model_follow_its_seed_only(kind):
    torch.manual_seed(7)
    one, same, other = (BUILD[kind](CONFIG, tokenizer_of(kind), seed=seed).get_input_embeddings().weight
                        for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_a_new_masked_model_drops_nothing_out_in_training():
    tokenizer = tokenizer_of("masked")
    model = BUILD["masked"](CONFIG, tokenizer, seed=0).train()
    inputs = tokenizer(TEXT, return_tensors="pt")
    assert torch.equal(model(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize(("head", "num_classes"), [("classes", 3), ("scalar", 1)])
def test_a_judge_from_nothing_has_the_head_of_its_template(head, num_classes):
    model = scratch_judge(CONFIG, tokenizer_of("masked"), 0, head, num_classes)
    assert type(model) is BertForSequenceClassification
    assert model.classifier.weight.shape == (num_classes, CONFIG.hidden_size)
    again = scratch_judge(CONFIG, tokenizer_of("masked"), 0, head, num_classes)
    assert torch.equal(model.classifier.weight, again.classifier.weight)


@pytest.mark.parametrize("kind", ["masked"])
def test_a_head_that_a_judge_lacks_is_drawn_from_the_seed_and_its_encoder_is_kept(kind, folder):
    encoder = load_judge(str(folder), "float32", 0, "slot", 3).bert.state_dict()
    torch.manual_seed(7)
    one, same, other = (load_judge(str(folder), "float32", seed, "classes", 3) for seed in (0, 0, 1))
    assert torch.equal(one.classifier.weight, same.classifier.weight)
    assert not torch.equal(one.classifier.weight, other.classifier.weight)
    assert all(torch.equal(encoder[name], tensor) for name, tensor in one.bert.state_dict().items() if name in encoder)
    assert one.config.num_labels == 3


@pytest.mark.parametrize("kind", ["masked"])
def test_a_skeleton_has_shapes_and_no_weights(kind, folder):
    bones = skeleton(str(folder), AutoModelForMaskedLM)
    assert all(tensor.is_meta for tensor in bones.parameters())
    shapes = {name: tensor.shape for name, tensor in BUILD[kind](CONFIG, tokenizer_of(kind), seed=0).named_parameters()}
    assert {name: tensor.shape for name, tensor in bones.named_parameters()} == shapes


@kinds
def test_published_shapes_are_those_of_the_parameters(kind, folder):
    model = BUILD[kind](CONFIG, tokenizer_of(kind), seed=0)
    assert published_shapes(str(folder)) == {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}


@pytest.mark.parametrize("kind", ["causal"])
def test_a_tied_output_layer_in_a_checkpoint_is_published_once(kind, folder):
    parameters = dict(load_causal_lm(str(folder), "float32").named_parameters())
    tied = parameters["model.embed_tokens.weight"].clone()
    save_file(parameters | {"lm_head.weight": tied}, folder / "model.safetensors", metadata={"format": "pt"})
    assert "lm_head.weight" in checkpoint_shapes(folder)
    assert published_shapes(str(folder)).keys() == parameters.keys()


@kinds
def test_the_context_is_what_the_configuration_says(kind, folder):
    assert context_length(str(folder)) == 48
    assert absolute(str(folder)) == str(folder)
    assert absolute("some/name") == "some/name" and absolute(None) is None


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (["config.json"], "policy.model must hold config.json, got folder '{folder}' without one"),
        (["model.safetensors"],
         "policy.model must hold weights as *.safetensors, got folder '{folder}' without any; save the model with "
         "save_pretrained(folder)"),
        (["tokenizer.json", "tokenizer_config.json"],
         "policy.model must hold a tokenizer, got folder '{folder}' without tokenizer.json; save it with "
         "tokenizer.save_pretrained(folder)"),
    ],
)
def test_a_folder_with_a_part_missing_is_refused_by_that_part(folders, tmp_path, missing, message):
    folder = tmp_path / "model"
    shutil.copytree(folders.causal, folder)
    refuse_incomplete(str(folder), "policy.model")
    for name in missing:
        (folder / name).unlink()
    with pytest.raises(UserError) as caught:
        refuse_incomplete(str(folder), "policy.model")
    assert str(caught.value) == message.replace("{folder}", str(folder))


def test_weights_that_are_cut_short_are_refused(folders, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(folders.causal, folder)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"weights must be whole, got {path} with "):
        refuse_incomplete(str(folder), "policy.model")


def test_a_path_that_is_not_there_is_refused_and_a_hub_name_is_not_looked_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    for name in (str(tmp_path / "nothing"), "./nothing", "a/b/c", "outputs/nothing"):
        with pytest.raises(UserError, match=f"policy.model must be a model folder, got '{name}', which is not there"):
            refuse_incomplete(name, "policy.model")
    for name in ("gpt2", "some-organisation/some-model"):
        refuse_incomplete(name, "policy.model")


@pytest.mark.parametrize(
    ("name", "text", "read", "message"),
    [
        ("tokenizer.json", "{", load_tokenizer, "tokenizer must be loadable from '{folder}', got: "),
        ("config.json", "{", context_length, "configuration must be loadable from '{folder}', got: "),
        ("config.json", '{"model_type": "mystery"}', context_length,
         "configuration must be loadable from '{folder}', got: The checkpoint you are trying to load has model type "
         "`mystery`"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_in_one_line(folders, tmp_path, name, text, read, message):
    folder = tmp_path / "model"
    shutil.copytree(folders.causal, folder)
    (folder / name).write_text(text)
    with pytest.raises(UserError) as caught:
        read(str(folder))
    assert str(caught.value).startswith(message.replace("{folder}", str(folder)))
    assert "\n" not in str(caught.value)


def test_half_a_tokenizer_is_refused_in_one_line(folders, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(folders.causal, folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"^tokenizer must be loadable from '.*', got: Couldn't instantiate .*hub$"):
        load_tokenizer(str(folder))


def test_code_that_comes_with_a_folder_is_not_run(folders, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(folders.causal, folder)
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (folder / "config.json").write_text(
        '{"model_type": "mystery", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}}')
    with pytest.raises(UserError, match=r"configuration must be loadable from"):
        context_length(str(folder))
    with pytest.raises(ValueError):
        load_causal_lm(str(folder), "float32")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["masked"])
def test_a_judge_that_should_be_trained_is_refused_without_its_head(kind, folder):
    with pytest.raises(UserError, match=r"weights of .* must hold its head, got none for \d+ such as "):
        load_judge(str(folder), "float32", 0, "classes", 3, is_trained=True)
