import threading
from unittest import mock

import pytest
import torch
from transformers import (
    AttentionInterface,
    AutoModelForMaskedLM,
    BertConfig,
    DebertaConfig,
    DebertaV2Config,
    DistilBertConfig,
    ModernBertConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

from rlaif.esfp import encoder
from rlaif.esfp.encoder import states_at
from rlaif.modeling.collate import pad_right

SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
MARKS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
CONFIGS = {
    "bert": BertConfig(vocab_size=40, **SMALL),
    "roberta": RobertaConfig(vocab_size=40, pad_token_id=0, max_position_embeddings=60, **SMALL),
    "xlm-roberta": XLMRobertaConfig(vocab_size=40, pad_token_id=1, max_position_embeddings=60, **SMALL),
    "distilbert": DistilBertConfig(vocab_size=40, dim=16, n_layers=3, n_heads=2, hidden_dim=32),
    # two layers in three see four tokens either way
    "modernbert": ModernBertConfig(vocab_size=40, local_attention=8, global_attn_every_n_layers=2, **MARKS, **SMALL),
    "deberta": DebertaConfig(vocab_size=40, **RELATIVE, **SMALL),
    "deberta-v2": DebertaV2Config(vocab_size=40, **RELATIVE, **SMALL),
}
PACKED = ("bert", "roberta", "xlm-roberta", "distilbert", "modernbert")
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")


def made(kind, **kwargs):
    """A model whose every parameter is random: a bias of zero would hide that it was forgotten."""
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(CONFIGS[kind], **kwargs)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def rows(*lengths, num_slots=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(5, 40, (length,), generator=generator).tolist() for length in lengths]
    return ids, [torch.randperm(length, generator=generator)[:num_slots].tolist() for length in lengths]


def plain(model, ids, positions):
    """What the model's own forward says of the rows padded to the longest."""
    pad = model.config.pad_token_id
    padded, mask = pad_right(ids, pad)
    hidden = model.base_model(input_ids=padded, attention_mask=mask).last_hidden_state
    return hidden[torch.arange(len(ids)).unsqueeze(1), torch.tensor(positions)]


def close(got, want, within=1e-5):
    torch.testing.assert_close(got, want, atol=within, rtol=within)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("with_gradient", [False, True])
def test_states_are_those_of_the_models_own_padded_forward(kind, with_gradient):
    model = made(kind)
    ids, positions = rows(7, 20, 3, 20, 11, 7, 33)
    with torch.set_grad_enabled(with_gradient):
        got = states_at(model, ids, positions, model.config.pad_token_id)
        want = plain(model, ids, positions)
    assert got.shape == (7, 2, 16) and got.requires_grad == with_gradient
    close(got, want)


@pytest.mark.parametrize("kind", CONFIGS)
def test_gradients_are_those_of_the_models_own_padded_forward(kind):
    model = made(kind)
    ids, positions = rows(7, 20, 3, 20, 11)
    weights = torch.randn(5, 2, 16, generator=torch.Generator().manual_seed(1))
    gradients = []
    for states in (states_at(model, ids, positions, model.config.pad_token_id), plain(model, ids, positions)):
        model.zero_grad()
        (states * weights).sum().backward()
        gradients.append({name: p.grad for name, p in model.base_model.named_parameters()})
    got, want = gradients
    largest = max(grad.abs().max() for grad in want.values() if grad is not None)
    for name, grad in want.items():
        close(torch.zeros_like(grad) if got[name] is None else got[name], grad, 1e-5 * max(1.0, float(largest)))


@pytest.mark.parametrize("kind", PACKED)
def test_states_of_a_row_do_not_depend_on_its_neighbours_or_their_order(kind):
    model = made(kind)
    ids, positions = rows(7, 20, 3, 20, 11)
    with torch.no_grad():
        together = states_at(model, ids, positions, 0)
        for n in range(5):
            close(states_at(model, ids[n : n + 1], positions[n : n + 1], 0)[0], together[n], 1e-6)
        order = [3, 0, 4, 2, 1]
        close(states_at(model, [ids[n] for n in order], [positions[n] for n in order], 0), together[order], 1e-6)
        others, _ = rows(7, 20, 3, 20, 11, seed=5)
        mixed = states_at(model, [ids[0], *others[1:]], positions, 0)
    close(mixed[0], together[0], 1e-6)


@pytest.mark.parametrize("kind", PACKED)
def test_no_padding_and_no_last_layer_beyond_the_slots_is_computed(kind):
    model = made(kind)
    sizes = []
    for module in (module for module in model.base_model.modules() if isinstance(module, torch.nn.Linear)):
        module.register_forward_pre_hook(lambda module, args: sizes.append(args[0].numel() // args[0].shape[-1]))
    ids, positions = rows(7, 20, 3)
    with torch.no_grad():
        states_at(model, ids, positions, 0)
    assert sizes[0] == 30 and max(sizes) == 30
    assert sizes[-1] == (30 if kind == "modernbert" else 6)


@pytest.mark.parametrize("kind", PACKED)
def test_bfloat16_states_are_near_those_of_float32(kind):
    model = made(kind)
    ids, positions = rows(7, 20, 3, 20)
    with torch.no_grad():
        want = states_at(model, ids, positions, 0)
        got = states_at(model.to(torch.bfloat16), ids, positions, 0)
    assert got.dtype == torch.bfloat16
    assert (got.float() - want).abs().mean() < 0.03 * want.abs().mean()


def test_one_slot_at_either_end_of_a_row_of_one_token():
    model = made("bert")
    with torch.no_grad():
        got = states_at(model, [[5], [6, 7, 8]], [[0], [2]], 0)
        close(got, plain(model, [[5], [6, 7, 8]], [[0], [2]]))


def test_dropout_is_drawn_in_training_only():
    model = made("bert")
    ids, positions = rows(7, 20)
    close(states_at(model, ids, positions, 0), states_at(model, ids, positions, 0), 0.0)
    model.train()
    assert (states_at(model, ids, positions, 0) - states_at(model, ids, positions, 0)).abs().max() > 0.01


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_model_is_left_with_its_own_attention(attention):
    model = made("bert", attn_implementation=attention)
    ids, positions = rows(7, 20)
    want = plain(model, ids, positions)
    close(states_at(model, ids, positions, 0), want)
    assert model.config._attn_implementation == attention
    with mock.patch.object(type(model.bert.encoder.layer[1]), "forward", side_effect=RuntimeError("broken")), \
            pytest.raises(RuntimeError, match="broken"):
        states_at(model, ids, positions, 0)
    assert model.config._attn_implementation == attention
    close(plain(model, ids, positions), want, 0.0)


def test_threads_that_share_a_model_do_not_disturb_each_other():
    model = made("bert")
    work = [rows(7, 20, 3, seed=seed) for seed in range(8)]
    with torch.no_grad():
        want = [states_at(model, *pair, 0) for pair in work]
    got = [None] * len(work)

    def score(n):
        with torch.no_grad():
            for _ in range(5):
                got[n] = states_at(model, *work[n], 0)

    threads = [threading.Thread(target=score, args=(n,)) for n in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(got, want, strict=True):
        close(one, other, 1e-6)


def test_training_with_checkpoints_has_the_gradients_of_training_without():
    ids, positions = rows(7, 20, 3)
    gradients = []
    for has_checkpoints in (False, True):
        model = made("bert").train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if has_checkpoints:
            model.gradient_checkpointing_enable()
        states_at(model, ids, positions, 0).square().sum().backward()
        gradients.append(model.bert.encoder.layer[0].attention.self.key.weight.grad)
    close(gradients[1], gradients[0], 1e-4)


def test_the_attention_reaches_a_row_whole_at_every_length():
    """Ones as values and scores of zero: each token's mean is over its own row."""
    lengths = [3, 3, 5]
    packed = encoder._pack([[1] * n for n in lengths], [[0]] * 3)
    value = torch.cat([torch.full((n,), float(row)) for row, n in enumerate(lengths)]).view(1, 1, 11, 1)
    value = value.expand(1, 2, 11, 4)
    attend = AttentionInterface()["rows_of_slots"]
    found, _ = attend(torch.nn.Module(), torch.zeros(1, 2, 11, 4), torch.zeros(1, 2, 11, 4), value, None,
                      packed=packed)
    close(found, value.transpose(1, 2))


@pytest.mark.skipif(not encoder._HAS_ONE_DNN, reason="torch is built without oneDNN")
def test_float32_layers_are_multiplied_by_one_dnn_where_no_gradient_is_wanted():
    model = made("bert")
    ids, positions = rows(7, 20)
    product = torch.ops.mkldnn._linear_pointwise
    with mock.patch.object(torch.ops.mkldnn, "_linear_pointwise", wraps=product) as counted:
        with torch.no_grad():
            states_at(model, ids, positions, 0)
        assert counted.call_count == 3 * 6
        states_at(model, ids, positions, 0)
        plain(model, ids, positions)
        assert counted.call_count == 3 * 6


def test_linear_layers_and_norms_in_place_of_torchs_give_what_torchs_give():
    generator = torch.Generator().manual_seed(0)
    states, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((1, 9, 16), (32, 16), (32,)))
    want = torch.einsum("bth,oh->bto", states, weight) + bias
    wanted_norm = (states - states.mean(-1, keepdim=True)) / (states.var(-1, correction=0, keepdim=True) + 1e-3).sqrt()
    with torch.no_grad(), encoder._Products():
        close(torch.nn.functional.linear(states, weight, bias), want)
        close(torch.nn.functional.linear(states, weight), want - bias)
        norm = torch.nn.LayerNorm(16, eps=1e-3)
        close(norm(states), wanted_norm)
        normed = norm.bfloat16()(states.bfloat16())
        assert normed.dtype == torch.float32
        close(normed, wanted_norm, 0.02)
        product = torch.nn.functional.linear(states, weight.bfloat16(), bias=bias.bfloat16())
        assert product.dtype == torch.bfloat16
        close(product.float(), want, 0.05)


def test_bfloat16_errs_less_than_the_models_own_forward():
    torch.manual_seed(0)
    config = BertConfig(vocab_size=40, hidden_size=64, num_hidden_layers=6, num_attention_heads=2,
                        intermediate_size=128, initializer_range=0.05)
    model = AutoModelForMaskedLM.from_config(config).eval()
    ids, positions = rows(*range(3, 35))
    with torch.no_grad():
        want = plain(model, ids, positions)
        model.to(torch.bfloat16)
        errors = [(states.float() - want).abs().mean() for states in (states_at(model, ids, positions, 0),
                                                                      plain(model, ids, positions))]
    assert errors[0] < 0.7 * errors[1]


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_states_are_the_same_where_an_engine_replaced_torchs_linear_layer(kind, monkeypatch):
    model = made(kind)
    ids, positions = rows(7, 20, 3, 20)
    with torch.no_grad():
        want = states_at(model, ids, positions, 0)
        monkeypatch.setattr(torch.nn.functional, "linear",
                            lambda states, weight, bias=None: states.matmul(weight.t()) + (0 if bias is None else bias))
        close(states_at(model, ids, positions, 0), want)
        got = states_at(model.to(torch.bfloat16), ids, positions, 0)
    assert (got.float() - want).abs().mean() < 0.03 * want.abs().mean()
