import math

import pytest
import torch
from torch.nn import functional

from rlaif.batch import SUPERVISED, TRAINING
from rlaif.config import ScratchConfig
from rlaif.losses import LossOptions
from rlaif.metrics import Max, values
from rlaif.models import scratch_causal_lm, word_tokenizer
from rlaif.objectives import PolicyObjective, PolicyOptions, SupervisedObjective, completion_logprobs
from tests.batch_examples import table
from tests.objective_examples import SPLITS, assert_split_changes_nothing, loss_and_gradient

WORDS = "red blue cat dog so it is the answer yes no low high . runs sits"
CONFIG = ScratchConfig(hidden_size=16, num_layers=2, num_heads=2, intermediate_size=24, max_positions=64,
                       initializer_range=0.3)
TEMPERATURE = 1.3
OPTIONS = PolicyOptions(LossOptions(kl_coefficient=0.1, clip_low=0.1, clip_high=0.1), TEMPERATURE)
CAUSAL = word_tokenizer([WORDS], masked=False)


def causal_lm():
    return scratch_causal_lm(CONFIG, CAUSAL, seed=0).double()


def token_rows(generator):
    """Six rows of unequal prompts and completions, one completion of a single token."""
    sizes = [(1, 6), (4, 1), (3, 3), (7, 2), (2, 9), (5, 4)]
    draw = lambda size: torch.randint(4, len(CAUSAL), (size,), generator=generator).tolist()  # noqa: E731
    return [{"prompt_ids": draw(prompt), "completion_ids": draw(completion)} for prompt, completion in sizes]


def supervised():
    rows = table(SUPERVISED, *token_rows(torch.Generator().manual_seed(0)))
    return SupervisedObjective(CAUSAL), causal_lm(), rows, {}


def policy():
    generator = torch.Generator().manual_seed(0)
    changes = token_rows(generator)
    objective, model = PolicyObjective(CAUSAL, OPTIONS), causal_lm()
    noisy = lambda logprobs, scale: [  # noqa: E731
        [x + scale * torch.randn((), generator=generator).item() for x in row] for row in logprobs]
    exact = objective.logprobs(model, table(TRAINING, *(
        change | {"rollout_logprobs": [0.0] * len(change["completion_ids"]),
                  "loss_mask": [True] * len(change["completion_ids"])} for change in changes)))
    for row, (change, logprobs) in enumerate(zip(changes, noisy(exact, 0.3), strict=True)):
        change |= {"rollout_logprobs": logprobs, "advantages": [1.0, -0.5, 0.0, 2.0, -1.0, 0.25][row],
                   "loss_mask": [position % 3 != 2 for position in range(len(logprobs))]}
    frozen = {"reference_logprobs": noisy(exact, 0.2), "proximal_logprobs": noisy(exact, 0.2)}
    return objective, model, table(TRAINING, *changes), frozen


CASES = {"supervised": supervised, "policy": policy}


@pytest.mark.parametrize("split", SPLITS, ids=len)
@pytest.mark.parametrize("name", CASES)
def test_loss_gradient_and_metrics_do_not_depend_on_the_split_into_micro_batches(name, split):
    assert_split_changes_nothing(*CASES[name](), split)


@pytest.mark.parametrize("name", CASES)
def test_lengths_and_weights_are_those_of_the_rows(name):
    objective, _, rows, _ = CASES[name]()
    assert objective.lengths(rows) == [7, 5, 6, 9, 11, 9]
    assert objective.weights(rows) == ([6, 1, 3, 2, 9, 4] if name == "supervised" else [4, 1, 2, 2, 6, 3])
    assert objective.lengths(rows.slice(3)) == [9, 11, 9]


@pytest.mark.parametrize("pad_id", [0, 7])
def test_logprobs_depend_neither_on_the_pad_id_nor_on_the_company_of_a_row(pad_id):
    _, model, rows, _ = supervised()
    together, mask = completion_logprobs(model, rows, pad_id)
    for row in range(6):
        alone, alone_mask = completion_logprobs(model, rows.slice(row, 1), 0)
        torch.testing.assert_close(together[row][mask[row]], alone[0][alone_mask[0]], atol=1e-12, rtol=0)


def test_the_supervised_loss_is_torchs_cross_entropy_of_the_completions():
    objective, model, rows, _ = supervised()
    want = 0.0
    for row in rows.to_pylist():
        ids = torch.tensor([row["prompt_ids"] + row["completion_ids"]])
        labels = ids.clone()
        labels[:, : len(row["prompt_ids"])] = -100
        logits = model(input_ids=ids).logits
        want += functional.cross_entropy(logits[0, :-1], labels[0, 1:], ignore_index=-100, reduction="sum") / 25
    loss, metrics = objective.loss(model, rows, 25, {})
    assert loss.item() == pytest.approx(want.item(), abs=1e-6)
    assert values(metrics)["nll"] == pytest.approx(want.item(), abs=1e-6)


def test_the_policys_logprobs_are_those_of_a_log_softmax_at_the_rollout_temperature():
    objective, model, rows, _ = policy()
    for found, row in zip(objective.logprobs(model, rows), rows.to_pylist(), strict=True):
        ids = torch.tensor([row["prompt_ids"] + row["completion_ids"]])
        with torch.no_grad():
            logprobs = torch.log_softmax(model(input_ids=ids).logits[0] / TEMPERATURE, dim=-1)
        first = len(row["prompt_ids"])
        want = [logprobs[first - 1 + t, token].item() for t, token in enumerate(row["completion_ids"])]
        assert found == pytest.approx(want, abs=1e-9)


def test_without_a_proximal_policy_the_gradient_is_that_of_weighted_likelihood():
    # ratio = 1: d loss = -weight * A * d logprob, weight = min(policy / rollout, 2); here the KL term is off
    _, model, rows, _ = policy()
    objective = PolicyObjective(CAUSAL, PolicyOptions(LossOptions(kl_coefficient=0.0), TEMPERATURE))
    _, gradients, _ = loss_and_gradient(objective, model, rows, {}, [list(range(6))])
    model.zero_grad()
    logprobs, mask = completion_logprobs(model, rows, 0, TEMPERATURE)
    for row, found in enumerate(rows.to_pylist()):
        mine = logprobs[row][mask[row]]
        weight = (mine.detach() - torch.tensor(found["rollout_logprobs"], dtype=torch.float64)).exp().clamp(max=2.0)
        kept = torch.tensor(found["loss_mask"])
        (-(weight * found["advantages"] * mine)[kept].sum() / 18).backward(retain_graph=True)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-6, rtol=0, msg=name)


def test_tokens_outside_the_loss_mask_change_nothing():
    objective, model, rows, frozen = policy()
    loss, gradients, _ = loss_and_gradient(objective, model, rows, frozen, [list(range(6))])
    keep = rows["loss_mask"].to_pylist()
    wild = [[x if kept else math.nan for x, kept in zip(row, mask, strict=True)]
            for row, mask in zip(rows["rollout_logprobs"].to_pylist(), keep, strict=True)]
    changed = table(TRAINING, *(row | {"rollout_logprobs": logprobs}
                                for row, logprobs in zip(rows.to_pylist(), wild, strict=True)))
    other_loss, other, _ = loss_and_gradient(objective, model, changed, frozen, [list(range(6))])
    assert other_loss == loss
    assert all(torch.equal(other[name], gradient) for name, gradient in gradients.items())


def test_drift_by_hand():
    rows = table(TRAINING, {"completion_ids": [4, 5], "rollout_logprobs": [-1.0, -2.0], "loss_mask": [True, True]},
                 {"completion_ids": [6], "rollout_logprobs": [-0.5], "loss_mask": [True]})
    objective = PolicyObjective(CAUSAL, OPTIONS)
    found = values(objective.drift(rows, [[-1.0, -2.25], [-0.25]], [[-2.0, -2.0], [-0.75]]))
    # kl: ((-3.25 + 4) + (-0.25 + 0.75)) / 2
    assert found == {"max_logprob_gap": 0.25, "kl": 0.625}
    assert objective.drift(rows, [[-1.0, -2.0], [-0.5]], None) == {"max_logprob_gap": Max(0.0)}


@pytest.mark.parametrize("logprobs", [[[math.nan, -2.0], [-0.5]], [[-1.0, -2.0], [math.nan]]])
def test_a_logprob_that_is_not_a_number_is_seen_wherever_it_stands(logprobs):
    rows = table(TRAINING, {"completion_ids": [4, 5], "rollout_logprobs": [-1.5, -2.0], "loss_mask": [True, True]},
                 {"completion_ids": [6], "rollout_logprobs": [-0.5], "loss_mask": [True]})
    assert math.isnan(PolicyObjective(CAUSAL, OPTIONS).drift(rows, logprobs, None)["max_logprob_gap"].value)
