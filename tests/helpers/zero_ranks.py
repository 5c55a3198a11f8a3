"""Ranks under DeepSpeed as processes of their own, without Ray: what they write down, and what others make of it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import torch
import torch.multiprocessing

from rlaif.config.checks import UserError
from rlaif.config.learner import LearnerConfig
from tests.real.conftest import START

TRUTH, REFUSED = "truth.pt", "refused.txt"


def spawn(work, world_size: int, *arguments) -> None:
    """Runs work(rank, world_size, *arguments) in `world_size` processes that make one group."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_joined, (work, world_size, port, arguments), nprocs=world_size)


def _joined(rank, work, world_size, port, arguments):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port), "DS_ACCELERATOR": "cpu"}
    torch.set_num_threads(1)
    from actors.learners.zero import init_distributed

    init_distributed("gloo")
    work(rank, world_size, *arguments)
    torch.distributed.barrier()


def engine_of(zero_stage, optimizer):
    from actors.learners.zero import ZeroEngine
    from rlaif.modeling.models import load_causal_lm

    model = load_causal_lm(str(START / "policy"), "float32")
    config = LearnerConfig(learning_rate=1e-3, zero_stage=zero_stage, optimizer=optimizer)
    return ZeroEngine(model, model, config, torch.device("cpu"))


def step(engine, number, rank, world_size):
    """One optimizer step on 12 rows that follow from `number`, shared out over the ranks."""
    rows = torch.randint(0, 60, (12, 16), generator=torch.Generator().manual_seed(number))
    mine = rows[rank::world_size]
    logprobs = engine.module(input_ids=mine, attention_mask=torch.ones_like(mine)).logits.float().log_softmax(-1)
    engine.backward(-logprobs.gather(-1, mine.unsqueeze(-1)).mean() * len(mine) / 12, is_last=True)
    engine.step(1.0)


def weights(engine):
    return {name: tensor.detach().clone() for name, tensor in engine.each_whole_weight()}


def save(rank, world_size, folder, zero_stage, optimizer):
    """Two steps, the state to `folder`, two more steps; rank 0 notes the weights at both ends, and every rank that the
    files it names are there."""
    engine = engine_of(zero_stage, optimizer)
    for number in range(2):
        step(engine, number, rank, world_size)
    files = engine.save_state(folder, {"num_steps": 2})
    assert bool(files) == (rank == 0 or zero_stage > 0), "without ZeRO rank 0 writes for all"
    assert all((Path(folder) / name).stat().st_size == entry.size for name, entry in files.items())
    saved = weights(engine)
    for number in range(2, 4):
        step(engine, number, rank, world_size)
    last = weights(engine)
    if rank == 0:
        torch.save((saved, last), f"{folder}/../{TRUTH}")


def load(rank, world_size, folder, zero_stage, optimizer, atol):
    """The state of `folder` is taken up, and two steps on it lead to where those of the writers led."""
    engine = engine_of(zero_stage, optimizer)
    try:
        assert engine.load_state(folder) == {"num_steps": 2}
    except UserError as error:
        Path(f"{folder}/../{REFUSED}").write_text(str(error))
        return
    saved, last = torch.load(f"{folder}/../{TRUTH}")
    for numbers, want in ((range(0), saved), (range(2, 4), last)):
        for number in numbers:
            step(engine, number, rank, world_size)
        for name, tensor in weights(engine).items():
            torch.testing.assert_close(tensor, want[name], atol=atol if len(numbers) else 0.0, rtol=0, msg=name)
