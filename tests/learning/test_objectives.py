import dataclasses
import math

import pytest
import torch
from torch.nn import functional

from rlaif.batch import PREFERENCE, SCORED, SUPERVISED
from rlaif.config.algorithm import AlgorithmConfig
from rlaif.config.train import ScratchConfig
from rlaif.learning.completion_model import CompletionModel
from rlaif.learning.critic import ValueHead
from rlaif.learning.objectives import PolicyObjective, PolicyOptions, PreferenceObjective, SupervisedObjective
from rlaif.metrics import Max, values
from rlaif.modeling.bucketing import RowSizes
from rlaif.modeling.models import scratch_causal_lm, word_tokenizer
from rlaif.policy.preference_loss import PreferenceOptions
from rlaif.policy.token_weights import token_weights
from tests.helpers.batch_examples import table
from tests.helpers.objective_examples import SPLITS, assert_split_changes_nothing, loss_and_gradient

WORDS = "red blue cat dog so it is the answer yes no low high . runs sits"
CONFIG = ScratchConfig(hidden_size=16, num_layers=2, num_heads=2, intermediate_size=24, max_positions=64,
                       initializer_range=0.3)
TEMPERATURE = 1.3
OPTIONS = PolicyOptions(AlgorithmConfig(kl_coefficient=0.1, clip_low=0.1, clip_high=0.1, entropy_coefficient=0.05),
                        TEMPERATURE, max_tokens=9)
CAUSAL = word_tokenizer([WORDS], masked=False)
PLAIN = AlgorithmConfig(kl_coefficient=0.0)


def causal_lm():
    return scratch_causal_lm(CONFIG, CAUSAL, seed=0).double()


def token_rows(generator):
    """Six rows of unequal prompts and completions, one completion of a single token, two of one prompt."""
    sizes = [(1, 6), (4, 1), (3, 3), (7, 2), (2, 9), (4, 4)]
    draw = lambda size: torch.randint(4, len(CAUSAL), (size,), generator=generator).tolist()  # noqa: E731
    rows = [{"prompt_ids": draw(prompt), "completion_ids": draw(completion)} for prompt, completion in sizes]
    rows[5]["prompt_ids"] = rows[1]["prompt_ids"]
    return rows


def supervised():
    rows = table(SUPERVISED, *token_rows(torch.Generator().manual_seed(0)))
    return SupervisedObjective(), causal_lm(), rows, {}


def preference():
    generator = torch.Generator().manual_seed(0)
    chosen, other = token_rows(generator), token_rows(generator)
    rows = table(PREFERENCE, *({"prompt_ids": a["prompt_ids"], "chosen_ids": a["completion_ids"],
                                "rejected_ids": b["completion_ids"]} for a, b in zip(chosen, other, strict=True)))
    objective = PreferenceObjective(PreferenceOptions(beta=0.5, label_smoothing=0.1))
    model = causal_lm()
    exact = objective.reference_sums(objective.module(model), rows)
    noise = torch.randn(6, 2, generator=generator)
    return objective, model, rows, {"reference_sums": (torch.tensor(exact) + noise).tolist()}


def policy(algorithm=OPTIONS.algorithm):
    generator = torch.Generator().manual_seed(0)
    changes = token_rows(generator)
    objective = PolicyObjective(dataclasses.replace(OPTIONS, algorithm=algorithm))
    model = causal_lm()
    noisy = lambda logprobs, scale: [  # noqa: E731
        [x + scale * torch.randn((), generator=generator).item() for x in row] for row in logprobs]
    exact = objective.logprobs(objective.module(model), table(SCORED, *(
        change | {"rollout_logprobs": [0.0] * len(change["completion_ids"])} for change in changes)))
    for change, logprobs in zip(changes, noisy(exact, 0.3), strict=True):
        change["rollout_logprobs"] = logprobs
    mask = [[position % 3 != 2 for position in range(len(row))] for row in exact]
    weights = token_weights("token", torch.tensor(list(map(sum, mask))), torch.arange(6), 9)
    advantages = [[a] * len(row) for a, row in zip([1.0, -0.5, 0.0, 2.0, -1.0, 0.25], exact, strict=True)]
    frozen = {"reference_logprobs": noisy(exact, 0.2), "proximal_logprobs": noisy(exact, 0.2), "loss_mask": mask,
              "advantages": advantages, "token_weights": weights.tolist()}
    return objective, model, table(SCORED, *changes), frozen


CASES = {"supervised": supervised, "preference": preference, "policy": policy}


@pytest.mark.parametrize("split", SPLITS, ids=len)
@pytest.mark.parametrize("name", CASES)
def test_loss_gradient_and_metrics_do_not_depend_on_the_split_into_micro_batches(name, split):
    assert_split_changes_nothing(*CASES[name](), split)


@pytest.mark.parametrize("name", ["supervised", "policy"])
def test_lengths_and_weights_are_those_of_the_rows(name):
    objective, _, rows, _ = CASES[name]()
    assert objective.lengths(rows) == [7, 5, 6, 9, 11, 8]
    assert objective.weights(rows) == ([6, 1, 3, 2, 9, 4] if name == "supervised" else [1] * 6)
    assert objective.lengths(rows.slice(3)) == [9, 11, 8]
    assert objective.sizes(rows) == RowSizes([6, 1, 3, 2, 9, 4], [1, 4, 3, 7, 2, 4], [0, 1, 2, 3, 4, 1])


def test_a_pair_has_the_tokens_of_both_sides():
    objective, _, rows, _ = preference()
    assert objective.lengths(rows)[:2] == [14, 10]
    assert objective.sizes(rows).lengths == objective.lengths(rows)
    assert objective.sizes(rows).together([1, 5]) == 4 + 2 + 8


def test_the_supervised_loss_is_torchs_cross_entropy_of_the_completions():
    objective, model, rows, _ = supervised()
    want = 0.0
    for row in rows.to_pylist():
        ids = torch.tensor([row["prompt_ids"] + row["completion_ids"]])
        labels = ids.clone()
        labels[:, : len(row["prompt_ids"])] = -100
        logits = model(input_ids=ids).logits
        want += functional.cross_entropy(logits[0, :-1], labels[0, 1:], ignore_index=-100, reduction="sum") / 25
    loss, metrics = objective.loss(objective.module(model), rows, 25, {})
    assert loss.item() == pytest.approx(want.item(), abs=1e-6)
    assert values(metrics)["nll"] == pytest.approx(want.item(), abs=1e-6)


def logprobs_alone(model, row, temperature=1.0, name="completion_ids"):
    """Completion logprobs of one row by transformers' own forward."""
    ids = torch.tensor([row["prompt_ids"] + row[name]])
    with torch.no_grad():
        logprobs = torch.log_softmax(model(input_ids=ids).logits[0] / temperature, dim=-1)
    first = len(row["prompt_ids"])
    return [logprobs[first - 1 + t, token].item() for t, token in enumerate(row[name])]


def test_the_policys_logprobs_are_those_of_a_log_softmax_at_the_rollout_temperature():
    objective, model, rows, _ = policy()
    for found, row in zip(objective.logprobs(objective.module(model), rows), rows.to_pylist(), strict=True):
        assert found == pytest.approx(logprobs_alone(model, row, TEMPERATURE), abs=1e-9)


def test_the_sums_of_a_pair_are_those_of_its_completions():
    objective, model, rows, _ = preference()
    for (chosen, rejected), row in zip(objective.reference_sums(objective.module(model), rows), rows.to_pylist(),
                                       strict=True):
        assert chosen == pytest.approx(sum(logprobs_alone(model, row, name="chosen_ids")), abs=1e-9)
        assert rejected == pytest.approx(sum(logprobs_alone(model, row, name="rejected_ids")), abs=1e-9)


def test_a_policy_equal_to_its_reference_has_the_loss_of_a_coin():
    objective, model, rows, _ = preference()
    module = objective.module(model)
    loss, metrics = objective.loss(module, rows, 6, {"reference_sums": objective.reference_sums(module, rows)})
    assert loss.item() == pytest.approx(math.log(2), abs=1e-9)
    assert values(metrics)["preference_accuracy"] == 0.5


def test_without_a_proximal_policy_the_gradient_is_that_of_weighted_likelihood():
    # ratio = 1: d loss = -weight * A * d logprob, weight = min(policy / rollout, 2); here the KL term is off
    objective, model, rows, frozen = policy(PLAIN)
    frozen = {name: frozen[name] for name in ("advantages", "loss_mask", "token_weights")}
    _, gradients, _ = loss_and_gradient(objective, model, rows, frozen, [list(range(6))])
    model.zero_grad()
    module = CompletionModel(model)     # padded, with whole logits
    logprobs = module(rows["prompt_ids"].to_pylist(), rows["completion_ids"].to_pylist(),
                      temperature=TEMPERATURE).logprobs.split([6, 1, 3, 2, 9, 4])
    for mine, row, mask, advantages in zip(logprobs, rows.to_pylist(), frozen["loss_mask"], frozen["advantages"],
                                           strict=True):
        rollout = torch.tensor(row["rollout_logprobs"], dtype=torch.float64)
        weight = (mine.detach() - rollout).exp().clamp(max=2.0)
        (-(weight * advantages[0] * mine)[torch.tensor(mask)].sum() / 18).backward(retain_graph=True)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-6, rtol=0, msg=name)


def test_tokens_outside_the_loss_mask_change_nothing():
    objective, model, rows, frozen = policy()
    loss, gradients, _ = loss_and_gradient(objective, model, rows, frozen, [list(range(6))])
    wild = [[x if kept else math.nan for x, kept in zip(row, mask, strict=True)]
            for row, mask in zip(rows["rollout_logprobs"].to_pylist(), frozen["loss_mask"], strict=True)]
    changed = table(SCORED, *(row | {"rollout_logprobs": logprobs}
                              for row, logprobs in zip(rows.to_pylist(), wild, strict=True)))
    other_loss, other, _ = loss_and_gradient(objective, model, changed, frozen, [list(range(6))])
    assert other_loss == loss
    assert all(torch.equal(other[name], gradient) for name, gradient in gradients.items())


def test_the_controllers_coefficient_replaces_the_configured_one():
    objective, model, rows, frozen = policy()
    module = objective.module(model)
    losses = [PolicyObjective(objective.options, kl).loss(module, rows, 1, frozen)[0].item() for kl in (0.1, 0.3, 0.5)]
    assert losses[0] == objective.loss(module, rows, 1, frozen)[0].item()
    assert losses[2] - losses[1] == pytest.approx(losses[1] - losses[0], abs=1e-7) and losses[1] != losses[0]


def test_kl_of_an_update_by_hand():
    objective, model, rows, frozen = policy()
    kept = [[(p - r) * m for p, r, m in zip(*row, strict=True)] for row in zip(
        frozen["proximal_logprobs"], frozen["reference_logprobs"], frozen["loss_mask"], strict=True)]
    _, metrics = objective.loss(objective.module(model), rows, 1, frozen)
    assert values(metrics)["kl"] == pytest.approx(sum(map(sum, kept)) / 6, abs=1e-6)


def test_the_critics_loss_is_added_and_its_gradient_reaches_the_policys_states():
    algorithm = AlgorithmConfig(advantage="gae", value_coefficient=0.25, value_clip=None, kl_coefficient=0.0)
    objective, model, rows, frozen = policy(algorithm)
    head = ValueHead(16, torch.float64)
    torch.nn.init.normal_(head.read.weight, std=0.3, generator=torch.Generator().manual_seed(1))
    module = CompletionModel(model, head, objective.module(model).reading)
    found = objective.predicted(module, rows, with_values=True)["values"]
    frozen |= {"values": found, "returns": [[v + 1.0 for v in row] for row in found]}
    loss, metrics = objective.loss(module, rows, 1, frozen)
    without = {**frozen, "returns": found}
    # values that are right cost nothing; off by one everywhere they cost half a unit a token
    assert loss.item() - objective.loss(module, rows, 1, without)[0].item() == pytest.approx(0.25 * 0.5, abs=1e-6)
    assert values(metrics)["value_loss"] == pytest.approx(0.5, abs=1e-6)
    loss.backward()
    # d loss / d b = coefficient * sum of weights * (V - R) = -0.25
    assert head.read.bias.grad.item() == pytest.approx(-0.25, abs=1e-6)


def test_drift_by_hand():
    rows = table(SCORED, {"completion_ids": [4, 5], "rollout_logprobs": [-1.0, -2.0]},
                 {"completion_ids": [6], "rollout_logprobs": [-0.5]})
    objective = PolicyObjective(OPTIONS)
    found = values(objective.drift(rows, [[-1.0, -2.25], [-0.25]], [[-2.0, -2.0], [-0.75]]))
    # kl: ((-3.25 + 4) + (-0.25 + 0.75)) / 2
    assert found == {"max_logprob_gap": 0.25, "kl": 0.625}
    assert objective.drift(rows, [[-1.0, -2.0], [-0.5]], None) == {"max_logprob_gap": Max(0.0)}


@pytest.mark.parametrize("logprobs", [[[math.nan, -2.0], [-0.5]], [[-1.0, -2.0], [math.nan]]])
def test_a_logprob_that_is_not_a_number_is_seen_wherever_it_stands(logprobs):
    rows = table(SCORED, {"completion_ids": [4, 5], "rollout_logprobs": [-1.5, -2.0]},
                 {"completion_ids": [6], "rollout_logprobs": [-0.5]})
    assert math.isnan(PolicyObjective(OPTIONS).drift(rows, logprobs, None)["max_logprob_gap"].value)
