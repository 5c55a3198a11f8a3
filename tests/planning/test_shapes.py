import pytest
import torch
from transformers import AutoModelForCausalLM

from rlaif.config.checks import UserError
from rlaif.config.learner import LoraConfig
from rlaif.learning.lora import add_lora
from rlaif.modeling.weights import checkpoint_shapes
from rlaif.planning.shapes import is_causal, shape_of

QWEN = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": 3584, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "intermediate_size": 18944, "vocab_size": 152064,
        "tie_word_embeddings": False}
BERT = {"model_type": "modernbert", "architectures": ["ModernBertForMaskedLM"], "hidden_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
MODELS = {"qwen": QWEN, "bert": BERT}


def test_a_described_model_has_the_size_that_its_card_says():
    shape = shape_of("qwen", "causal", MODELS, "policy.model")
    assert shape.num_weights == 7_615_616_512               # the model card: 7.61 billion, 6.53 without embeddings
    assert shape.num_in_products == 7_615_616_512 - 152_064 * 3_584
    assert (shape.num_layers, shape.hidden_size, shape.kv_width, shape.num_kv_heads) == (28, 3584, 512, 4)


def test_a_folder_has_the_size_of_its_weights(folders):
    shape = shape_of(str(folders.causal), "causal", {}, "policy.model")
    there = {name: torch.Size(size).numel() for name, size in checkpoint_shapes(folders.causal).items()}
    assert shape.num_weights == sum(there.values())
    assert shape.num_looked_up == 0     # tied: the embedding is the output matrix too


@pytest.mark.parametrize("targets", [[], ["q_proj", "down_proj"]])
def test_adapters_have_as_many_weights_as_peft_gives_them(folders, targets):
    lora = LoraConfig(rank=4, target_modules=targets)
    model = AutoModelForCausalLM.from_pretrained(folders.causal)
    add_lora(model, lora, 0)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert shape_of(str(folders.causal), "causal", {}, "policy.model").num_trained([], lora) == trained


def test_frozen_parts_are_not_trained(folders):
    shape = shape_of(str(folders.causal), "causal", {}, "policy.model")
    frozen = sum(count for name, count in shape.weights.items() if "mlp" in name)
    assert frozen > 0 and shape.num_trained(["mlp"], LoraConfig()) == shape.num_weights - frozen


def test_matrices_are_those_of_the_layers(folders):
    shape = shape_of(str(folders.causal), "causal", {}, "policy.model")
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in shape.matrices} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_an_encoder_is_read_as_one_and_knows_that_it_does_not_write():
    assert shape_of("bert", "masked", MODELS, "reward.model").num_layers == 2
    assert not is_causal("bert", MODELS, "reward.model") and is_causal("qwen", MODELS, "reward.model")


def test_a_model_that_is_nowhere_is_refused_without_asking_a_hub():
    with pytest.raises(UserError, match=r"policy.model must be a model on this machine or under models in the file of "
                                        r"--plan, got 'some/model', which is neither"):
        shape_of("some/model", "causal", MODELS, "policy.model")


def test_a_description_that_is_none_is_refused():
    with pytest.raises(UserError, match=r"models must describe 'odd' by fields of its config.json, got: "):
        shape_of("odd", "causal", {"odd": {"model_type": "no_such_type"}}, "policy.model")
    with pytest.raises(UserError, match=r"reward.model must have the configuration of a masked model, got 'qwen'"):
        shape_of("qwen", "masked", MODELS, "reward.model")
