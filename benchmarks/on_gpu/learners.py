"""Policy updates of a real learner (DeepSpeed, in its Ray actor) on the GPU against the same on the CPU.

Everything is compared over three updates of the start policy of the scenes world on the same rows: loss, norm of the
gradient, and at last the weights.
"""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from safetensors.torch import load_file

from actors.cluster.connection import connect
from actors.learners.gang import Gang
from actors.learners.learner import LearnerSpec
from benchmarks.on_gpu.models import START, NamedPlacement, policy_vocabulary, scored
from benchmarks.on_gpu.part import Checks, run
from rlaif.config.algorithm import AlgorithmConfig
from rlaif.config.learner import LearnerConfig, LoraConfig
from rlaif.config.train import ModelConfig, RoleConfig
from rlaif.learning.objectives import PolicyOptions
from rlaif.metrics import values

POLICY = str(START / "policy")
NUM_UPDATES, RATE, KL = 3, 1e-4, 0.05
AT_ONCE = 4         # cases that share the GPU


@dataclass(frozen=True)
class Case:
    """One learner. Its figures are compared with those of the case `against`."""

    name: str
    against: str
    options: dict[str, Any] = field(default_factory=dict)
    is_on_gpu: bool = True
    tolerance: float = 1e-4         # of loss and norm, relative

    @property
    def config(self) -> LearnerConfig:
        return LearnerConfig(**{"learning_rate": RATE, "micro_batch_tokens": 1024} | self.options)


SHORT = {"dtype": "bfloat16"}
LORA = {"lora": LoraConfig(rank=8)}
CPU, GPU, CPU_LORA, CPU_SHORT, GPU_SHORT = "cpu", "zero 0", "cpu, LoRA", "cpu, bfloat16", "zero 0, bfloat16"
CASES = (
    Case(CPU, "", is_on_gpu=False),
    Case(CPU_LORA, "", LORA, is_on_gpu=False),
    Case(CPU_SHORT, "", SHORT, is_on_gpu=False),
    Case(GPU, CPU),
    *(Case(f"zero {stage}", CPU, {"zero_stage": stage}) for stage in (1, 2, 3)),
    Case("padded", GPU, {"packing": False}),
    Case("activation checkpointing", GPU, {"activation_checkpointing": True}),
    Case("activation checkpointing, zero 3", CPU, {"activation_checkpointing": True, "zero_stage": 3}),
    *(Case(f"offload, zero {stage}", CPU, {"offload": True, "zero_stage": stage}) for stage in (2, 3)),
    Case("LoRA", CPU_LORA, LORA),
    Case("LoRA, zero 3", CPU_LORA, LORA | {"zero_stage": 3}),
    Case("muon, zero 2", "", {"optimizer": "muon", "zero_stage": 2}),
    # Against float32 norms part by a sixth in three updates, on a CPU as on a GPU: weights of eight bits hardly move.
    Case(GPU_SHORT, CPU_SHORT, SHORT, tolerance=0.02),
    *(Case(f"zero {stage}, bfloat16", CPU_SHORT, SHORT | {"zero_stage": stage}, tolerance=0.02) for stage in (1, 2, 3)),
    Case("padded, bfloat16", GPU_SHORT, SHORT | {"packing": False}, tolerance=0.02),
    Case("activation checkpointing, bfloat16", GPU_SHORT, SHORT | {"activation_checkpointing": True}, tolerance=0.02),
    Case("offload, zero 2, bfloat16", CPU_SHORT, SHORT | {"offload": True, "zero_stage": 2}, tolerance=0.02),
    Case("LoRA, bfloat16", CPU_LORA, SHORT | LORA, tolerance=0.02),
)
QUICK = (CPU, CPU_LORA, CPU_SHORT, GPU, "zero 3", "LoRA", GPU_SHORT)


def measured(form: str, checks: Checks) -> dict[str, Any]:
    cases = [case for case in CASES if form == "full" or case.name in QUICK]
    connect()
    try:
        with tempfile.TemporaryDirectory() as folder:
            found = asyncio.run(_all(cases, Path(folder)))
    finally:
        ray.shutdown()
    errors = {name: figures["error"] for name, figures in found.items() if "error" in figures}
    for case in cases:
        if case.against and not {case.name, case.against} & errors.keys():
            _compare(case, found[case.name], found[case.against], checks)
    return {"errors": errors, "updates": {name: {key: value for key, value in figures.items() if key != "weights"}
                                          for name, figures in found.items()}}


def _compare(case: Case, got: dict[str, Any], want: dict[str, Any], checks: Checks) -> None:
    for figure in ("loss", "grad_norm"):
        # The loss is a sum of advantages that cancel each other: near zero, on the scale of 1.
        scale = 1.0 if figure == "loss" else max(want[figure])
        gap = max(abs(a - b) for a, b in zip(got[figure], want[figure], strict=True)) / scale
        checks.add(f"learner {case.name} against {case.against}: {figure}", gap, case.tolerance)
    if case.config.dtype == "float32":      # in bfloat16 a step of the optimizer is below what a weight's digits show
        gap = max(float((got["weights"][name] - weight).abs().max()) for name, weight in want["weights"].items())
        checks.add(f"learner {case.name} against {case.against}: weights, in steps of the optimizer", gap / RATE, 1.0)


async def _all(cases: list[Case], folder: Path) -> dict[str, dict[str, Any]]:
    chosen, table = scored(8, 4, (6, 20), (4, 24), policy_vocabulary(), lambda rng: -rng.random())
    turn = asyncio.Semaphore(AT_ONCE)

    async def one(number: int, case: Case) -> dict[str, Any]:
        async with turn:
            try:
                return await _update(case, number, ray.put(chosen), ray.put(table), folder)
            except Exception as error:
                return {"error": f"{type(error).__name__}: {error}"}

    found = await asyncio.gather(*(one(number, case) for number, case in enumerate(cases)))
    return {case.name: figures for case, figures in zip(cases, found, strict=True)}


async def _update(case: Case, number: int, chosen: ray.ObjectRef, table: ray.ObjectRef, folder: Path) -> dict[str, Any]:
    """Loss and norm of each update, and the weights after the last."""
    roles = {"learner": RoleConfig(num_cpus=0.25, num_gpus=1 / AT_ONCE if case.is_on_gpu else 0.0)}
    placement = NamedPlacement(f"case-{number}", roles)
    spec = LearnerSpec(
        model=ModelConfig(model=POLICY), tokenizer=POLICY, learner=case.config, total_steps=NUM_UPDATES, seed=0,
        objective=PolicyOptions(AlgorithmConfig(kl_coefficient=KL, importance="none"), max_tokens=24))
    try:
        gang = Gang(spec, placement, 1)
        remark = await gang.join()
        steps = [values(await gang.update_policy(chosen, KL, [table])) for _ in range(NUM_UPDATES)]
        target = folder / str(number)
        await gang.save(str(target))
    finally:
        placement.remove()
    return {"loss": [step["loss"] for step in steps], "grad_norm": [step["grad_norm"] for step in steps],
            "remark": remark, "weights": load_file(target / "model.safetensors")}


if __name__ == "__main__":
    run(measured)
