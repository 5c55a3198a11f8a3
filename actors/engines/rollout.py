"""RolloutActor: the policy in a vLLM engine; completions leave as they finish."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from actors.engines.generation import Generation, Leaving, content_seed
from actors.engines.receiving import Coming, Held, Receiver
from actors.faults.vitals import HEALTH, Vitals, vitals_with
from rlaif.batch import PROMPT, ROLLOUT, check, from_rows
from rlaif.config.train import RolloutConfig, WeightSyncConfig
from rlaif.modeling.models import load_tokenizer, published_shapes


@ray.remote(concurrency_groups=HEALTH)
class RolloutActor:
    """Verbs: `ready`, `ping`, `generate`; for weights `open_channel`, `begin_sync`, `receive` or
    `receive_direct`, `end_sync`; `holds` says what is installed.

    Holds no state but the installed weights and their version.
    """

    def __init__(self, policy: str, config: RolloutConfig, sync: WeightSyncConfig, num_gpus: float, seed: int) -> None:
        # Imported here, in the actor: the driver needs no vLLM and starts seconds sooner.
        from actors.engines.engine import Engine

        self._config, self._version = config, 0
        self._tokenizer = load_tokenizer(policy)
        self._engine = Engine(policy, config.engine, seed=seed, num_gpus=num_gpus, backend=sync.backend)
        self._weights = Receiver(self._engine, published_shapes(policy))

    async def ready(self) -> None:
        """Returns once the engine is there."""

    @ray.method(concurrency_group="health")
    async def ping(self, with_stacks: bool = False) -> Vitals:
        return await vitals_with(self._engine.pulse, with_stacks)

    async def open_channel(self, init_info: dict[str, Any]) -> None:
        """Meets the learners, where the backend has a channel of its own."""
        await self._weights.open(init_info)

    async def generate(self, prompts: pa.Table, group_size: int, seed: int, groups_per_batch: int,
                       is_greedy: bool = False, together: bool = False) -> AsyncIterator[pa.Table | Leaving]:
        """ROLLOUT batches of `groups_per_batch` whole groups (the last may be smaller), as they finish, each before a
        Leaving that tells of it: who is told of a batch knows that it is there.

        is_greedy: at temperature 0, where logprobs say nothing of the policy that is trained. together: the numbers,
        and which groups leave together, follow from this call alone; calls wait for their turn.
        """
        await self._weights.whole()     # a call that was another engine's may come while this one is sent weights
        temperature = 0.0 if is_greedy else self._config.temperature
        rows = check(prompts, PROMPT).to_pylist()
        admission = self._engine.together(len(rows) * group_size) if together else contextlib.nullcontext()
        async with admission:
            groups = [asyncio.create_task(self._group(prompt, group_size, seed, temperature)) for prompt in rows]
            finished: list[dict] = []
            try:
                for count, done in enumerate(asyncio.as_completed(groups), 1):
                    finished += await done
                    if count % groups_per_batch == 0 or count == len(groups):
                        batch = from_rows(finished, ROLLOUT)
                        yield batch
                        yield Leaving(batch["group_id"].unique().to_pylist(), batch.num_rows, batch.nbytes)
                        finished = []
            finally:
                for task in groups:
                    task.cancel()

    async def _group(self, prompt: dict, group_size: int, seed: int, temperature: float) -> list[dict]:
        version, max_tokens = self._version, self._config.max_tokens
        answers = await asyncio.gather(*(
            self._engine.generate(prompt["prompt_ids"], max_tokens=max_tokens, temperature=temperature,
                                  seed=content_seed(seed, prompt["group_id"], sample), with_logprobs=True,
                                  cache_salt=str(version))      # what the cache holds is of one version
            for sample in range(group_size)))
        texts = self._tokenizer.batch_decode([answer.token_ids for answer in answers], skip_special_tokens=True)
        return [prompt | {"sample": sample, "completion": text, "completion_ids": answer.token_ids,
                          "rollout_logprobs": answer.logprobs, "finish_reason": answer.finish_reason,
                          **_versions(answer, version)}
                for sample, (answer, text) in enumerate(zip(answers, texts, strict=True))]

    async def begin_sync(self, coming: Coming) -> bool:
        """Says whether the memory that weights will come in is to be found here; see Receiver for this and the next."""
        return await self._weights.begin(coming)

    async def receive(self, stream: str, number: int, marks: dict[str, int], data: np.ndarray | None = None) -> None:
        await self._weights.receive(stream, number, marks, data)

    async def receive_direct(self, update_info: dict[str, Any]) -> None:
        await self._weights.receive_direct(update_info)

    async def end_sync(self, stream: str, checksum: str | None) -> Held:
        held = await self._weights.end(stream, checksum)
        self._version = int(held.label.partition(":")[0])
        return held

    async def sleep(self) -> None:
        """Gives the GPU to the learners; see rollout.engine.sleeps."""
        await self._engine.sleep()

    async def wake(self) -> None:
        await self._engine.wake()

    async def holds(self) -> Held:
        """The label of the weights that a sync brought, and a digest of them as they lie in the engine; nothing before
        the first sync. Raises HalfSentWeights after a sync that was not finished."""
        self._weights.refuse_prompts()
        return self._weights.held


def _versions(answer: Generation, asked_at: int) -> dict[str, Any]:
    """policy_versions, of every token, and policy_version, the oldest of them; an update may have come in between.

    asked_at: the version of tokens whose weights have no label: the engine's when it was asked.
    """
    versions = [_number(label, asked_at) for label, num_tokens in answer.weights for _ in range(num_tokens)]
    versions = versions or [asked_at] * len(answer.token_ids)
    return {"policy_version": min(versions, default=asked_at), "policy_versions": versions}


def _number(label: str, otherwise: int) -> int:
    """The version that a label of rlaif.modeling.weights.version_label begins with."""
    number = label.partition(":")[0]
    return int(number) if number.isdigit() else otherwise
