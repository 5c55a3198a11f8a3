"""GenerativeJudgeActor: a causal language model in a vLLM engine that judges by its next token's probabilities."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import ray
import torch

from actors.engines.generation import Generation
from actors.faults.vitals import HEALTH, Vitals, vitals_with
from rlaif.config.train import EngineConfig
from rlaif.esfp.generative_judge import ask, compile_question, judge, label_mass, with_reasoning
from rlaif.esfp.generative_spec import GenerativeSpec, to_dict
from rlaif.esfp.reward_model import Scored, Texts
from rlaif.metrics import Mean, Metric, Min, Sum
from rlaif.modeling.models import load_tokenizer

_Answer = TypeVar("_Answer")


@ray.remote(concurrency_groups=HEALTH)
class GenerativeJudgeActor:
    """Verbs: `ready`, `ping`, `version`, `score_texts`. Holds no state but the model.

    `spec.model` is a name or a folder as seen from here. The engine's dtype and length follow from the specification.
    reproducible: what it says follows from the texts of a call alone, not from calls beside it.
    """

    def __init__(self, spec: GenerativeSpec, engine: EngineConfig, num_gpus: float, seed: int,
                 reproducible: bool = False) -> None:
        self._reproducible = reproducible
        self._tokenizer = load_tokenizer(spec.model)
        self._compiled = compile_question(spec, self._tokenizer)    # refuses before the engine starts

        from actors.engines.engine import Engine  # in the actor: the driver needs no vLLM

        engine = dataclasses.replace(engine, dtype=spec.dtype, max_model_len=spec.context_tokens)
        self._engine = Engine(spec.model, engine, seed=seed, num_gpus=num_gpus)

    @ray.method(concurrency_group="health")
    async def ping(self, with_stacks: bool = False) -> Vitals:
        return await vitals_with(self._engine.pulse, with_stacks)

    async def ready(self) -> None:
        """Returns once the engine has started."""

    async def version(self) -> str:
        """16 hex digits that follow what decides a reward: weights as loaded, specification, markup, vocabulary."""
        spec = to_dict(self._compiled.spec)
        del spec["model"]
        rest = [spec, repr((self._compiled.form, self._compiled.form_without, self._compiled.closing_ids)),
                sorted(self._tokenizer.get_vocab().items())]
        digest = hashlib.sha256((await self._engine.installed_digest()).encode())
        digest.update(json.dumps(rest).encode())
        return digest.hexdigest()[:16]

    async def score_texts(self, texts: Texts, in_order: bool = False) -> tuple[Scored, dict[str, Metric]]:
        """What the judge says of `texts`, and what it took. All questions are asked at once, equal ones once.

        in_order: pairs are read in the order they are given only, instead of both.
        """
        compiled = self._compiled
        questions = ask(compiled, texts, in_order=in_order)
        asked, metrics = questions.input_ids, {}
        if compiled.spec.max_reasoning_tokens:
            reasonings = await self._each_once(asked, self._reason)
            asked = [with_reasoning(compiled, question, reasoning.token_ids)
                     for question, reasoning in zip(asked, reasonings, strict=True)]
            metrics = _reasoning_metrics(reasonings)
        answers = await self._each_once(asked, self._answer)
        logprobs = torch.tensor(answers, dtype=torch.float32).view(len(asked), len(compiled.label_ids))
        mass = label_mass(logprobs).tolist()
        metrics |= {"judge_inputs_cut": Sum(questions.num_truncated), "judge_label_mass": Mean(sum(mass), len(mass)),
                    "judge_label_mass_min": Min(min(mass, default=None))}
        return judge(compiled, questions, logprobs), metrics

    async def _each_once(self, questions: Sequence[Sequence[int]],
                         put: Callable[[Sequence[int]], Awaitable[_Answer]]) -> list[_Answer]:
        """The answers to `questions`, in order; equal questions are put once."""
        keys = [tuple(question) for question in questions]
        unique = list(dict.fromkeys(keys))
        async with self._engine.together(len(unique)) if self._reproducible else contextlib.nullcontext():
            answers = dict(zip(unique, await asyncio.gather(*map(put, unique)), strict=True))
        return [answers[key] for key in keys]

    async def _reason(self, question: Sequence[int]) -> Generation:
        return await self._engine.generate(question, max_tokens=self._compiled.spec.max_reasoning_tokens,
                                           temperature=0.0, seed=None, with_logprobs=False)

    async def _answer(self, question: Sequence[int]) -> list[float]:
        return await self._engine.label_logprobs(question, self._compiled.label_ids)


def _reasoning_metrics(reasonings: Sequence[Generation]) -> dict[str, Metric]:
    """An end token counts as a token; with nothing before it, the reasoning is empty."""
    lengths = [len(reasoning.token_ids) for reasoning in reasonings]
    reasons = [reasoning.finish_reason for reasoning in reasonings]
    return {"judge_reasoning_tokens": Mean(sum(lengths), len(lengths)),
            "judge_reasonings_cut": Sum(reasons.count("length")),
            "judge_reasonings_empty": Sum(sum(reason != "length" and length <= 1
                                              for reason, length in zip(reasons, lengths, strict=True)))}
