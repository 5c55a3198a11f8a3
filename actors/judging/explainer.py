"""ExplainerActor: stage 1 of the reward, in a vLLM engine or by a server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa
import ray

from actors.engines.generation import content_seed
from actors.faults.vitals import HEALTH, Vitals, vitals_with
from rlaif.batch import EXPLAINED, ROLLOUT, check, with_columns
from rlaif.config.train import ExplainerConfig
from rlaif.esfp.explanation_cache import (
    Author,
    ExplanationCache,
    Written,
    explanation_key,
    model_identity,
    server_identity,
)
from rlaif.esfp.explanations import INPUT_CUT, explanation_metrics, explanation_prompt
from rlaif.metrics import Metric, Sum
from rlaif.modeling.models import load_tokenizer


class Writer(Protocol):
    """Who writes: an engine here, or a server."""

    async def check(self) -> None:
        """Returns once the writer is there; raises UserError, one line, where it is not."""

    async def pulse(self) -> None:
        """Returns while the writer can go on; may be asked from any event loop."""

    async def write(self, questions: Sequence[str], num_samples: int, max_tokens: int, temperature: float, seed: int
                    ) -> list[list[Written]]:
        """`num_samples` explanations of each question."""

    def take_metrics(self) -> dict[str, Metric]:
        """What has been counted since the last call."""


class EngineWriter:
    """Writes in a vLLM engine of its own. A question that is too long loses its head.

    reproducible: what is written follows from the questions of a call alone, not from calls beside it.
    """

    def __init__(self, config: ExplainerConfig, num_gpus: float, seed: int, reproducible: bool = False) -> None:
        from actors.engines.engine import Engine  # in the actor: the driver needs no vLLM

        assert config.model is not None
        self._tokenizer = load_tokenizer(config.model)
        self._room, self._reproducible = config.engine.max_model_len - config.max_tokens, reproducible
        self._engine = Engine(config.model, config.engine, seed=seed, num_gpus=num_gpus)

    async def check(self) -> None:
        pass

    async def pulse(self) -> None:
        await self._engine.pulse()

    async def write(self, questions: Sequence[str], num_samples: int, max_tokens: int, temperature: float, seed: int
                    ) -> list[list[Written]]:
        num_requests = len(questions) * num_samples
        async with self._engine.together(num_requests) if self._reproducible else contextlib.nullcontext():
            flat = await asyncio.gather(*(
                self._ask(question, max_tokens, temperature, content_seed(seed, question, sample))
                for question in questions for sample in range(num_samples)))
        return [flat[start : start + num_samples] for start in range(0, len(flat), num_samples)]

    def take_metrics(self) -> dict[str, Metric]:
        return {}

    async def _ask(self, question: str, max_tokens: int, temperature: float, seed: int) -> Written:
        ids = self._tokenizer(question)["input_ids"]
        answer = await self._engine.generate(ids[-self._room :], max_tokens=max_tokens, temperature=temperature,
                                             seed=seed if temperature > 0 else None, with_logprobs=False)
        text = self._tokenizer.decode(answer.token_ids, skip_special_tokens=True).strip()
        is_cut = len(ids) > self._room and answer.finish_reason == "stop"
        return Written(text, len(answer.token_ids), INPUT_CUT if is_cut else answer.finish_reason)


@dataclass(frozen=True)
class Explained:
    """Explanations of N rows: texts and how they ended, N lists each; tokens of a row's explanations together."""

    texts: list[list[str]]
    finish_reasons: list[list[str]]
    num_tokens: list[int]


@ray.remote(concurrency_groups=HEALTH)
class ExplainerActor:
    """Verbs: `ready`, `ping`, `explain`, `explain_texts`. `config` is complete: source, model and template are set.

    Equal questions of a call share their explanations; a sampled one depends on the run's seed and the question alone.
    """

    def __init__(self, config: ExplainerConfig, num_gpus: float, seed: int, reproducible: bool = False) -> None:
        assert config.source in ("model", "server") and config.model is not None and config.template is not None
        self._config, self._seed = config, seed
        self._cache = None if config.cache is None else ExplanationCache(config.cache)
        self._writer: Writer
        if config.source == "server":
            from actors.judging.explanation_server import ServerWriter  # in the actor: the driver needs no client

            self._writer = ServerWriter(config.server, config.model)
            who = server_identity(config.server.url or "", config.model, config.server.api)
        else:
            self._writer = EngineWriter(config, num_gpus, seed, reproducible)
            who = f"{model_identity(config.model)} {config.engine.dtype}" if self._cache is not None else ""
        self._author = Author(who, config.template, config.principles, config.max_tokens, config.temperature, seed)

    @ray.method(concurrency_group="health")
    async def ping(self, with_stacks: bool = False) -> Vitals:
        return await vitals_with(self._writer.pulse, with_stacks)

    async def ready(self) -> None:
        """Returns once the writer can write."""
        await self._writer.check()

    async def explain(self, rollouts: pa.Table) -> tuple[pa.Table, dict[str, Metric]]:
        """The EXPLAINED batch of `rollouts`, and what it took."""
        check(rollouts, ROLLOUT)
        found, metrics = await self.explain_texts(rollouts["prompt"].to_pylist(), rollouts["completion"].to_pylist())
        return with_columns(rollouts, EXPLAINED, {
            "explanations": found.texts, "explanation_finish_reasons": found.finish_reasons,
            "num_explanation_tokens": found.num_tokens}), metrics

    async def explain_texts(self, prompts: Sequence[str], completions: Sequence[str]
                            ) -> tuple[Explained, dict[str, Metric]]:
        """num_samples explanations of each (prompt, completion), and what it took."""
        config = self._config
        questions = [explanation_prompt(config.template, prompt, completion, config.principles)
                     for prompt, completion in zip(prompts, completions, strict=True)]
        unique = list(dict.fromkeys(questions))
        answers, num_cached = await self._answers(unique)
        rows = [answers[question] for question in questions]
        found = Explained([[one.text for one in row] for row in rows],
                          [[one.finish_reason for one in row] for row in rows],
                          [sum(one.num_tokens for one in row) for row in rows])
        metrics = explanation_metrics(found.texts, found.finish_reasons, found.num_tokens)
        return found, metrics | self._writer.take_metrics() | {"explanations_cached": Sum(num_cached)}

    async def _answers(self, questions: list[str]) -> tuple[dict[str, list[Written]], int]:
        """The explanations of each question, from the cache where it has them all; and how many it had."""
        config, samples = self._config, range(self._config.num_samples)
        keys = {question: [explanation_key(self._author, question, sample) for sample in samples]
                for question in questions}
        known = {}
        if self._cache is not None:     # apart: another process may be writing
            known = await asyncio.to_thread(self._cache.get_many, [key for group in keys.values() for key in group])
        missing = [question for question in questions if any(key not in known for key in keys[question])]
        written = await self._writer.write(missing, config.num_samples, config.max_tokens, config.temperature,
                                           self._seed)
        fresh = dict(zip(missing, written, strict=True))
        if self._cache is not None:
            entries = {key: one for question, group in fresh.items()
                       for key, one in zip(keys[question], group, strict=True)}
            await asyncio.to_thread(self._cache.put_many, entries)
        answers = {question: fresh[question] if question in fresh else [known[key] for key in keys[question]]
                   for question in questions}
        return answers, (len(questions) - len(missing)) * config.num_samples
