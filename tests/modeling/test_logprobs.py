import math

import pytest
import torch

from rlaif.modeling.logprobs import chosen_logprobs, token_entropy, token_logprobs


def reference(logits, labels, temperature=1.0):
    return torch.log_softmax(logits.float() / temperature, -1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def example(dtype=torch.float32, shape=(3, 7, 11), seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = (4 * torch.randn(shape, generator=generator)).to(dtype)
    return logits, torch.randint(0, shape[-1], shape[:2], generator=generator)


def test_token_logprobs_by_hand():
    logits = torch.tensor([[[0.0, math.log(3.0)], [0.0, 0.0]]])
    got = token_logprobs(logits, torch.tensor([[1, 0]]))
    assert got[0].tolist() == pytest.approx([math.log(0.75), math.log(0.5)])
    # at temperature 1/2 the odds 3:1 become 9:1
    assert token_logprobs(logits, torch.tensor([[1, 0]]), temperature=0.5)[0, 0].item() == pytest.approx(
        math.log(0.9)
    )


@pytest.mark.parametrize("chunk", [1, 4, 6, 1000])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_logprobs_agree_with_log_softmax_in_value_and_gradient(chunk, temperature):
    logits, labels = example()
    upstream = torch.randn(labels.shape, generator=torch.Generator().manual_seed(1))
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    got = token_logprobs(ours, labels, temperature=temperature, chunk=chunk)
    want = reference(theirs, labels, temperature)
    torch.testing.assert_close(got, want)
    got.backward(upstream)
    want.backward(upstream)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_token_logprobs_pass_a_numerical_gradient_check():
    logits, labels = example(torch.float64, (2, 3, 4))
    torch.autograd.gradcheck(
        lambda x: token_logprobs(x, labels, temperature=0.8, chunk=2), logits.requires_grad_()
    )


def test_token_logprobs_of_half_precision_logits_are_float32():
    logits, labels = example(torch.bfloat16)
    logits.requires_grad_()
    got = token_logprobs(logits, labels)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, reference(logits, labels))
    got.sum().backward()
    assert logits.grad.dtype == torch.bfloat16


def test_token_logprobs_take_a_slice_that_is_not_contiguous():
    logits, labels = example()
    torch.testing.assert_close(
        token_logprobs(logits[:, :-1], labels[:, 1:], chunk=2), reference(logits[:, :-1], labels[:, 1:])
    )


def test_a_forbidden_token_has_no_probability_and_no_nan_gradient():
    logits = torch.tensor([[[0.0, -math.inf, 0.0]]], requires_grad=True)
    got = token_logprobs(logits, torch.tensor([[2]]))
    got.sum().backward()
    assert got.item() == pytest.approx(math.log(0.5))
    assert logits.grad.flatten().tolist() == pytest.approx([-0.5, 0.0, 0.5])
    assert token_entropy(logits).item() == pytest.approx(math.log(2))


def test_entropy_by_hand_and_against_a_distribution():
    assert token_entropy(torch.zeros(1, 2, 8))[0].tolist() == pytest.approx([math.log(8)] * 2)
    logits, _ = example()
    want = torch.distributions.Categorical(logits=logits / 0.7).entropy()
    torch.testing.assert_close(token_entropy(logits, temperature=0.7, chunk=4), want)


@pytest.mark.parametrize("chunk", [1, 3, 1000, None])
@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (0.5, -2.0)], ids=["logprob", "entropy", "both"])
def test_chosen_logprobs_and_entropy_agree_with_log_softmax_in_value_and_gradient(chunk, weights):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(8, 5, generator=generator), torch.randn(11, 5, generator=generator)
    labels = torch.randint(0, 11, (8,), generator=generator)
    upstream = torch.randn(2, 8, generator=generator) * torch.tensor(weights).unsqueeze(1)
    ours = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    theirs = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    got = torch.stack(chosen_logprobs(*ours, labels, temperature=0.7, chunk=chunk))
    logits = theirs[0] @ theirs[1].T
    want = torch.stack([reference(logits, labels, 0.7),
                        torch.distributions.Categorical(logits=logits / 0.7).entropy()])
    torch.testing.assert_close(got, want)
    (got * upstream).sum().backward()
    (want * upstream).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def test_chosen_logprobs_pass_a_numerical_gradient_check():
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)
                      for shape in ((5, 3), (7, 3)))
    labels = torch.tensor([0, 6, 3, 3, 1])
    torch.autograd.gradcheck(lambda *parts: chosen_logprobs(*parts, labels, temperature=1.3, chunk=2), (hidden, weight))


def test_chosen_logprobs_leave_out_what_is_not_asked_for_or_trained():
    hidden, weight = torch.randn(4, 3), torch.randn(5, 3, requires_grad=True)
    logprobs, entropy = chosen_logprobs(hidden, weight, torch.zeros(4, dtype=torch.int64), with_entropy=False)
    assert entropy is None
    logprobs.sum().backward()
    assert hidden.grad is None and weight.grad is not None


def test_chosen_logprobs_of_half_precision_states_are_float32():
    hidden, weight = (torch.randn(4, 3).bfloat16().requires_grad_() for _ in range(2))
    logprobs, entropy = chosen_logprobs(hidden, weight, torch.zeros(4, dtype=torch.int64))
    assert logprobs.dtype == entropy.dtype == torch.float32
    logprobs.sum().backward()
    assert hidden.grad.dtype == weight.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("chunk", [512, 8, 1])
def test_the_gradient_of_a_half_precision_weight_does_not_depend_on_the_chunk(chunk):
    """Each chunk's share is rounded to bfloat16 (0.4 % at most); their sum is not."""
    torch.manual_seed(0)
    hidden, weight, labels = torch.randn(512, 16), torch.randn(32, 16), torch.randint(0, 32, (512,))
    whole = weight.clone().requires_grad_()
    chosen_logprobs(hidden.bfloat16().float(), whole, labels)[0].sum().backward()
    half = weight.bfloat16().requires_grad_()
    chosen_logprobs(hidden.bfloat16(), half, labels, chunk=chunk)[0].sum().backward()
    error = (half.grad.float() - whole.grad).norm() / whole.grad.norm()
    assert error < 0.01, float(error)


@pytest.mark.parametrize("chunk", [2, 1000])
def test_entropy_has_the_gradient_of_a_distributions(chunk):
    logits, _ = example()
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    token_entropy(ours, temperature=0.7, chunk=chunk).sum().backward()
    torch.distributions.Categorical(logits=theirs / 0.7).entropy().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_chosen_logprobs_never_hold_logits_of_more_than_a_chunk():
    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for item in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(item, torch.Tensor) and item.ndim == 2 and item.shape[1] == 500:
                    self.largest = max(self.largest, item.shape[0])
            return out

    hidden = torch.randn(64, 4, requires_grad=True)
    weight = torch.randn(500, 4, requires_grad=True)
    with Watch() as watch:
        chosen_logprobs(hidden, weight, torch.zeros(64, dtype=torch.int64), chunk=8)[0].sum().backward()
    assert watch.largest == 8


def test_no_rows_give_no_logprobs():
    labels = torch.empty(0, dtype=torch.int64)
    logprobs, entropy = chosen_logprobs(torch.empty(0, 3), torch.empty(5, 3), labels)
    assert logprobs.shape == entropy.shape == (0,)
    assert token_logprobs(torch.empty(2, 0, 5), torch.empty(2, 0, dtype=torch.int64)).shape == (2, 0)


def test_a_temperature_of_zero_is_refused():
    logits, labels = example()
    with pytest.raises(ValueError, match=r"temperature must be > 0, got 0.0"):
        token_logprobs(logits, labels, temperature=0.0)
