"""Ranks under DeepSpeed against plain torch: every stage, with a critic, adapters, layers computed again."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from rlaif.config.checks import UserError
from rlaif.config.learner import LearnerConfig
from rlaif.learning.learner import Learner
from rlaif.learning.lora import whole_weights
from rlaif.metrics import values
from tests.helpers.ranks import TorchEngine
from tests.helpers.zero_learner import CASES, GRPO, RATE, learner, train_on_two
from tests.helpers.zero_ranks import spawn
from tests.learning.test_learner import keys, scored, spoilt


def trained(some: Learner) -> list[dict[str, float]]:
    batches = scored()
    return [values(some.update_policy(keys(batches), 0.05, batches)) for _ in range(2)] + [values(some.drift(batches))]


@pytest.mark.parametrize("case,zero_stage", [(case, stage) for case in CASES for stage in range(4)
                                             if stage or not CASES[case][1].offload])
def test_an_update_is_that_of_plain_torch(case: str, zero_stage: int, distributed, tmp_path) -> None:
    from actors.learners.zero import ZeroEngine

    algorithm, config = CASES[case]
    plain = learner(algorithm, config, lambda module, *_: TorchEngine(module, RATE))
    want = trained(plain)
    config = dataclasses.replace(config, zero_stage=zero_stage)
    some = learner(algorithm, config, lambda module, model, config: ZeroEngine(
        module, model, config, torch.device("cpu")))
    got = trained(some)
    for mine, theirs in zip(got, want, strict=True):
        assert mine.keys() == theirs.keys()
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    weights = {weight.name: weight.merge(*weight.parts) for weight in whole_weights(plain._module.model)}
    whole = {name: tensor.clone() for name, tensor in some._engine.each_whole_weight()}
    assert some._engine.shapes() == [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in whole.items()]
    assert whole.keys() == weights.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(tensor, weights[name], atol=2e-4, rtol=0, msg=name)

    # A step that is no number is not taken, whatever holds the weights, and the next one is as if it had not been.
    bad = spoilt(scored(), 2, 1)
    with pytest.raises(UserError, match="must be finite, got nan at update"):
        some.update_policy(keys(bad), 0.05, bad)
    for name, tensor in some._engine.each_whole_weight():
        torch.testing.assert_close(tensor, whole[name], atol=1e-3 if algorithm.num_minibatches > 1 else 0.0, rtol=0)

    some._engine.save_state(str(tmp_path), {"num_steps": some.num_steps})
    assert some._engine.load_state(str(tmp_path)) == {"num_steps": some.num_steps}


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_weights_in_bfloat16_move_as_far_as_in_float32(zero_stage: int, distributed) -> None:
    """Adam's first step moves every weight by the rate, whatever its gradient; bfloat16 rounds that to 0.4 % of the
    weight, which evens out over all of them."""
    from actors.learners.zero import ZeroEngine

    moves = {}
    for dtype in ("float32", "bfloat16"):
        config = LearnerConfig(learning_rate=RATE, micro_batch_tokens=40, dtype=dtype, zero_stage=zero_stage)
        some = learner(dataclasses.replace(GRPO, num_minibatches=1), config, lambda module, model, config: ZeroEngine(
            module, model, config, torch.device("cpu")))
        before = {name: tensor.clone().float() for name, tensor in some._engine.each_whole_weight()}
        figures = values(some.update_policy(keys(scored()), 0.05, scored()))
        moved = [(tensor.float() - before[name]).abs().flatten() for name, tensor in some._engine.each_whole_weight()
                 if "layers" in name]
        moves[dtype] = float(torch.cat(moved).mean()), figures["loss"], figures["grad_norm"]
    assert moves["bfloat16"] == pytest.approx(moves["float32"], rel=0.05, abs=0.02)
    assert moves["bfloat16"][0] == pytest.approx(moves["float32"][0], rel=0.05)


@pytest.mark.parametrize("case,zero_stage,packing", [("grpo", 0, True), ("grpo", 1, False), ("grpo", 3, True),
                                                     ("critic", 2, True), ("adapters", 3, True)])
def test_two_ranks_make_the_update_of_one(case: str, zero_stage: int, packing: bool, tmp_path) -> None:
    algorithm, config = CASES[case]
    plain = learner(algorithm, config, lambda module, *_: TorchEngine(module, RATE))
    want = trained(plain)[:2]
    spawn(train_on_two, 2, case, zero_stage, packing, str(tmp_path))
    got, weights = torch.load(tmp_path / "found.pt")
    for mine, theirs in zip(got, want, strict=True):
        # Which rows find their prompt read already depends on the rank that they are on.
        assert mine.pop("num_tokens_read") > 0 and theirs.pop("num_tokens_read") > 0
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    for weight in whole_weights(plain._module.model):
        torch.testing.assert_close(weights[weight.name], weight.merge(*weight.parts), atol=2e-4, rtol=0,
                                   msg=weight.name)
