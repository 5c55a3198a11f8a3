"""Supervised training: a causal LM learns targets from inputs."""

from __future__ import annotations

import asyncio
import dataclasses
from itertools import islice
from pathlib import Path

import pyarrow as pa

from actors.fitting.fitting import TOKENIZER, FitOptions, fit, run_folder
from actors.learners.learner import LearnerSpec
from rlaif.config.train import SftConfig
from rlaif.data.supervision import batches, is_chat, supervised_rows, supervised_texts
from rlaif.esfp.model_checks import check_context
from rlaif.modeling.models import absolute, load_tokenizer, refuse_incomplete, word_tokenizer
from rlaif.running.preflight import check_learner
from rlaif.running.run_folder import refuse_other_run


def run_sft(config: SftConfig) -> None:
    """launch/sft.py: trains a causal LM on (input, target) rows; output_dir becomes its Hugging Face folder."""
    if refuse_other_run(config.output_dir, config):
        print(f"{config.output_dir} is complete; nothing to do", flush=True)
        return
    tokenizer = None
    if config.policy.model is not None:
        refuse_incomplete(config.policy.model, "policy.model")
        tokenizer = load_tokenizer(config.policy.model)
        check_context(config.policy.model, config.max_tokens, "max_tokens")
    check_learner(config.learner, "supervised training", config.policy.model, config.steps)
    texts = {split: supervised_texts(config, split, tokenizer) for split in ("train", "dev")}
    if tokenizer is None:
        tokenizer = word_tokenizer((f"{a} {b}" for part in texts.values() for a, b in part), masked=False)
    rows = {split: supervised_rows(part, tokenizer, config.max_tokens, f"data.{split}", is_templated=is_chat(config))
            for split, part in texts.items()}
    train = rows["train"]
    with run_folder(config, [{"learner": config.placement}]) as report:
        folder = str(Path(config.output_dir) / TOKENIZER)
        tokenizer.save_pretrained(folder)
        model = dataclasses.replace(config.policy, model=absolute(config.policy.model))
        spec = LearnerSpec(model=model, tokenizer=str(Path(folder).resolve()), learner=config.learner,
                           total_steps=config.steps, seed=config.seed)
        options = FitOptions(config.output_dir, config.seed, config.steps, config.log_every, config.checkpoint_every,
                             dev_every=0, select_by="loss", ready_timeout_s=config.ready_timeout_s)

        def batches_after(step: int):
            order = batches(train.num_rows, config.batch_size, config.steps, config.seed)
            return (train.take(pa.array(chosen)) for chosen in islice(order, step, None))

        asyncio.run(fit(options, spec, config.placement, batches_after, rows["dev"], train.num_rows, report))
