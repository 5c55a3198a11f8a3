"""What a learner optimises to make a reward model: labels, preferences, and the words of the texts themselves."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlaif.batch import JUDGED
from rlaif.config.reward import RewardLossConfig
from rlaif.esfp.encoder import states_at
from rlaif.esfp.encoding import CompiledTemplate, Encoded, compile_template, encode
from rlaif.esfp.slot_scoring import TRANSFORMS, check_model, class_logits, combine, scores_of
from rlaif.esfp.slots import SlotTemplate
from rlaif.learning.losses import slot_loss
from rlaif.learning.reward_losses import (
    bradley_terry_loss,
    consistency_loss,
    label_regions,
    mask_tokens,
    masked_lm_loss,
    ordinal_label_loss,
    ordinal_pair_loss,
)
from rlaif.metrics import Metric, Sum, merge

__all__ = ["JudgingObjective", "JudgingOptions"]


@dataclass(frozen=True)
class JudgingOptions:
    """What the judging objective needs beside the tokenizer."""

    template: SlotTemplate
    loss: RewardLossConfig = field(default_factory=RewardLossConfig)


class JudgingObjective:
    """Cross-entropy of labelled slots, Bradley-Terry or ordinal likelihood of preferences, an optional masked-LM term.

    Rows are JUDGED; of a row's explanations the first is read. Every term is a sum over the micro-batch's rows divided
    by the global number of rows, and the terms are added.
    """

    schema = JUDGED

    def __init__(self, tokenizer: PreTrainedTokenizerBase, options: JudgingOptions) -> None:
        self._compiled = compile_template(options.template, tokenizer)
        self._template, self._options = options.template, options.loss

    def module(self, model: PreTrainedModel) -> torch.nn.Module:
        check_model(model, self._compiled)
        return _JudgingForward(model, self._compiled)

    def lengths(self, rows: pa.Table) -> list[int]:
        """Tokens of every row, both sides of a pair together."""
        encoded, second = self._encode(rows)
        sizes = [len(ids) for ids in encoded.input_ids]
        lengths = sizes[: rows.num_rows]
        for place, row in enumerate(second):
            lengths[row] += sizes[rows.num_rows + place]
        return lengths

    def weights(self, rows: pa.Table) -> list[int]:
        return [1] * rows.num_rows

    def logits(self, model: Any, rows: pa.Table) -> tuple[Tensor, Tensor]:
        """Class logits `[N, S, K]` of the rows' completions, and scores `[N, 2]` of both sides, NaN where there is no
        second; float32 on the CPU, without gradient."""
        with torch.no_grad():
            encoded, second = self._encode(rows)
            logits = model(encoded.input_ids, encoded.slot_positions).cpu()
        rewards = self._rewards(logits)
        scores = torch.full((rows.num_rows, 2), torch.nan)
        scores[:, 0] = rewards[: rows.num_rows]
        scores[torch.tensor(second, dtype=torch.int64), 1] = rewards[rows.num_rows :]
        return logits[: rows.num_rows], scores

    def loss(self, model: Any, rows: pa.Table, num_global: int, frozen: dict[str, list]
             ) -> tuple[Tensor, dict[str, Metric]]:
        encoded, second = self._encode(rows)
        # A second pass draws other dropout; without a gradient nothing is drawn.
        num_passes = 2 if self._options.consistency_weight > 0 and torch.is_grad_enabled() else 1
        passes = [model(encoded.input_ids, encoded.slot_positions) for _ in range(num_passes)]
        terms = [(loss / num_passes, metrics) for logits in passes
                 for loss, metrics in self._judging_terms(logits, rows, second, num_global)]
        if num_passes == 2:
            loss, metrics = consistency_loss(*passes, num_global_rows=num_global)
            terms.append((self._options.consistency_weight * loss, metrics))
        if self._options.masked_lm_weight > 0:
            loss, metrics = self._masked_lm_term(model, encoded, num_global)
            terms.append((self._options.masked_lm_weight * loss, metrics))
        # The first class, which every slot has: what a slot lacks is -inf.
        total = sum((loss for loss, _ in terms), start=passes[0][..., 0].sum() * 0.0)
        merged = merge({name: metric for name, metric in metrics.items() if name != "loss"} for _, metrics in terms)
        return total, merged | {"loss": Sum(float(total.detach())), "num_truncated": Sum(encoded.num_truncated)}

    def _judging_terms(self, logits: Tensor, rows: pa.Table, second: list[int], num_global: int
                       ) -> list[tuple[Tensor, dict]]:
        """The losses of labels and of preferences, each with its metrics."""
        terms = []
        if self._template.slots:
            labels = torch.tensor(rows["labels"].to_pylist(), dtype=torch.int64, device=logits.device)
            terms += self._label_terms(logits[: rows.num_rows], labels, num_global)
        if second:
            preferences = torch.tensor(rows["preference"].to_pylist(), dtype=torch.float32, device=logits.device)
            chosen = torch.tensor(second, device=logits.device)
            terms.append(self._pair_term(logits[chosen], logits[rows.num_rows :], preferences[chosen], num_global))
        return terms

    def _encode(self, rows: pa.Table) -> tuple[Encoded, list[int]]:
        """Every row's completion, then the other side of each pair that the template reads one side at a time; and
        which rows those are."""
        texts = rows.to_pydict()
        explanations, other_explanations = ([row[0] if row else None for row in texts[name]]
                                            for name in ("explanations", "other_explanations"))
        if self._template.is_pairwise:
            return encode(self._compiled, texts["prompt"], texts["completion"], explanations, texts["other"],
                          other_explanations), []
        second = [row for row, other in enumerate(texts["other"]) if other is not None]
        encoded = encode(
            self._compiled, [*texts["prompt"], *(texts["prompt"][row] for row in second)],
            [*texts["completion"], *(texts["other"][row] for row in second)],
            [*explanations, *(other_explanations[row] for row in second)])
        return encoded, second

    def _rewards(self, logits: Tensor) -> Tensor:
        scores = scores_of(logits, self._compiled, temperature=1.0)
        return combine(scores, self._compiled.weights.to(scores.device))

    def _label_terms(self, logits: Tensor, labels: Tensor, num_global: int) -> list[tuple[Tensor, dict]]:
        """Cross-entropy of all slots but those whose neighbouring ratings count as right too."""
        radius = self._options.flood_radius
        flooded = [s for s, slot in enumerate(self._template.slots) if slot.kind == "ordinal" and radius > 0]
        plain = labels.clone()
        plain[:, flooded] = -1
        terms = [slot_loss(logits, plain, num_global_rows=num_global)] if len(flooded) < labels.shape[1] else []
        for s in flooded:
            num_classes = len(self._template.slots[s].classes)
            regions = label_regions(labels[:, s], radius, num_classes)
            terms.append(ordinal_label_loss(logits[:, s, :num_classes], labels[:, s], regions,
                                            num_global_rows=num_global))
        return terms

    def _pair_term(self, first: Tensor, second: Tensor, preferences: Tensor, num_global: int) -> tuple[Tensor, dict]:
        if self._options.pairs == "bradley_terry":
            return bradley_terry_loss(self._rewards(first), self._rewards(second), preferences,
                                      num_global_rows=num_global)
        ordinal = [s for s, slot in enumerate(self._template.slots) if slot.kind == "ordinal"]
        assert len(ordinal) == 1, "checked before the start"
        num_classes = len(self._template.slots[ordinal[0]].classes)
        return ordinal_pair_loss(first[:, ordinal[0], :num_classes], second[:, ordinal[0], :num_classes], preferences,
                                 num_global_rows=num_global)

    def _masked_lm_term(self, model: Any, encoded: Encoded, num_global: int) -> tuple[Tensor, dict]:
        """Mean over rows of the mean over a row's hidden tokens: the same however rows are split.

        What is hidden follows the row's own ids and the step, which seeds torch on every rank alike.
        """
        tokenizer = self._compiled.tokenizer
        hidden_ids, places, answers = [], [], []
        for ids, spans in zip(encoded.input_ids, encoded.text_spans, strict=True):
            row = torch.tensor(ids)
            is_protected = torch.ones(len(ids), dtype=torch.bool)
            for start, end in spans:
                is_protected[start:end] = False
            digest = hashlib.blake2b(repr((torch.initial_seed(), ids)).encode(), digest_size=8).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
            masked, labels = mask_tokens(
                row, is_protected, share=self._options.masked_share, generator=generator,
                mask_id=tokenizer.mask_token_id, vocab_size=len(tokenizer), special_ids=sorted(
                    self._compiled.special_ids))
            where = (labels >= 0).nonzero().flatten()
            hidden_ids.append(masked.tolist())
            places.append(where.tolist())
            answers.append(labels[where])
        longest = max(1, *map(len, places))
        logits = model(hidden_ids, [row + [0] * (longest - len(row)) for row in places], over_vocabulary=True)
        device = logits.device
        labels = torch.full((len(places), longest), -1, dtype=torch.int64)
        for number, row in enumerate(answers):
            labels[number, : len(row)] = row
        loss = logits.sum() * 0.0
        merged: list[dict[str, Metric]] = []
        for number, row in enumerate(answers):
            if len(row):
                part, metrics = masked_lm_loss(logits[number], labels[number].to(device), num_global_tokens=len(row))
                loss = loss + part / num_global
                merged.append({name: metric for name, metric in metrics.items() if name != "loss"})
        return loss, merge(merged)


class _JudgingForward(torch.nn.Module):
    """A model whose forward reads its slots only: a training engine gathers and reduces around `forward`."""

    def __init__(self, model: PreTrainedModel, compiled: CompiledTemplate) -> None:
        super().__init__()
        self.model, self._compiled = model, compiled

    def forward(self, input_ids: list[list[int]], positions: list[list[int]], over_vocabulary: bool = False) -> Tensor:
        """Class logits `[B, S, K]` at the slots, or logits `[B, S, V]` of the whole vocabulary at `positions`."""
        if not over_vocabulary:
            return class_logits(self.model, input_ids, positions, self._compiled)
        states = states_at(self.model, input_ids, positions, self._compiled.tokenizer.pad_token_id)
        states = TRANSFORMS[self.model.config.model_type](self.model, states)
        return self.model.get_output_embeddings()(states)
