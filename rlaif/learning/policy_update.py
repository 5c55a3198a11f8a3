"""The policy update of a step, apart from what models compute: columns, rows and their order, weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import torch

from rlaif.config.algorithm import AlgorithmConfig
from rlaif.learning.objectives import PolicyOptions
from rlaif.policy.estimation import AdvantageInputs, Estimated
from rlaif.policy.token_weights import token_weights

__all__ = ["Columns", "advantage_inputs", "columns_of_step", "minibatches", "needed_columns"]

Columns = dict[str, list]       # one entry a row: a number, or a list with an entry a completion token


def needed_columns(algorithm: AlgorithmConfig, kl_coefficient: float) -> list[str]:
    """What models compute of all rows before the first optimizer step, without gradient."""
    has_reward_kl = algorithm.kl_in == "reward" and kl_coefficient > 0
    needed = {
        # In the one step of an update they are the logprobs themselves.
        "proximal_logprobs": algorithm.num_epochs * algorithm.num_minibatches > 1 or has_reward_kl,
        "reference_logprobs": kl_coefficient > 0,
        "values": algorithm.advantage == "gae",
    }
    return [name for name, is_needed in needed.items() if is_needed]


def advantage_inputs(rows: pa.Table, prepared: Mapping[str, list], options: PolicyOptions, kl_coefficient: float
                     ) -> AdvantageInputs:
    """What `estimate` takes of SCORED `rows` and of what models said of them."""
    separate = options.algorithm.parts == "separate"
    return AdvantageInputs(
        rewards=rows["reward"].to_pylist(), group_index=rows["group_id"].to_pylist(),
        num_tokens=rows["completion_ids"].combine_chunks().value_lengths().to_pylist(),
        is_cut=[reason == "length" for reason in rows["finish_reason"].to_pylist()], max_tokens=options.max_tokens,
        kl_coefficient=kl_coefficient,
        reward_terms=[dict(terms) for terms in rows["reward_terms"].to_pylist()] if separate else None,
        term_weights=options.term_weights if separate else None,
        proximal_logprobs=prepared.get("proximal_logprobs"), reference_logprobs=prepared.get("reference_logprobs"),
        values=prepared.get("values"))


def minibatches(group_ids: Sequence[int], num_minibatches: int, seed: Sequence[int]) -> list[list[int]]:
    """Row indices of every optimizer step of a pass: groups in an order that `seed` draws, cut into equal numbers of
    rows; groups stay whole where their sizes allow it.

    A cut at the edges of groups would leave parts of unequal numbers of rows, and each part is one mean: its rows would
    weigh unequally. With mean: group a group that is cut is one of the groups of each of its parts.
    """
    if num_minibatches == 1:
        return [list(range(len(group_ids)))]
    members: dict[int, list[int]] = {}
    for row, group in enumerate(group_ids):
        members.setdefault(group, []).append(row)
    groups = list(members.values())
    order = [row for group in np.random.default_rng(list(seed)).permutation(len(groups)) for row in groups[group]]
    return [part.tolist() for part in np.array_split(np.array(order), min(num_minibatches, len(order)))]


def columns_of_step(rows: pa.Table, chosen: Sequence[int], estimated: Estimated, prepared: Mapping[str, list],
                    options: PolicyOptions) -> tuple[list[int], Columns]:
    """Of the `chosen` rows of an update those with a token to learn, and the columns of the policy objective for them.

    The weights are those of the whole optimizer step, so rows without a token can be left out of it.
    """
    sizes = rows["completion_ids"].combine_chunks().value_lengths().to_pylist()
    num_tokens = [sizes[row] * estimated.kept[row] for row in chosen]
    groups, sample_weights = rows["group_id"].to_pylist(), rows["sample_weight"].to_pylist()
    weights = token_weights(
        options.algorithm.mean, torch.tensor(num_tokens, dtype=torch.int64),
        torch.tensor([groups[row] for row in chosen], dtype=torch.int64), options.max_tokens,
        torch.tensor([sample_weights[row] for row in chosen], dtype=torch.float64))
    places = [place for place, size in enumerate(num_tokens) if size > 0]
    kept = [chosen[place] for place in places]
    columns: Columns = {name: [values[row] for row in kept] for name, values in prepared.items()}
    columns["advantages"] = [estimated.advantages[row] for row in kept]
    columns["loss_mask"] = [[True] * sizes[row] for row in kept]
    columns["token_weights"] = [float(weights[place]) for place in places]
    if estimated.returns is not None:
        columns["returns"] = [estimated.returns[row] for row in kept]
    return kept, columns
