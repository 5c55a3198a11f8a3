"""TRL's side of the race, in a process of its own: python benchmarks/trl_peer/train.py <settings.json>

The keys of the settings: world (folder), steps, output (JSON file to write), generator (hf | vllm), dtype (float32 |
autocast | bfloat16: weights too), engine_dtype (of vLLM: float32 | auto), is_corrected (importance sampling between
vLLM's and the trainer's logprobs, which is TRL's own default), micro_batch (completions a forward pass). Started by
torch.distributed.run it shares the completions out to its processes.

Written are the seconds of every step, from the end of the one before, and where they went. Two things are not as TRL
has them: gradient checkpointing is off, and a vLLM engine on a CPU keeps its weights as they are, as TRL puts new ones
into it one by one, which fails where they were repacked for oneDNN or AMX. It compiles nothing: that was no faster.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[0] = str(ROOT)     # in place of this folder

SETTINGS: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
NUM_PROCESSES = int(os.environ.get("WORLD_SIZE", "1"))

if SETTINGS["generator"] == "vllm":     # before it is imported
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                   "VLLM_CPU_NUM_OF_RESERVED_CPU": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}

import pyarrow.parquet  # noqa: E402
import torch  # noqa: E402
import trl.generation.vllm_generation  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import AutoTokenizer, TrainerCallback  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

from benchmarks.trl_peer import world  # noqa: E402
from benchmarks.trl_peer.reward import vowel_shares  # noqa: E402


class Clock(TrainerCallback):
    """Seconds from the end of one step to that of the next; seconds of parts of a step, and tokens, by step."""

    def __init__(self) -> None:
        self.step_s: list[float] = []
        self.parts: list[dict[str, float]] = []
        self._open: dict[str, float] = {}
        self._last = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._last = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        now = time.perf_counter()
        self.step_s.append(now - self._last)
        self.parts.append(self._open)
        self._last, self._open = now, {}

    def add(self, name: str, amount: float) -> None:
        self._open[name] = self._open.get(name, 0.0) + amount

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - started)

    def watch(self, owner: Any, method: str, name: str) -> None:
        """Adds the seconds of every call of `owner.method` to the part `name`."""
        inner = getattr(owner, method)

        @functools.wraps(inner)
        def outer(*arguments: Any, **options: Any) -> Any:
            with self.timed(name):
                return inner(*arguments, **options)

        setattr(owner, method, outer)


def keep_plain_weights() -> None:
    """vLLM on a CPU multiplies by the weights as they were loaded."""
    from vllm import LLM, _custom_ops
    from vllm.model_executor.layers import utils

    _custom_ops._supports_onednn = False
    utils.check_cpu_sgl_kernel = lambda *_: False       # which repacks bfloat16 weights for AMX
    trl.generation.vllm_generation.LLM = functools.partial(LLM, dtype=SETTINGS["engine_dtype"], enforce_eager=True)


def config(output: Path) -> GRPOConfig:
    micro_batch = SETTINGS["micro_batch"]
    assert world.NUM_COMPLETIONS % (NUM_PROCESSES * micro_batch) == 0, (NUM_PROCESSES, micro_batch)
    return GRPOConfig(
        output_dir=str(output.with_suffix("")), max_steps=SETTINGS["steps"], seed=world.SEED, use_cpu=True,
        bf16=SETTINGS["dtype"] != "float32",
        model_init_kwargs={"dtype": "bfloat16" if SETTINGS["dtype"] == "bfloat16" else "float32"},
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=world.NUM_COMPLETIONS // (NUM_PROCESSES * micro_batch),
        num_generations=world.GROUP_SIZE, max_completion_length=world.MAX_TOKENS, temperature=1.0,
        shuffle_dataset=False, loss_type="grpo", beta=world.KL_COEFFICIENT, epsilon=0.2, use_bias_correction_kl=False,
        learning_rate=world.LEARNING_RATE, lr_scheduler_type="constant", adam_beta2=0.95, weight_decay=0.0,
        max_grad_norm=1.0, gradient_checkpointing=False, use_vllm=SETTINGS["generator"] == "vllm",
        vllm_max_model_length=192, vllm_importance_sampling_correction=SETTINGS["is_corrected"],
        ddp_backend="gloo" if NUM_PROCESSES > 1 else None, ddp_find_unused_parameters=False,
        dataloader_pin_memory=False, report_to="none", save_strategy="no", logging_steps=10_000, disable_tqdm=True)


def main() -> None:
    folder, output, clock = Path(SETTINGS["world"]), Path(SETTINGS["output"]), Clock()
    if SETTINGS["generator"] == "vllm":
        keep_plain_weights()

    def reward(completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        clock.add("num_completions", len(completion_ids))
        clock.add("num_tokens", sum(map(len, completion_ids)))
        return vowel_shares(completions)

    model = str(folder / world.MODEL)
    trainer = GRPOTrainer(
        model=model, reward_funcs=reward, args=config(output), callbacks=[clock],
        processing_class=AutoTokenizer.from_pretrained(model, padding_side="left"),
        train_dataset=Dataset.from_dict(pyarrow.parquet.read_table(folder / world.THEIRS).to_pydict()))
    clock.watch(trainer, "_generate_single_turn", "generate_s")
    clock.watch(trainer, "_generate_and_score_completions", "generate_and_prepare_s")
    clock.watch(trainer, "training_step", "generate_prepare_and_gradients_s")
    trainer.train()
    if int(os.environ.get("RANK", "0")) == 0:
        output.write_text(json.dumps({"step_s": clock.step_s, "parts": clock.parts,
                                      "threads": torch.get_num_threads()}), encoding="utf-8")


if __name__ == "__main__":
    main()
