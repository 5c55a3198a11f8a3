"""The learners: ZeRO on two ranks against plain torch."""

from __future__ import annotations

import asyncio

import pytest
import ray
import torch

from actors.cluster.placement import Placement
from actors.learners.gang import Gang
from actors.learners.learner import LearnerSpec
from actors.learners.sending import Order
from rlaif.config.learner import LearnerConfig
from rlaif.config.train import ModelConfig, RoleConfig
from rlaif.data.supervision import supervised_rows
from rlaif.learning.completion_model import CompletionModel
from rlaif.learning.objectives import SupervisedObjective
from rlaif.metrics import values
from rlaif.modeling.models import load_causal_lm, load_tokenizer
from rlaif.modeling.weights import digest, manifest_of, mark
from rlaif.scenes import rows
from tests.real.conftest import GPUS, START

POLICY = str(START / "policy")
STEPS, BATCH, RATE = 4, 16, 1e-3


def data():
    texts = [(row["prompt"], row["completion"]) for row in rows("policy-dev", seed=3, num_rows=STEPS * BATCH)]
    return supervised_rows(texts, load_tokenizer(POLICY), 96, "data")


@pytest.fixture(scope="module")
def plain() -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    """Losses, gradient norms and last weights of the same training in plain torch, one whole batch a step."""
    model, objective, table = load_causal_lm(POLICY, "float32"), SupervisedObjective(), data()
    module = CompletionModel(model)     # padded, with whole logits
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.0)
    losses, norms = [], []
    for step in range(STEPS):
        batch = table.slice(step * BATCH, BATCH)
        loss, _ = objective.loss(module, batch, sum(objective.weights(batch)), {})
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, norms, dict(model.named_parameters())


@pytest.mark.parametrize(("zero_stage", "num_ranks"), [(0, 1), (0, 2), (1, 2), (2, 2), (3, 2)])
@pytest.mark.skipif(torch.cuda.device_count() == 1, reason="two ranks need two GPUs, or none")
def test_zero_gives_the_losses_norms_and_weights_of_plain_torch(
        local_ray: None, plain, tmp_path, zero_stage: int, num_ranks: int) -> None:
    learner = LearnerConfig(learning_rate=RATE, zero_stage=zero_stage, micro_batch_tokens=200)
    spec = LearnerSpec(model=ModelConfig(model=POLICY), tokenizer=POLICY, learner=learner, total_steps=STEPS, seed=0)
    ranks = RoleConfig(num_actors=num_ranks, num_cpus=0.5, num_gpus=float(bool(GPUS)))
    placement = Placement({"learner": ranks}, "PACK", 60)

    async def train() -> tuple[list[float], list[float], str]:
        gang = Gang(spec, placement, num_ranks)
        await asyncio.wait_for(gang.join(), 200)
        found = [values(await gang.update(ray.put(data().slice(step * BATCH, BATCH)))) for step in range(STEPS)]
        published = await gang.publish(Order(STEPS, 1 << 20, "float32", 60.0), [])
        await gang.save(str(tmp_path / "model"))
        return [step["loss"] for step in found], [step["grad_norm"] for step in found], published.checksum

    try:
        losses, norms, checksum = asyncio.run(train())
    finally:
        placement.remove()
    assert losses == pytest.approx(plain[0], abs=1e-5)
    assert norms == pytest.approx(plain[1], rel=1e-4)
    saved = dict(load_causal_lm(str(tmp_path / "model"), "float32").named_parameters())
    assert checksum == digest(
        manifest_of([(name, weight.dtype, tuple(weight.shape)) for name, weight in saved.items()]),
        {name: mark(weight) for name, weight in saved.items()}), "what is sent is what is saved"
    assert saved.keys() == plain[2].keys()
    for name, tensor in plain[2].items():
        torch.testing.assert_close(saved[name], tensor.detach(), atol=2e-4, rtol=0, msg=name)
