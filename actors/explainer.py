"""ExplainerActor: stage 1 of the reward in a vLLM engine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pyarrow as pa
import ray

from actors.generation import Generation, content_seed
from rlaif.batch import EXPLAINED, ROLLOUT, check, with_columns
from rlaif.config import ExplainerConfig
from rlaif.explanations import explanation_prompt
from rlaif.metrics import Mean, Metric, Sum
from rlaif.models import load_tokenizer

INPUT_CUT = "input_cut"     # finish reason of an explanation whose question had to be shortened


@ray.remote
class ExplainerActor:
    """Verbs: `ready`, `explain`, `explain_texts`. `config` is complete: its model and template are set.

    Equal questions of a call share one explanation; a sampled one depends on the run's seed and the question alone.
    """

    def __init__(self, config: ExplainerConfig, num_gpus: float, seed: int) -> None:
        assert config.model is not None and config.template is not None
        from actors.engine import Engine  # in the actor: the driver needs no vLLM

        self._config, self._seed = config, seed
        self._tokenizer = load_tokenizer(config.model)
        self._engine = Engine(config.model, config.engine, seed=seed, num_gpus=num_gpus)

    async def ready(self) -> None:
        """Returns once the engine has started."""

    async def explain(self, rollouts: pa.Table) -> tuple[pa.Table, dict[str, Metric]]:
        """The EXPLAINED batch of `rollouts`, and what it took."""
        check(rollouts, ROLLOUT)
        texts, answers = await self._explain(rollouts["prompt"].to_pylist(), rollouts["completion"].to_pylist())
        table = with_columns(rollouts, EXPLAINED, {
            "explanation": texts, "num_explanation_tokens": [len(answer.token_ids) for answer in answers],
            "explanation_finish_reason": [answer.finish_reason for answer in answers]})
        return table, self._metrics(answers)

    async def explain_texts(self, prompts: Sequence[str], completions: Sequence[str]
                            ) -> tuple[list[str], dict[str, Metric]]:
        """Explanations of `completions` to `prompts`, and what they took."""
        texts, answers = await self._explain(prompts, completions)
        return texts, self._metrics(answers)

    async def _explain(self, prompts: Sequence[str], completions: Sequence[str]
                       ) -> tuple[list[str], list[Generation]]:
        """Equal questions are asked once."""
        config = self._config
        questions = [explanation_prompt(config.template, prompt, completion, config.principles)
                     for prompt, completion in zip(prompts, completions, strict=True)]
        unique = list(dict.fromkeys(questions))
        answers = dict(zip(unique, await asyncio.gather(*map(self._ask, unique)), strict=True))
        ordered = [answers[question] for question in questions]
        texts = self._tokenizer.batch_decode([answer.token_ids for answer in ordered], skip_special_tokens=True)
        return texts, ordered

    async def _ask(self, question: str) -> Generation:
        config = self._config
        ids = self._tokenizer(question)["input_ids"]
        room = config.engine.max_model_len - config.max_tokens
        answer = await self._engine.generate(
            ids[-room:], max_tokens=config.max_tokens, temperature=config.temperature,
            seed=content_seed(self._seed, question) if config.temperature > 0 else None, with_logprobs=False)
        if len(ids) > room:
            return Generation(answer.token_ids, answer.logprobs, INPUT_CUT)
        return answer

    @staticmethod
    def _metrics(answers: Sequence[Generation]) -> dict[str, Metric]:
        reasons = [answer.finish_reason for answer in answers]
        return {"explanation_tokens": Mean(sum(len(answer.token_ids) for answer in answers), len(answers)),
                "explanations_cut": Sum(reasons.count("length")), "explainer_inputs_cut": Sum(reasons.count(INPUT_CUT)),
                "explanations_empty": Sum(sum(len(answer.token_ids) <= 1 for answer in answers))}
