"""What one rank of the learners does, with an engine of plain torch in DeepSpeed's place."""

import dataclasses
import math

import pyarrow as pa
import pytest
import torch

from rlaif.batch import PREFERENCE, SCORED, SUPERVISED
from rlaif.config.algorithm import AlgorithmConfig
from rlaif.config.checks import UserError
from rlaif.config.learner import LearnerConfig
from rlaif.config.train import ScratchConfig
from rlaif.learning.completion_model import CompletionModel, examine
from rlaif.learning.critic import Critic, ValueHead
from rlaif.learning.learner import Learner
from rlaif.learning.objectives import PolicyObjective, PolicyOptions, PreferenceObjective, SupervisedObjective
from rlaif.metrics import merge, values
from rlaif.modeling.models import scratch_causal_lm, word_tokenizer
from rlaif.policy.preference_loss import PreferenceOptions
from tests.helpers.batch_examples import table
from tests.helpers.ranks import Ranks, TorchEngine

CONFIG = ScratchConfig(hidden_size=16, num_layers=2, num_heads=2, intermediate_size=24, max_positions=64,
                       initializer_range=0.3)
TOKENIZER = word_tokenizer(["red blue cat dog so it is the answer yes no low high . runs sits"], masked=False)
GRPO = AlgorithmConfig(kl_coefficient=0.05, num_epochs=2, num_minibatches=2)
PPO = AlgorithmConfig(advantage="gae", kl_coefficient=0.05, kl_in="reward", kl_estimator="k1", value_coefficient=0.5)


def causal_lm(seed=0):
    return scratch_causal_lm(CONFIG, TOKENIZER, seed).double()


def draw(generator, size):
    return torch.randint(4, len(TOKENIZER), (size,), generator=generator).tolist()


def scored(num_groups=4, **changes):
    """Groups of 3, 2, 3, 2 rows, lengths 1..6, rewards drawn; two batches, out of order."""
    generator = torch.Generator().manual_seed(5)
    rows = []
    for group in range(num_groups):
        prompt = draw(generator, 3 + group)
        for sample in range(3 - group % 2):
            ids = draw(generator, 1 + int(torch.randint(6, (), generator=generator)))
            rows.append({"group_id": group, "sample": sample, "prompt_ids": prompt, "completion_ids": ids,
                         "rollout_logprobs": (-2.5 + torch.randn(len(ids), generator=generator)).tolist(),
                         "reward": torch.randn((), generator=generator).item(),
                         "finish_reason": "length" if sample == 2 else "stop"} | changes)
    return [table(SCORED, *rows[1::2]), table(SCORED, *rows[0::2])]


def keys(batches):
    rows = pa.concat_tables(batches)
    return rows.select(["group_id", "sample"])


def learner(objective, *, budget=1 << 20, packing=True, rank=0, ranks=None, critic=None, rate=1e-2, zero_stage=0,
            checkpointing=False):
    model = causal_lm()
    module = CompletionModel(model, critic, examine(model, critic, packing=packing))
    assert module.reading.is_packed == packing
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    reference = None
    if not isinstance(objective, SupervisedObjective):
        copy = causal_lm()
        reference = CompletionModel(copy, reading=examine(copy, packing=packing)).eval()
    config = LearnerConfig(micro_batch_tokens=budget, zero_stage=zero_stage)
    return Learner(config, objective, module, TorchEngine(module, rate, ranks), seed=3, total_steps=100, rank=rank,
                   world_size=1 if ranks is None else ranks.world_size, reference=reference)


def weights_of(some):
    return {name: weight.detach().clone() for name, weight in some._module.named_parameters()}


def policy(algorithm):
    return PolicyObjective(PolicyOptions(algorithm, temperature=1.2, max_tokens=8))


def updated(algorithm, *, critic=None, times=2, **options):
    """Weights and figures after updates on the same rows."""
    some = learner(policy(algorithm), critic=critic and critic(), **options)
    batches = scored()
    figures = [values(some.update_policy(keys(batches), algorithm.kl_coefficient, batches)) for _ in range(times)]
    return weights_of(some), figures


def zero_head():
    return ValueHead(16, torch.float64)


def own_critic():
    return Critic(causal_lm(seed=1).base_model)


CASES = {"grpo": (GRPO, None), "ppo with a head": (PPO, zero_head), "ppo with a model": (PPO, own_critic),
         "token by token": (AlgorithmConfig(advantage="reinforce_pp", mean="sequence", kl_coefficient=0.0), None)}
WAYS = {"padded": {"packing": False}, "small": {"budget": 20}, "padded and small": {"packing": False, "budget": 20},
        "recomputed": {"checkpointing": True}}


@pytest.fixture(scope="module")
def whole():
    """Each case packed, in one micro-batch, on one rank."""
    return {name: updated(algorithm, critic=critic) for name, (algorithm, critic) in CASES.items()}


def assert_same(got, want):
    for name, weight in want[0].items():
        torch.testing.assert_close(got[0][name], weight, atol=1e-6, rtol=0, msg=name)
    for mine, theirs in zip(got[1], want[1], strict=True):
        assert {**mine, "num_tokens_read": 0} == pytest.approx({**theirs, "num_tokens_read": 0}, abs=1e-5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_an_update_does_not_depend_on_packing_micro_batches_or_recomputation(case, way, whole):
    algorithm, critic = CASES[case]
    start = weights_of(learner(policy(algorithm), critic=critic and critic()))
    assert max((weight - start[name]).abs().max() for name, weight in whole[case][0].items()) > 1e-3
    assert_same(updated(algorithm, critic=critic, **WAYS[way]), whole[case])


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_an_update_does_not_depend_on_the_number_of_ranks(case, packing, whole, monkeypatch):
    algorithm, critic = CASES[case]
    ranks = Ranks(2, monkeypatch)
    learners = [learner(policy(algorithm), critic=critic and critic(), rank=rank, ranks=ranks, packing=packing,
                        budget=24) for rank in range(2)]
    batches = scored()
    found = [ranks.run(lambda rank: learners[rank].update_policy(keys(batches), algorithm.kl_coefficient, batches))
             for _ in range(2)]
    figures = [values(merge(parts)) for parts in found]
    for some in learners:
        assert_same((weights_of(some), figures), whole[case])


# 40 tokens of completions; prompts of 3, 4, 5, 6 tokens, read once; the longest of the 10 rows has 11 tokens
@pytest.mark.parametrize(("options", "num_tokens"), [({}, 40 + 18), ({"packing": False}, 10 * 11)])
def test_the_tokens_that_are_read_are_counted(options, num_tokens):
    some = learner(policy(AlgorithmConfig(kl_coefficient=0.0)), **options)
    batches = scored()
    assert values(some.update_policy(keys(batches), 0.0, batches))["num_tokens_read"] == num_tokens


def test_rows_that_were_not_chosen_change_nothing():
    batches = scored()
    chosen = keys(batches).filter(pa.compute.less(keys(batches)["group_id"], 2))
    few = [batch.filter(pa.compute.less(batch["group_id"], 2)) for batch in batches]
    found = []
    for tables in (batches, few):
        some = learner(policy(GRPO))
        some.update_policy(chosen, 0.05, tables)
        found.append(weights_of(some))
    assert all(torch.equal(weight, found[1][name]) for name, weight in found[0].items())


def weighted(batch, weight_of):
    """`batch` whose rows have the sample_weight that `weight_of` gives their group."""
    number = batch.schema.get_field_index("sample_weight")
    weights = pa.array([weight_of(group) for group in batch["group_id"].to_pylist()], pa.float32())
    return batch.set_column(number, batch.schema.field(number), weights)


def test_only_ratios_of_sample_weights_matter():
    found = []
    for factor in (1.0, 4.0):
        some = learner(policy(GRPO))
        some.update_policy(keys(scored()), 0.05, [weighted(batch, lambda group, by=factor: by * (1 + group % 2))
                                                  for batch in scored()])
        found.append(weights_of(some))
    plain = learner(policy(GRPO))
    plain.update_policy(keys(scored()), 0.05, scored())
    assert all(torch.equal(weight, found[1][name]) for name, weight in found[0].items())
    assert any(not torch.equal(weight, found[0][name]) for name, weight in weights_of(plain).items())


def test_a_row_without_weight_changes_nothing():
    batches = scored()
    chosen = keys(batches)
    is_in = pa.array([group != 3 for group in chosen["group_id"].to_pylist()])
    found = []
    for table_, rows in ((chosen, [weighted(batch, lambda group: float(group != 3)) for batch in batches]),
                         (chosen.filter(is_in), batches)):
        some = learner(policy(dataclasses.replace(GRPO, num_epochs=1, num_minibatches=1)))
        some.update_policy(table_, 0.05, rows)
        found.append(weights_of(some))
    for name, weight in found[0].items():
        torch.testing.assert_close(weight, found[1][name], atol=1e-9, rtol=0)


def test_masked_out_completions_are_not_learnt_and_a_step_without_any_is_none():
    algorithm = AlgorithmConfig(overlong="mask", kl_coefficient=0.0)
    some = learner(policy(algorithm))
    start = weights_of(some)
    batches = scored(finish_reason="length")
    figures = values(some.update_policy(keys(batches), 0.0, batches))
    assert figures["num_empty_steps"] == 1 and figures["cut_share"] == 1 and some.num_steps == 1
    assert all(torch.equal(weight, start[name]) for name, weight in weights_of(some).items())


def test_the_first_update_finds_the_policy_at_its_reference():
    some = learner(policy(GRPO))
    batches = scored()
    drift = values(some.drift(batches))
    assert drift["kl"] == 0.0
    figures = values(some.update_policy(keys(batches), 0.05, batches))
    assert figures["kl"] == 0.0 and figures["max_logprob_gap"] == pytest.approx(drift["max_logprob_gap"], abs=1e-6)
    assert values(some.drift(batches))["kl"] != 0.0


def test_drift_is_shared_out_and_known_to_every_rank(monkeypatch):
    ranks = Ranks(2, monkeypatch)
    batches = scored()
    alone = learner(policy(GRPO))
    alone.update_policy(keys(batches), 0.05, batches)
    learners = [learner(policy(GRPO), rank=rank, ranks=ranks) for rank in range(2)]
    ranks.run(lambda rank: learners[rank].update_policy(keys(batches), 0.05, batches))
    passes = []
    for some in learners:
        some._engine.module.register_forward_hook(lambda *_: passes.append(1))
    found = ranks.run(lambda rank: learners[rank].drift(batches))
    assert found[0] == found[1]
    assert values(found[0]) == pytest.approx(values(alone.drift(batches)), abs=1e-7)
    assert len(passes) == 2


def test_the_moving_baseline_goes_on_from_update_to_update():
    some = learner(policy(AlgorithmConfig(advantage="reinforce", kl_coefficient=0.0)))
    batches = scored()
    mean = sum(pa.concat_tables(batches)["reward"].to_pylist()) / 10
    some.update_policy(keys(batches), 0.0, batches)
    assert some.baseline.value == pytest.approx(mean)
    assert values(some.update_policy(keys(batches), 0.0, batches))["baseline"] == pytest.approx(mean)


# --- supervised and preference training --------------------------------------------------------------------------


def pairs():
    generator = torch.Generator().manual_seed(1)
    return table(PREFERENCE, *({"prompt_ids": draw(generator, 2 + row), "chosen_ids": draw(generator, 1 + row % 3),
                                "rejected_ids": draw(generator, 4 - row % 2)} for row in range(5)))


def sentences():
    generator = torch.Generator().manual_seed(1)
    return table(SUPERVISED, *({"prompt_ids": draw(generator, 1 + row % 4),
                                "completion_ids": draw(generator, 1 + row % 5)} for row in range(7)))


@pytest.mark.parametrize("name", ["supervised", "preference"])
def test_other_objectives_do_not_depend_on_the_split_either(name, monkeypatch):
    make = {"supervised": SupervisedObjective, "preference": lambda: PreferenceObjective(PreferenceOptions(0.3))}[name]
    rows = {"supervised": sentences, "preference": pairs}[name]()
    alone = learner(make())
    figures = [values(alone.update(rows)), values(alone.update(rows)), values(alone.measure(rows))]
    ranks = Ranks(2, monkeypatch)
    learners = [learner(make(), rank=rank, ranks=ranks, budget=16, packing=False) for rank in range(2)]
    found = [ranks.run(lambda rank: learners[rank].update(rows)) for _ in range(2)]
    found.append(ranks.run(lambda rank: learners[rank].measure(rows)))
    assert_same((weights_of(learners[1]), [values(merge(parts)) for parts in found]), (weights_of(alone), figures))
    assert figures[1]["loss"] < figures[0]["loss"]


# --- what is not a number ----------------------------------------------------------------------------------------


def spoilt(batches, group, sample):
    """The batches with a NaN among the rollout logprobs of one row."""
    rows = [row | {"rollout_logprobs": [math.nan] * len(row["completion_ids"])}
            if (row["group_id"], row["sample"]) == (group, sample) else row
            for row in pa.concat_tables(batches).to_pylist()]
    return [table(SCORED, *rows)]


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_loss_that_is_no_number_names_row_and_update_on_every_rank_and_changes_no_weight(world_size, monkeypatch):
    ranks = Ranks(world_size, monkeypatch) if world_size > 1 else None
    learners = [learner(policy(GRPO), rank=rank, ranks=ranks) for rank in range(world_size)]
    batches = scored()

    def work(rank):
        learners[rank].update_policy(keys(batches), 0.05, batches)
        before = weights_of(learners[rank])
        bad = spoilt(batches, 2, 1)
        algorithm = dataclasses.replace(GRPO, num_epochs=1, num_minibatches=1, kl_coefficient=0.0)
        learners[rank]._objective = policy(algorithm)
        with pytest.raises(UserError) as error:
            learners[rank].update_policy(keys(bad), 0.0, bad)
        after = weights_of(learners[rank])
        assert all(torch.equal(weight, after[name]) for name, weight in before.items())
        return str(error.value)

    found = ranks.run(work) if ranks else [work(0)]
    assert found == [found[0]] * world_size
    assert found[0].startswith("loss must be finite, got nan at update 4 in row ") and "(group 2, sample 1)" in found[0]
    assert "\n" not in found[0]


def test_with_sharded_weights_the_micro_batch_is_named():
    some = learner(policy(dataclasses.replace(GRPO, num_epochs=1, num_minibatches=1)), zero_stage=3)
    bad = spoilt(scored(), 2, 1)
    with pytest.raises(UserError, match=r"in 10 rows, row 0 \(group 0, sample 0\) to row 9 \(group 3, sample 1\)"):
        some.update_policy(keys(bad), 0.05, bad)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_gradient_that_is_no_number_names_its_weight(world_size, monkeypatch):
    ranks = Ranks(world_size, monkeypatch) if world_size > 1 else None
    learners = [learner(SupervisedObjective(), rank=rank, ranks=ranks) for rank in range(world_size)]
    for name, weight in learners[-1]._module.named_parameters():
        if name.endswith("layers.1.mlp.up_proj.weight"):
            weight.register_hook(lambda gradient: gradient * math.inf)

    def work(rank):
        before = weights_of(learners[rank])
        with pytest.raises(UserError) as error:
            learners[rank].update(sentences())
        assert all(torch.equal(weight, before[name]) for name, weight in weights_of(learners[rank]).items())
        assert not any(weight.grad is not None for weight in learners[rank]._module.parameters())
        return str(error.value)

    found = ranks.run(work) if ranks else [work(0)]
    assert found == [found[0]] * world_size
    assert "gradient of model.model.layers.1.mlp.up_proj.weight must be finite, got " in found[0]


def test_a_logprob_that_is_no_number_names_token_and_row_before_anything_is_trained():
    some = learner(policy(GRPO))
    with torch.no_grad():
        some._reference.model.model.norm.weight[0] = math.nan
    batches = scored()
    with pytest.raises(UserError, match=r"reference_logprobs must be finite, got nan at update 0 in row 0 \(group 0, "
                                        r"sample 0\), token 0; the weights are those of the update before"):
        some.update_policy(keys(batches), 0.05, batches)
