"""The slot scorer on the GPU: scores against the CPU's, rows a second, share of the GPU's matrix rate.

A BERT of MiniLM's shapes (22.7 million parameters) with random weights; rows of some 90 words in the mean.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import BertConfig, BertForMaskedLM

from benchmarks.matrix_rate import operations
from benchmarks.on_gpu.part import Checks, run
from benchmarks.on_gpu.rate import matrix_rate, seconds
from benchmarks.slot_scoring import TEMPLATE, encode_texts, made_rows, made_tokenizer
from rlaif.esfp.reward_model import RewardModel, Texts
from rlaif.esfp.reward_spec import RewardSpec

NUM_ROWS = {"quick": 1024, "full": 8192}
COMPARED = 256
TOKENS_PER_BATCH = (8192, 65536)
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}
REPEATS = 3


def measured(form: str, checks: Checks) -> dict[str, Any]:
    prompts, completions, explanations = zip(*made_rows(NUM_ROWS[form]), strict=True)
    texts = Texts(prompts, completions, [[text] for text in explanations])
    torch.manual_seed(0)
    tokenizer = made_tokenizer(texts)
    encoder = BertForMaskedLM(BertConfig(hidden_size=384, num_hidden_layers=6, intermediate_size=1536)).eval()
    plain = RewardModel(encoder, tokenizer, RewardSpec(TEMPLATE))
    few = Texts(prompts[:COMPARED], completions[:COMPARED], [[text] for text in explanations[:COMPARED]])
    want = plain.score(few, max_tokens_per_batch=8192)
    figures: dict[str, Any] = {"rows": len(texts), "parameters": encoder.num_parameters(),
                               "probability_spread": float(want.probabilities.std(0).mean())}
    for name, tolerance in TOLERANCE.items():
        dtype = getattr(torch, name)
        model = RewardModel(copy.deepcopy(encoder).to("cuda", dtype), tokenizer, RewardSpec(TEMPLATE))
        got = model.score(few, max_tokens_per_batch=8192)
        gap = float((got.probabilities - want.probabilities).abs().max())
        checks.add(f"slot probabilities, {name}", gap, tolerance)
        checks.add(f"slot rewards, {name}", float((got.reward - want.reward).abs().max()), tolerance)
        figures[name] = _speeds(model, texts, dtype)
    return figures


def _speeds(model: RewardModel, texts: Texts, dtype: torch.dtype) -> dict[str, Any]:
    encoded = encode_texts(model, texts)
    lengths = [len(ids) for ids in encoded.input_ids]
    rate, needed = matrix_rate(dtype), operations(lengths, 1, model.model.config)
    found: dict[str, Any] = {"tokens": sum(lengths), "matrix_tflops": rate / 1e12}
    for limit in TOKENS_PER_BATCH:
        whole = seconds(lambda limit=limit: model.score(texts, max_tokens_per_batch=limit), REPEATS)
        alone = seconds(lambda limit=limit: model.logits(encoded, limit), REPEATS)
        found[f"tokens_per_batch_{limit}"] = {
            "rows_per_s": len(texts) / whole, "rows_per_s_encoded": len(texts) / alone,
            "share_of_matrix_rate_encoded": needed / alone / rate}
    return found


if __name__ == "__main__":
    run(measured)
