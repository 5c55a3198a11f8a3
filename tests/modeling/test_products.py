import contextlib

import pytest
import torch
from torch.nn import functional

from rlaif.modeling import products
from rlaif.modeling.products import one_dnn_products, prefers_one_dnn, use_fast_products


def example():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator) for shape in ((3, 40, 64), (48, 64), (48,), (3, 40, 48))]


def linear_and_gradients(states, weight, bias, upstream):
    leaves = [part.clone().requires_grad_() for part in (states, weight, bias)]
    found = functional.linear(*leaves)
    found.backward(upstream)
    return [found.detach(), *(leaf.grad for leaf in leaves)]


def test_values_and_gradients_have_the_error_of_float32_and_the_setting_goes_back():
    before = torch.backends.mkldnn.matmul.fp32_precision
    want = linear_and_gradients(*(part.double() for part in example()))
    with one_dnn_products() if prefers_one_dnn() else contextlib.nullcontext():
        assert use_fast_products() == prefers_one_dnn()
        got = linear_and_gradients(*example())
    for mine, exact in zip(got, want, strict=True):
        torch.testing.assert_close(mine.double(), exact, atol=1e-4, rtol=1e-5)
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_the_setting_goes_back_after_an_error():
    before = torch.backends.mkldnn.matmul.fp32_precision
    with pytest.raises(ZeroDivisionError), one_dnn_products():
        _ = 1 / 0
    assert torch.backends.mkldnn.matmul.fp32_precision == before


@pytest.mark.parametrize("vendor", ["GenuineIntel", ""])
def test_other_processors_keep_torchs_choice(vendor, monkeypatch):
    monkeypatch.setattr(products, "_vendor", lambda: vendor)
    prefers_one_dnn.cache_clear()
    try:
        assert not prefers_one_dnn()
    finally:
        prefers_one_dnn.cache_clear()
