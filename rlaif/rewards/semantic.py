"""Rewards by a sentence encoder: how near a completion is to its reference, how far from the others of its group."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from rlaif.modeling.bucketing import token_budget_batches
from rlaif.modeling.collate import pad_right
from rlaif.modeling.models import load_tokenizer
from rlaif.statistics import rows_by_key

__all__ = ["SentenceEncoder", "diversities", "similarities"]


class SentenceEncoder:
    """A transformers encoder that makes a vector of a text: the mean of its last states over the text's tokens.

    Source: Reimers and Gurevych 2019, Sentence-BERT, MEAN pooling.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_tokens: int = 256,
                 max_tokens_per_batch: int = 8192) -> None:
        self._model, self._tokenizer = model.eval(), tokenizer
        self._max_tokens, self._max_tokens_per_batch = max_tokens, max_tokens_per_batch

    @classmethod
    def load(cls, encoder: str, dtype: str, max_tokens: int, max_tokens_per_batch: int, device: str
             ) -> SentenceEncoder:
        model = AutoModel.from_pretrained(encoder, dtype=getattr(torch, dtype), use_safetensors=True,
                                          trust_remote_code=False)
        return cls(model.to(device), load_tokenizer(encoder), max_tokens, max_tokens_per_batch)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> tuple[Tensor, int]:
        """Vectors `[N, H]` float32 of length 1 (0 for a text without tokens), and how many texts were cut.

        Equal texts are read once.
        """
        distinct = list(dict.fromkeys(texts))
        ids, is_cut = self._ids(distinct)
        vectors = torch.zeros(len(distinct), self._model.config.get_text_config().hidden_size)
        for rows in token_budget_batches([len(row) for row in ids], self._max_tokens_per_batch):
            rows = [row for row in rows if ids[row]]
            if rows:
                vectors[rows] = self._pooled([ids[row] for row in rows])
        place = {text: row for row, text in enumerate(distinct)}
        order = [place[text] for text in texts]
        return functional.normalize(vectors, dim=-1)[order], sum(is_cut[row] for row in order)

    def _ids(self, texts: Sequence[str]) -> tuple[list[list[int]], list[bool]]:
        if not texts:
            return [], []
        ids = self._tokenizer(list(texts))["input_ids"]
        is_cut = [len(row) > self._max_tokens for row in ids]
        return [self._tokenizer(text, truncation=True, max_length=self._max_tokens)["input_ids"] if long else row
                for text, row, long in zip(texts, ids, is_cut, strict=True)], is_cut

    def _pooled(self, ids: Sequence[Sequence[int]]) -> Tensor:
        input_ids, mask = (part.to(self._model.device) for part in pad_right(ids, self._tokenizer.pad_token_id or 0))
        states = self._model(input_ids=input_ids, attention_mask=mask).last_hidden_state.float()
        weights = mask.unsqueeze(-1).float()
        return ((states * weights).sum(1) / weights.sum(1)).cpu()


def similarities(encoder: SentenceEncoder, completions: Sequence[str], references: Sequence[str | None]
                 ) -> tuple[list[float | None], int]:
    """The cosine of each completion's vector with its reference's, -1..1, None without a reference; and the number of
    texts cut."""
    rows = [row for row, reference in enumerate(references) if reference is not None]
    vectors, num_cut = encoder.encode([completions[row] for row in rows] + [references[row] or "" for row in rows])
    mine, theirs = vectors[: len(rows)], vectors[len(rows):]
    found: list[float | None] = [None] * len(completions)
    for row, cosine in zip(rows, (mine * theirs).sum(-1).tolist(), strict=True):
        found[row] = cosine
    return found, num_cut


def diversities(encoder: SentenceEncoder, completions: Sequence[str], group_ids: Sequence[int]
                ) -> tuple[list[float | None], int]:
    """How far each completion is from the others of its group, 0..2, and the number of texts cut.

        d_i = 1 - 1 / (n - 1) sum over j != i of cos(e_i, e_j)

    None in a group of one: there is nothing to differ from.
    """
    vectors, num_cut = encoder.encode(completions)
    found: list[float | None] = [None] * len(completions)
    for rows in rows_by_key(list(group_ids), len(completions)).values():
        if len(rows) == 1:
            continue
        group = vectors[rows].double()
        cosines = (group @ group.T).fill_diagonal_(0.0)
        for row, mean in zip(rows.tolist(), (cosines.sum(1) / (len(rows) - 1)).tolist(), strict=True):
            found[row] = 1.0 - mean
    return found, num_cut
