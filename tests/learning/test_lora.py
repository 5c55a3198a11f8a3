import math

import pytest
import torch

from rlaif.config.checks import UserError
from rlaif.config.learner import LearnerConfig, LoraConfig
from rlaif.config.train import ScratchConfig
from rlaif.learning.completion_model import CompletionModel, examine
from rlaif.learning.learner import Learner
from rlaif.learning.lora import add_lora, lora_off, whole_weights
from rlaif.learning.objectives import PreferenceObjective, SupervisedObjective
from rlaif.metrics import values
from rlaif.modeling.models import load_causal_lm, scratch_causal_lm, without_dropout, word_tokenizer
from rlaif.policy.preference_loss import PreferenceOptions
from tests.helpers.ranks import TorchEngine
from tests.learning.test_learner import pairs, sentences

CONFIG = ScratchConfig(hidden_size=16, num_layers=2, num_heads=2, intermediate_size=24, max_positions=64,
                       initializer_range=0.3)
TOKENIZER = word_tokenizer(["red blue cat dog so it is the answer yes no low high . runs sits"], masked=False)
PROMPTS, COMPLETIONS = [[4, 5, 6], [7]], [[8, 9], [10, 11, 12]]


def causal_lm():
    return scratch_causal_lm(CONFIG, TOKENIZER, seed=0).double()


def with_lora(rank=4, **options):
    model = causal_lm()
    add_lora(model, LoraConfig(rank=rank, **options), seed=1)
    return model


def scatter(model):
    """Draws the adapters' second factors, which begin at zero."""
    generator = torch.Generator().manual_seed(2)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3, generator=generator)


def logprobs(model):
    with torch.no_grad():
        return CompletionModel(model)(PROMPTS, COMPLETIONS).logprobs


def merged(model):
    return {weight.name: weight.merge(*weight.parts) for weight in whole_weights(model)}


@pytest.mark.parametrize("targets", [["lm_head"], ["q_proj", "lm_head"]])
def test_an_output_layer_that_shares_its_weight_with_the_embedding_takes_no_adapter(targets):
    """Whoever reads the weights finds one matrix for both, so that the adapter would stay behind."""
    with pytest.raises(UserError, match=r"must not name an output layer that shares its weight .* got 'lm_head'"):
        with_lora(target_modules=targets)


def test_adapters_are_trained_alone_and_begin_without_effect():
    model = with_lora()
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if "lora_" in name}
    assert len(trained) == 2 * 7 * 2      # two factors of seven matrices in two layers; not the output's
    torch.testing.assert_close(logprobs(model), logprobs(causal_lm()), atol=0, rtol=0)


def test_merged_weights_are_those_of_a_model_without_adapters_in_name_and_effect(tmp_path):
    model, plain = with_lora(alpha=2.0), causal_lm()
    scatter(model)
    weights = merged(model)
    assert {name: weight.shape for name, weight in weights.items()} == {
        name: weight.shape for name, weight in plain.named_parameters()}
    # W + alpha / rank * B A, by hand for one matrix
    layer = model.model.layers[1].mlp.up_proj
    want = layer.base_layer.weight + 2.0 / 4 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(weights["model.layers.1.mlp.up_proj.weight"], want.detach(), atol=1e-12, rtol=0)
    assert not torch.allclose(logprobs(model), logprobs(plain))
    model.save_pretrained(tmp_path, state_dict={name: weight.float() for name, weight in weights.items()})
    loaded = load_causal_lm(str(tmp_path), "float32")
    torch.testing.assert_close(logprobs(loaded), logprobs(model).float(), atol=1e-5, rtol=0)


def test_off_the_adapters_the_model_is_its_start_and_on_again_what_it_was():
    model = with_lora()
    scatter(model)
    on = logprobs(model)
    with lora_off(model):
        torch.testing.assert_close(logprobs(model), logprobs(causal_lm()), atol=0, rtol=0)
    assert torch.equal(logprobs(model), on)
    assert all(weight.requires_grad == ("lora_" in name) for name, weight in model.named_parameters())


def learner(model, objective):
    module = CompletionModel(model, reading=examine(model))
    assert module.reading.is_packed and module.reading.is_chunked
    return Learner(LearnerConfig(), objective, module, TorchEngine(module), seed=0, total_steps=10)


def test_at_full_rank_adapters_learn_what_the_weights_themselves_learn():
    # With A the identity and alpha = rank, B moves as W would: its gradient is that of W, and both begin at rest.
    adapted, plain = with_lora(rank=24, alpha=24.0), causal_lm()
    for layer in adapted.modules():
        if hasattr(layer, "lora_A"):
            first = layer.lora_A["default"].weight
            first.data = torch.eye(24, dtype=first.dtype)[:, : first.shape[1]].clone()
            first.requires_grad_(False)
    for name, weight in plain.named_parameters():
        weight.requires_grad_("proj" in name)
    learners = [learner(model, SupervisedObjective()) for model in (adapted, plain)]
    losses = [[values(some.update(sentences()))["loss"] for _ in range(5)] for some in learners]
    assert losses[0] == pytest.approx(losses[1], abs=1e-9) and losses[0][4] < losses[0][0] - 0.1
    want = dict(plain.named_parameters())
    for name, weight in merged(adapted).items():
        torch.testing.assert_close(weight, want[name].detach(), atol=1e-7, rtol=0, msg=name)


def test_without_adapters_the_policy_is_the_reference():
    some = learner(with_lora(), PreferenceObjective(PreferenceOptions(beta=1.0)))
    first = values(some.update(pairs()))
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-9)
    later = [values(some.update(pairs())) for _ in range(5)][-1]
    assert later["loss"] < first["loss"] and later["implicit_reward_margin"] > 0
    with lora_off(some._module.model):
        torch.testing.assert_close(logprobs(some._module.model), logprobs(causal_lm()), atol=0, rtol=0)


def test_dropout_of_adapters_is_gone_where_a_policy_is_trained():
    model = with_lora(dropout=0.5)
    scatter(model)
    still = logprobs(model.eval())
    assert not torch.equal(logprobs(model.train()), still)
    without_dropout(model)
    assert torch.equal(logprobs(model.train()), still)


def test_layers_can_be_chosen_and_unknown_ones_are_refused():
    model = with_lora(target_modules=["q_proj", "v_proj"])
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == 4
    with pytest.raises(UserError, match=r"learner\.lora\.target_modules must be ends of names of linear layers, such "
                                        r"as down_proj, gate_proj, .*; got 'query'"):
        with_lora(target_modules=["q_proj", "query"])
