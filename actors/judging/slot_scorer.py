"""SlotActor: stage 2 of the reward, the encoder that fills the slots."""

from __future__ import annotations

import pyarrow as pa
import ray
import torch

from actors.faults.vitals import HEALTH, Vitals, vitals
from rlaif.batch import EXPLAINED, ROLLOUT, check
from rlaif.config.train import RewardConfig
from rlaif.esfp.gold import GOLD
from rlaif.esfp.judges import Judge, load_encoder
from rlaif.esfp.reward_model import RewardModel, Scored, Texts
from rlaif.metrics import Metric
from rlaif.rewards.scored_batch import scored_batch, texts_to_judge, without_explanations


# Out of order: a batch whose explanation is there must not wait for one that was asked for earlier.
@ray.remote(allow_out_of_order_execution=True, concurrency_groups=HEALTH)
class SlotActor:
    """Verbs: `ready`, `ping`, `version`, `score`, `score_texts`.

    gold: name of the judge that watches beside the reward, or None. judge: what config.model was found to be; None
    takes it for a reward folder. part: name of what `score` says in reward_parts.
    """

    def __init__(self, config: RewardConfig, gold: str | None, on_unusable: str = "without",
                 judge: Judge | None = None, part: str = "esfp") -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._config, self._on_unusable, self._part = config, on_unusable, part
        self._model = (RewardModel.load(config.model, getattr(torch, config.dtype), device) if judge is None else
                       load_encoder(judge, config.dtype, device))
        self._gold = GOLD[gold] if gold else None
        self._version = self._model.version()

    @ray.method(concurrency_group="health")
    def ping(self, with_stacks: bool = False) -> Vitals:
        return vitals(with_stacks)

    def ready(self) -> None:
        pass

    def version(self) -> str:
        """16 hex digits that follow what decides a reward."""
        return self._version

    def score(self, batch: pa.Table) -> tuple[pa.Table, pa.Table, dict[str, Metric]]:
        """The SCORED batch of EXPLAINED rows, or of ROLLOUT rows where no explanations are asked for; its small columns
        for the driver; and what was counted."""
        if "explanations" not in batch.schema.names:
            batch = without_explanations(check(batch, ROLLOUT))
        check(batch, EXPLAINED)
        template = self._model.spec.template
        with_references = template.is_pairwise and self._config.compare == "reference"
        texts = texts_to_judge(batch, self._on_unusable, with_references=with_references)
        limit = self._config.max_tokens_per_batch
        if template.is_pairwise and not with_references:
            scored = self._model.score_groups(texts, batch["group_id"].to_pylist(), max_tokens_per_batch=limit)
        else:
            scored = self._model.score(texts, max_tokens_per_batch=limit)
        verdicts = self._gold(texts.prompts, texts.completions) if self._gold is not None else {}
        return scored_batch(batch, scored, template, verdicts, self._part, self._version)

    def score_texts(self, texts: Texts, in_order: bool = False) -> tuple[Scored, dict[str, Metric]]:
        """What the reward model says of `texts`, and what else was counted: nothing. A pairwise template reads them
        against `texts.others`, in both orders, or `in_order` only as they are given."""
        limit = self._config.max_tokens_per_batch
        if in_order:
            return self._model.score_in_order(texts, limit), {}
        return self._model.score(texts, max_tokens_per_batch=limit), {}
