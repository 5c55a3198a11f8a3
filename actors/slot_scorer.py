"""SlotActor: stage 2 of the reward, the masked language model that fills the slots."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch

from rlaif.batch import EXPLAINED, SCORED, SUMMARY_COLUMNS, check, with_columns
from rlaif.config import RewardConfig
from rlaif.gold import GOLD
from rlaif.metrics import Metric, Sum
from rlaif.reward_model import RewardModel


# Out of order: a batch whose explanation is there must not wait for one that was asked for earlier.
@ray.remote(allow_out_of_order_execution=True)
class SlotActor:
    """Verbs: `ready`, `score`. `gold` names the judge that watches beside the reward, or None."""

    def __init__(self, config: RewardConfig, gold: str | None) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._config = config
        self._model = RewardModel.load(config.model, getattr(torch, config.dtype), device)
        self._gold = GOLD[gold] if gold else None
        self._version = self._model.version()
        self._num_classes = [len(slot.classes) for slot in self._model.spec.template.slots]

    def ready(self) -> None:
        pass

    def score(self, explained: pa.Table) -> tuple[pa.Table, pa.Table, dict[str, Metric]]:
        """The SCORED batch, its small columns for the driver, and what was cut."""
        check(explained, EXPLAINED)
        prompts, completions = explained["prompt"].to_pylist(), explained["completion"].to_pylist()
        scored = self._model.score(prompts, completions, explained["explanation"].to_pylist(),
                                   max_tokens_per_batch=self._config.max_tokens_per_batch)
        rewards = scored.reward.tolist()
        verdicts = self._gold(prompts, completions) if self._gold is not None else {}
        table = with_columns(explained, SCORED, {
            "slot_probabilities": [
                [p for slot, size in zip(row, self._num_classes, strict=True) for p in slot[:size]]
                for row in scored.probabilities.tolist()],
            "slot_scores": scored.slot_scores.tolist(),
            "reward_parts": [[("esfp", reward)] for reward in rewards], "reward": rewards,
            "judge_verdicts": [[(name, values[row]) for name, values in verdicts.items()]
                               for row in range(explained.num_rows)],
            "reward_version": [self._version] * explained.num_rows})
        summary = table.select(list(SUMMARY_COLUMNS)).append_column(
            "num_completion_tokens", pc.list_value_length(table["completion_ids"]))
        return table, summary, {"slot_inputs_cut": Sum(scored.num_truncated)}
