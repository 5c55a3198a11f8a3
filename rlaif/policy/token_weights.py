"""The mean that a loss is: the weight of every token in one optimizer step, known before anything is split."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["token_weights"]


def token_weights(mean: str, num_tokens: Tensor, group_index: Tensor, max_tokens: int,
                  sample_weights: Tensor | None = None) -> Tensor:
    """The weight `[N]` float64 of each token of a row; a loss is then the sum of weight times token loss.

        token     w_i / sum_j w_j n_j                       mean over all tokens
        sequence  w_i / (n_i sum_j w_j)                     mean over rows of the mean over a row's tokens
        group     w_i / (n_g sum_h W_h)                     mean over groups of the mean over a group's tokens
        constant  w_i / (max_tokens sum_j w_j)              sum over a row's tokens, over a constant

    with n_i the tokens of row i, n_g those of its group g, w_i its sample weight, 1 where none is given, and W_h the
    mean sample weight of group h's tokens. Only ratios of sample weights matter.

    num_tokens: `[N]` int64, the masked-in tokens of every row of the optimizer step, of all micro-batches and ranks.
    group_index: `[N]` int64, equal for the rows of one group. max_tokens: the longest completion that may be, >= 1.
    sample_weights: `[N]` float, >= 0. A row, or a group, without a token does not count in a mean; in `constant` it
    does, since there the divisor must not depend on lengths. All weights are 0 where there is nothing to learn.

    Source: token: DAPO (Yu et al. 2025, arXiv 2503.14476), eq. 8; sequence: DeepSeekMath (Shao et al. 2024, arXiv
    2402.03300), eq. 3; constant: Understanding R1-Zero-Like Training (Liu et al. 2025, arXiv 2503.20783), section 3.2;
    group: ScaleRL (Khatri et al. 2025, arXiv 2510.13786), prompt-level aggregation.
    """
    assert num_tokens.ndim == 1 and num_tokens.dtype == torch.int64, (num_tokens.shape, num_tokens.dtype)
    assert group_index.shape == num_tokens.shape and group_index.dtype == torch.int64, (group_index.shape,
                                                                                        group_index.dtype)
    assert max_tokens >= 1, f"max_tokens must be >= 1, got {max_tokens}"
    tokens = num_tokens.double()
    weights = _checked(sample_weights, tokens)
    has_tokens = tokens > 0
    if mean == "token":
        return _over(weights * has_tokens, (weights * tokens).sum())
    if mean == "sequence":
        return _over(weights * has_tokens / tokens.clamp(min=1), (weights * has_tokens).sum())
    if mean == "group":
        ids, index = torch.unique(group_index, return_inverse=True)
        size = tokens.new_zeros(len(ids)).index_add(0, index, tokens)
        total = tokens.new_zeros(len(ids)).index_add(0, index, weights * tokens)
        return _over(weights * has_tokens / size.clamp(min=1)[index], (total / size.clamp(min=1)).sum())
    assert mean == "constant", f"mean must be token, sequence, group or constant, got {mean!r}"
    return _over(weights * has_tokens, weights.sum() * max_tokens)


def _checked(sample_weights: Tensor | None, tokens: Tensor) -> Tensor:
    if sample_weights is None:
        return torch.ones_like(tokens)
    assert sample_weights.shape == tokens.shape, (sample_weights.shape, tokens.shape)
    weights = sample_weights.double()
    is_right = torch.isfinite(weights) & (weights >= 0)
    if not is_right.all():
        row = int((~is_right).nonzero()[0])
        raise ValueError(f"sample_weights must be finite and >= 0, got {float(weights[row])} in row {row}; mend the "
                         "column they come from")
    return weights


def _over(values: Tensor, divisor: Tensor) -> Tensor:
    return values / torch.where(divisor > 0, divisor, 1.0)
