import functools

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from rlaif.learning.completion_model import CompletionModel, Reading, examine
from rlaif.learning.critic import Critic, ValueHead
from rlaif.modeling.packed_attention import ATTENTION

SIZES = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64, "initializer_range": 0.2,
         "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GPT2 = {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.2,
        "bos_token_id": 1, "eos_token_id": 2}
# kind -> model, how it is read
MODELS = {
    "qwen2": (lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)), Reading(True, True, "")),
    "sliding window": (lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=4)), Reading(True, True, "")),
    "learned positions": (lambda: GPT2LMHeadModel(GPT2Config(**GPT2)), Reading(True, True, "")),
    "bias at the output": (lambda: PhiForCausalLM(PhiConfig(**SIZES)), Reading(
        True, False, "logits are whole: the output matrix is a Linear with a bias or of its own kind")),
    "capped logits": (lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8, sliding_window=4)), Reading(
        False, False, "rows are padded: attention must be plain and causal to be packed, got ['softcap']; logits are "
                      "whole: logits are not the last states times the output matrix")),
    "states that run on": (lambda: MambaForCausalLM(MambaConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, state_size=4)), Reading(
        False, True, "rows are padded: end to end, rows see each other or stand at wrong positions")),
}
PROMPTS = [[5, 6, 7, 8, 9], [10, 11], [5, 6, 7, 8, 9], [12], [13] * 20, [10, 11]]
COMPLETIONS = [[20, 21, 22], [23] * 9, [24], [25, 26], [27, 28, 29, 30], [31, 32]]


@functools.cache
def made(kind):
    torch.manual_seed(0)
    model = MODELS[kind][0]().eval()
    model.set_attn_implementation("eager")
    plain = found(CompletionModel(model))
    return model, plain, examine(model)


def found(module, rows=slice(None), **options):
    """Logprobs, entropy, and the gradients of a sum of both with unequal weights."""
    module.zero_grad()
    predicted = module(PROMPTS[rows], COMPLETIONS[rows], temperature=1.3, with_entropy=True, **options)
    weights = torch.linspace(-1, 1, len(predicted.logprobs))
    ((predicted.logprobs + 0.5 * predicted.entropy) * weights).sum().backward()
    gradients = {name: weight.grad.clone() for name, weight in module.named_parameters() if weight.grad is not None}
    return predicted.logprobs.detach(), predicted.entropy.detach(), gradients


def assert_same(got, want):
    torch.testing.assert_close(got[0], want[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(got[1], want[1], atol=1e-5, rtol=0)
    assert got[2].keys() == want[2].keys()
    for name, gradient in want[2].items():
        torch.testing.assert_close(got[2][name], gradient, atol=1e-5 * max(1.0, float(gradient.abs().max())), rtol=0,
                                   msg=name)


@pytest.mark.parametrize("kind", MODELS)
def test_what_a_model_can_is_found_out_and_said(kind):
    model, _, reading = made(kind)
    assert reading == MODELS[kind][1]
    assert model.config._attn_implementation == (ATTENTION if reading.is_packed else "eager")


@pytest.mark.parametrize("kind", MODELS)
def test_logprobs_entropy_and_gradients_are_those_of_padded_rows_and_whole_logits(kind):
    model, plain, reading = made(kind)
    assert_same(found(CompletionModel(model, reading=reading)), plain)


@pytest.mark.parametrize("is_packed", [True, False])
def test_a_row_does_not_depend_on_its_company(is_packed):
    model, plain, _ = made("qwen2")
    module = CompletionModel(model, reading=Reading(is_packed, True, ""))
    alone = [found(module, slice(row, row + 1)) for row in range(len(PROMPTS))]
    for number in (0, 1):
        torch.testing.assert_close(torch.cat([part[number] for part in alone]), plain[number], atol=1e-5, rtol=0)


def test_whole_logits_are_never_there():
    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for item in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(item, torch.Tensor) and item.ndim >= 2 and item.shape[-1] == 50:
                    self.largest = max(self.largest, item.numel() // 50)
            return out

    model, _, reading = made("qwen2")
    with pytest.MonkeyPatch.context() as patch, Watch() as watch:
        patch.setattr("rlaif.modeling.logprobs._CHUNK_LOGITS", {False: 150})
        found(CompletionModel(model, reading=reading))
    assert watch.largest == 32      # a gradient of the matrix, [50, 32] transposed; a chunk has 3 rows of logits


@pytest.mark.parametrize("is_packed", [True, False])
def test_layers_that_are_computed_again_have_the_same_gradient(is_packed):
    torch.manual_seed(0)
    model = MODELS["qwen2"][0]().eval()
    reading = examine(model, packing=is_packed)
    plain = found(CompletionModel(model, reading=reading))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    module = CompletionModel(model, reading=reading).train()
    assert model.model.layers[0].gradient_checkpointing
    assert_same(found(module), plain)


def test_packing_can_be_switched_off():
    torch.manual_seed(0)
    model = MODELS["qwen2"][0]()
    assert examine(model, packing=False) == Reading(False, True, "rows are padded: learner.packing is false")
    assert model.training and model.config._attn_implementation != ATTENTION


def test_the_attention_is_not_written_into_a_saved_folder(tmp_path):
    model, _, _ = made("qwen2")
    model.save_pretrained(tmp_path)
    assert ATTENTION not in (tmp_path / "config.json").read_text()
    assert Qwen2ForCausalLM.from_pretrained(tmp_path).config._attn_implementation != ATTENTION


# --- values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reading", [Reading(True, True, ""), Reading(False, False, "")], ids=["packed", "padded"])
def test_values_are_a_line_through_the_state_before_each_token(reading):
    model, _, _ = made("qwen2")
    head = ValueHead(32, torch.float32)
    torch.nn.init.normal_(head.read.weight)
    torch.nn.init.constant_(head.read.bias, 0.25)
    values = CompletionModel(model, head, reading)(PROMPTS, COMPLETIONS, with_values=True).values
    want = []
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
        states = model.model(torch.tensor([prompt + completion]), use_cache=False).last_hidden_state[0]
        want.append((states @ head.read.weight[0] + 0.25)[len(prompt) - 1 : -1])
    torch.testing.assert_close(values, torch.cat(want), atol=1e-5, rtol=0)


def test_a_critic_of_its_own_begins_at_zero_and_is_packed_with_the_policy():
    model, _, _ = made("qwen2")
    torch.manual_seed(1)
    base = MODELS["learned positions"][0]().transformer
    critic = Critic(base)
    reading = examine(model, critic)
    assert reading.is_packed and base.config._attn_implementation == ATTENTION
    module = CompletionModel(model, critic, reading).eval()
    assert module(PROMPTS, COMPLETIONS, with_values=True).values.tolist() == [0.0] * 21
    torch.nn.init.normal_(critic.head.read.weight)
    packed = module(PROMPTS, COMPLETIONS, with_values=True).values
    module.reading = Reading(False, True, "")
    torch.testing.assert_close(packed, module(PROMPTS, COMPLETIONS, with_values=True).values, atol=1e-5, rtol=0)


def test_a_critic_that_cannot_be_packed_keeps_the_policy_padded():
    torch.manual_seed(0)
    model = MODELS["qwen2"][0]()
    reading = examine(model, Critic(MODELS["capped logits"][0]().model))
    assert not reading.is_packed and model.config._attn_implementation != ATTENTION
