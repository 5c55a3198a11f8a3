"""Preference training: a policy learns to prefer the better of two completions, held by itself as it was."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import islice

import pyarrow as pa

from actors.fitting.fitting import FitOptions, fit, run_folder
from actors.learners.learner import LearnerSpec
from rlaif.config.checks import UserError
from rlaif.config.dpo import DpoConfig
from rlaif.config.train import ModelConfig
from rlaif.data.preferences import encoded_pairs
from rlaif.data.supervision import batches
from rlaif.esfp.model_checks import check_context
from rlaif.modeling.models import absolute, load_tokenizer, refuse_incomplete
from rlaif.policy.preference_loss import PreferenceOptions
from rlaif.running.preflight import check_learner
from rlaif.running.run_folder import refuse_other_run


def run_dpo(config: DpoConfig) -> None:
    """launch/dpo.py: trains a causal LM on pairs of completions; output_dir becomes its Hugging Face folder."""
    if refuse_other_run(config.output_dir, config):
        print(f"{config.output_dir} is complete; nothing to do", flush=True)
        return
    model = config.policy.model
    if model is None:
        raise UserError("policy.model must be a Hugging Face name or folder, got null: preferences are learnt by a "
                        "policy that writes already; launch/sft.py makes one")
    refuse_incomplete(model, "policy.model")
    check_context(model, config.max_tokens, "max_tokens")
    check_learner(config.learner, "preference training", model, config.steps)
    rows = encoded_pairs(config, load_tokenizer(model))
    train = rows["train"]
    with run_folder(config, [{"learner": config.placement}]) as report:
        folder = str(absolute(model))       # actors may run in another folder
        spec = LearnerSpec(model=ModelConfig(folder), tokenizer=folder, learner=config.learner,
                           total_steps=config.steps, seed=config.seed,
                           objective=PreferenceOptions(config.beta, config.label_smoothing))
        options = FitOptions(config.output_dir, config.seed, config.steps, config.log_every, config.checkpoint_every,
                             config.dev_every, config.select_by, config.ready_timeout_s)

        def batches_after(step: int) -> Iterator[pa.Table]:
            order = batches(train.num_rows, config.batch_size, config.steps, config.seed)
            return (train.take(pa.array(chosen)) for chosen in islice(order, step, None))

        asyncio.run(fit(options, spec, config.placement, batches_after, rows["dev"], train.num_rows, report))
