import math

import pytest
import torch
from torch.nn import functional

from rlaif.batch import JUDGED, SUPERVISED, TRAINING
from rlaif.config import ScratchConfig
from rlaif.losses import LossOptions
from rlaif.metrics import Max, merge, values
from rlaif.models import scratch_causal_lm, scratch_masked_lm, word_tokenizer
from rlaif.objectives import (
    PolicyObjective,
    PolicyOptions,
    SlotObjective,
    SupervisedObjective,
    completion_logprobs,
)
from rlaif.slots import Slot, SlotTemplate
from tests.batch_examples import table

WORDS = "red blue cat dog so it is the answer yes no low high . runs sits"
CONFIG = ScratchConfig(hidden_size=16, num_layers=2, num_heads=2, intermediate_size=24, max_positions=64,
                       initializer_range=0.3)
TEMPERATURE = 1.3
OPTIONS = PolicyOptions(LossOptions(kl_coefficient=0.1, clip_low=0.1, clip_high=0.1), TEMPERATURE)
TEMPLATE = SlotTemplate(
    "{prompt} {completion} {explanation} the answer is [verdict] [level] .",
    [Slot("verdict", [["yes"], ["no"], ["so"]], [1.0, 0.0, 0.0]), Slot("level", [["low"], ["high"]], [0.0, 1.0])], 40)
SPLITS = [[[0], [1], [2], [3], [4], [5]], [[5, 0], [3], [1, 2, 4]], [[4, 3, 2, 1, 0], [5]]]
CAUSAL = word_tokenizer([WORDS], masked=False)
MASKED = word_tokenizer([WORDS], masked=True)


def causal_lm():
    return scratch_causal_lm(CONFIG, CAUSAL, seed=0).double()


def masked_lm():
    return scratch_masked_lm(CONFIG, MASKED, seed=0).double()


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


def slots():
    texts = ["red cat", "dog", "the blue dog sits", "so", "it is red .", "red red red"]
    labels = [[0, 1], [2, -1], [1, 0], [0, 0], [-1, 1], [2, 1]]
    rows = table(JUDGED, *({"prompt": text, "completion": texts[-1 - row], "explanation": " ".join(texts[:row]),
                            "labels": labels[row]} for row, text in enumerate(texts)))
    return SlotObjective(MASKED, TEMPLATE), masked_lm(), rows, {}


CASES = {"supervised": supervised, "policy": policy, "slots": slots}


def loss_and_gradient(objective, model, rows, frozen, batches):
    """Summed over micro-batches, as a learner does: loss, gradients by name, metrics."""
    module = objective.module(model)
    total = sum(objective.weights(rows))
    model.zero_grad()
    loss, parts = 0.0, []
    for batch in batches:
        chosen = {name: [column[row] for row in batch] for name, column in frozen.items()}
        part, metrics = objective.loss(module, rows.take(batch), total, chosen)
        part.backward()
        loss += part.item()
        parts.append(metrics)
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss, gradients, values(merge(parts))


@pytest.mark.parametrize("split", SPLITS, ids=len)
@pytest.mark.parametrize("name", CASES)
def test_loss_gradient_and_metrics_do_not_depend_on_the_split_into_micro_batches(name, split):
    objective, model, rows, frozen = CASES[name]()
    loss, gradients, metrics = loss_and_gradient(objective, model, rows, frozen, [list(range(6))])
    assert abs(loss) > 1e-2 and max(g.abs().max() for g in gradients.values()) > 1e-2
    split_loss, split_gradients, split_metrics = loss_and_gradient(objective, model, rows, frozen, split)
    assert split_loss == pytest.approx(loss, abs=1e-6)
    assert split_gradients.keys() == gradients.keys()
    for parameter, gradient in gradients.items():
        torch.testing.assert_close(split_gradients[parameter], gradient, atol=1e-6, rtol=0, msg=parameter)
    assert split_metrics == pytest.approx(metrics, abs=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_lengths_and_weights_are_those_of_the_rows(name):
    objective, _, rows, _ = CASES[name]()
    if name == "slots":
        sizes = [len(MASKED(text, add_special_tokens=False)["input_ids"]) for column in ("prompt", "completion",
                 "explanation") for text in rows[column].to_pylist()]
        assert objective.lengths(rows) == [sum(sizes[row::6]) + 8 for row in range(6)]   # 6 of the text, 2 special
        assert objective.weights(rows) == [1] * 6
        return
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


def test_the_slot_loss_is_torchs_cross_entropy_of_the_label_words_at_the_slots():
    objective, model, rows, _ = slots()
    want = 0.0
    for row in rows.to_pylist():
        text = " ".join(filter(None, (row["prompt"], row["completion"], row["explanation"])))
        ids = MASKED(f"{text} the answer is [MASK] [MASK] .", return_tensors="pt")["input_ids"]
        logits = model(input_ids=ids).logits[0][ids[0] == MASKED.mask_token_id]
        for at_slot, slot, label in zip(logits, TEMPLATE.slots, row["labels"], strict=True):
            words = MASKED.convert_tokens_to_ids([words[0] for words in slot.classes])
            if label >= 0:
                want += functional.cross_entropy(at_slot[words], torch.tensor(label)) / 6
    loss, metrics = objective.loss(objective.module(model), rows, 6, {})
    assert loss.item() == pytest.approx(want.item(), abs=1e-6)
    assert values(metrics)["num_truncated"] == 0


def test_a_tokenizer_that_pads_on_the_left_does_not_move_the_slots():
    _, model, rows, _ = slots()
    left = word_tokenizer([WORDS], masked=True)
    left.padding_side = "left"
    one, other = (objective.loss(objective.module(model), rows, 6, {})[0].item()
                  for objective in (SlotObjective(MASKED, TEMPLATE), SlotObjective(left, TEMPLATE)))
    assert one == other


def test_inputs_that_are_cut_are_counted():
    objective, model, rows, _ = slots()
    short = SlotObjective(MASKED, SlotTemplate(TEMPLATE.text, TEMPLATE.slots, 12))
    lengths = objective.lengths(rows)
    assert short.lengths(rows) == [min(length, 12) for length in lengths]
    _, metrics = short.loss(short.module(model), rows, 6, {})
    assert values(metrics)["num_truncated"] == sum(length > 12 for length in lengths) > 0


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
