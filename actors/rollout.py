"""RolloutActor: the policy in a vLLM engine; completions leave as they finish."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pyarrow as pa
import ray

from actors.generation import content_seed
from rlaif.batch import PROMPT, ROLLOUT, check, from_rows
from rlaif.config.train import RolloutConfig, WeightSyncConfig
from rlaif.modeling.models import load_tokenizer, published_shapes
from rlaif.modeling.weights import Manifest, refuse_mismatch, version_label


@ray.remote
class RolloutActor:
    """Verbs: `ready`, `generate`; for weights `install` (through the object store) or `open_channel`, `begin_sync`,
    `receive`, `end_sync` (straight from the learner's GPU); `holds` says what is installed.

    Holds no state but the installed weights and their version.
    """

    def __init__(self, policy: str, config: RolloutConfig, sync: WeightSyncConfig, num_gpus: float, seed: int) -> None:
        # Imported here, in the actor: the driver needs no vLLM and starts seconds sooner.
        from actors.engine import Engine

        self._config, self._version, self._backend = config, 0, sync.backend
        self._tokenizer = load_tokenizer(policy)
        self._shapes = published_shapes(policy)
        self._engine = Engine(policy, config.engine, seed=seed, num_gpus=num_gpus, backend=sync.backend)

    async def ready(self) -> None:
        if self._backend == "shared_memory":
            await self._engine.open({})

    async def open_channel(self, init_info: dict[str, Any]) -> None:
        """Meets the sender of a direct backend (nccl, ipc)."""
        await self._engine.open(init_info)

    async def generate(self, prompts: pa.Table, group_size: int, seed: int, groups_per_batch: int,
                       is_greedy: bool = False) -> AsyncIterator[pa.Table]:
        """ROLLOUT batches of `groups_per_batch` whole groups (the last may be smaller), as they finish.

        is_greedy: at temperature 0, where logprobs say nothing of the policy that is trained.
        """
        temperature = 0.0 if is_greedy else self._config.temperature
        groups = [asyncio.create_task(self._group(prompt, group_size, seed, temperature))
                  for prompt in check(prompts, PROMPT).to_pylist()]
        finished: list[dict] = []
        count = 0
        try:
            for done in asyncio.as_completed(groups):
                finished += await done
                count += 1
                if count % groups_per_batch == 0 or count == len(groups):
                    yield from_rows(finished, ROLLOUT)
                    finished = []
        finally:
            for task in groups:
                task.cancel()

    async def _group(self, prompt: dict, group_size: int, seed: int, temperature: float) -> list[dict]:
        # The version at submission: in synchronous training no sync comes between.
        version, max_tokens = self._version, self._config.max_tokens
        answers = await asyncio.gather(*(
            self._engine.generate(prompt["prompt_ids"], max_tokens=max_tokens, temperature=temperature,
                                  seed=content_seed(seed, prompt["group_id"], sample), with_logprobs=True,
                                  cache_salt=str(version))
            for sample in range(group_size)))
        texts = self._tokenizer.batch_decode([answer.token_ids for answer in answers], skip_special_tokens=True)
        return [prompt | {"sample": sample, "completion": text, "completion_ids": answer.token_ids,
                          "rollout_logprobs": answer.logprobs, "finish_reason": answer.finish_reason,
                          "policy_version": version}
                for sample, (answer, text) in enumerate(zip(answers, texts, strict=True))]

    async def install(self, version: int, manifest: Manifest, *buckets: bytes) -> tuple[str, str]:
        """Installs published weights and answers as `holds` does.

        The manifest is compared with the model before the engine is touched.
        """
        refuse_mismatch(manifest, self._shapes)
        await self._engine.install(version_label(version, manifest.checksum), buckets)
        self._version = version
        return await self.holds()

    async def begin_sync(self) -> None:
        await self._engine.begin_sync()

    async def receive(self, update_info: dict[str, Any]) -> None:
        await self._engine.receive(update_info)

    async def end_sync(self, version: int) -> None:
        await self._engine.end_sync(version_label(version, "direct"))
        self._version = version

    async def holds(self) -> tuple[str, str]:
        """What the engine says it holds: its version label, and a digest of the weights as they lie there."""
        return await self._engine.version(), await self._engine.installed_digest()
