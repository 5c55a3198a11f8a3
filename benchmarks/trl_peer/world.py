"""What both trainers are given: a small Qwen2, its tokenizer, prompts in the order of the steps; and the work it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

MODEL, OURS, THEIRS = "model", "prompts.parquet", "prompts_in_order.parquet"
VOCABULARY, HIDDEN, INNER, LAYERS, HEADS = 8192, 256, 1024, 8, 4
NUM_PROMPTS, GROUP_SIZE, MAX_TOKENS = 16, 8, 64     # of a step, of a prompt, of a completion
NUM_COMPLETIONS = NUM_PROMPTS * GROUP_SIZE
NUM_STEPS = 16      # there are prompts for
KL_COEFFICIENT = 0.04
LEARNING_RATE = 1.0e-5
SEED = 0


def write_world(folder: Path, data: Path) -> None:
    """The model, its tokenizer and the prompts, unless they are there. data: the folder that RLAIF_DATA names."""
    if (folder / THEIRS).is_file():
        return
    from transformers.utils import logging

    logging.disable_progress_bar()
    table = pyarrow.parquet.read_table(data / "prompts" / "train.parquet", columns=["prompt", "reference"])
    texts = [text for name in ("prompt", "reference") for text in table[name].to_pylist()]
    _write_model(folder / MODEL, texts)
    pyarrow.parquet.write_table(table.select(["prompt"]).slice(0, NUM_STEPS * NUM_PROMPTS), folder / OURS)
    ordered = [row["prompt"] for row in prompts(folder)]
    pyarrow.parquet.write_table(pa.table({"prompt": ordered}), folder / THEIRS)


def _write_model(folder: Path, texts: Sequence[str]) -> None:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

    # Of the model's own type: beside a Qwen2, AutoTokenizer reads any other as this one, and wrongly.
    tokenizer = Qwen2Tokenizer().train_new_from_iterator(texts, vocab_size=VOCABULARY, show_progress=False)
    torch.manual_seed(SEED)
    model = Qwen2ForCausalLM(Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=512, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def prompts(folder: Path) -> list[dict[str, Any]]:
    """The prompts with their tokens, in the order in which our steps draw them."""
    from rlaif.config.prompts import PromptsConfig
    from rlaif.data.prompts import PromptStream, read_prompts
    from rlaif.modeling.models import load_tokenizer

    path = str(folder / OURS)
    found = read_prompts(PromptsConfig(train=path, test=path), "train", load_tokenizer(str(folder / MODEL)), 512)
    return PromptStream(found.rows, SEED).next(NUM_STEPS * NUM_PROMPTS).to_pylist()


def operations(prompt_sizes: Sequence[int], completion_sizes: Sequence[int]) -> float:
    """Multiplications and additions that a step cannot do without, for prompts and completions of these many tokens.

    Weights of the layers and attention to what stands before, forward for generation, for the reference policy and for
    the policy, and twice as much backward; the output matrix likewise, at the tokens of completions alone. A prompt
    that a group shares is counted once.
    """
    group_size = len(completion_sizes) // len(prompt_sizes)
    layer = 2 * (4 * HIDDEN * HIDDEN + 3 * HIDDEN * INNER)
    pairs = num_tokens = 0
    for number, size in enumerate(prompt_sizes):
        own = completion_sizes[number * group_size : (number + 1) * group_size]
        num_tokens += size + sum(own)
        pairs += size * size / 2 + sum(size * length + length * length / 2 for length in own)
    read = 2 * HIDDEN * VOCABULARY * sum(completion_sizes)
    return (1 + 1 + 3) * (LAYERS * (layer * num_tokens + 4 * HIDDEN * pairs) + read)
