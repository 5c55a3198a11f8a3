"""A generative judge to measure beside: a causal LM of random weights, as large as the slot model, in the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from rlaif.config.train import EngineConfig


class CausalJudge:
    """A Llama of 22.3 M parameters (MiniLM's layers and width, heads of 64) in the project's vLLM engine.

    A first token that changes from call to call keeps the engine from finding an earlier round's questions in its
    cache.
    """

    def __init__(self, runner: asyncio.Runner, folder: Path, dtype: str, tokenizer: PreTrainedTokenizerBase, *,
                 num_words: int, max_model_len: int) -> None:
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(
            vocab_size=num_words, hidden_size=384, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=6,
            num_key_value_heads=6, head_dim=64, tie_word_embeddings=True, max_position_embeddings=max_model_len,
            bos_token_id=None, eos_token_id=None))
        self.num_parameters = model.num_parameters()
        self.mean_reasoning_tokens = 0.0    # of the last call that reasoned
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        self._runner, self._num_calls = runner, 0
        config = EngineConfig(dtype=dtype, max_model_len=max_model_len, kv_cache_mb=512)
        self._engine = runner.run(self._start(str(folder), config))

    @staticmethod
    async def _start(folder: str, config: EngineConfig) -> Any:
        from actors.engines.engine import Engine  # takes seconds: only where a judge is wanted

        return Engine(folder, config, seed=0, num_gpus=0)

    def ask(self, questions: Sequence[Sequence[int]], label_ids: Sequence[int], reasoning_tokens: int = 0
            ) -> torch.Tensor:
        """Log-probabilities `[N, W]` of the label words as the token after each question, or after the reasoning."""
        self._num_calls += 1
        return torch.tensor(self._runner.run(self._ask(questions, label_ids, reasoning_tokens)))

    async def _ask(self, questions: Sequence[Sequence[int]], label_ids: Sequence[int], reasoning_tokens: int
                   ) -> list[list[float]]:
        asked = [[1000 + self._num_calls, *question] for question in questions]
        if reasoning_tokens:
            answers = await asyncio.gather(*(self._reason(ids, label_ids, reasoning_tokens) for ids in asked))
            self.mean_reasoning_tokens = sum(num for num, _ in answers) / len(answers)
            return [logprobs for _, logprobs in answers]
        return await asyncio.gather(*(self._engine.label_logprobs(ids, label_ids) for ids in asked))

    async def _reason(self, question: list[int], label_ids: Sequence[int], max_tokens: int) -> tuple[int, list[float]]:
        written = (await self._engine.generate(question, max_tokens=max_tokens, temperature=0.0, seed=None,
                                               with_logprobs=False)).token_ids
        return len(written), await self._engine.label_logprobs([*question, *written], label_ids)

    def close(self) -> None:
        self._engine.close()
        del self._engine
