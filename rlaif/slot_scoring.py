"""Stage 2 of the ESFP reward, read: what a masked LM says at the slots of a filled template, and what that is worth.

    class_logits -> slot_probabilities -> slot_scores -> combine
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from rlaif.slots import CompiledTemplate

__all__ = ["HEADS", "check_model", "class_logits", "combine", "slot_probabilities", "slot_scores"]


def class_logits(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, slot_positions: Tensor,
                 compiled: CompiledTemplate) -> Tensor:
    """Logits `[B, S, K]` float32 of each slot's classes, in nats up to a constant; -inf for classes it lacks.

        z_k = log sum over label words w of class k of exp(the masked LM's logit of w at the slot)

    model: a masked language model, see `HEADS`. input_ids: `[B, T]` int64, padded on the right. attention_mask:
    `[B, T]` int64 or bool. slot_positions: `[B, S]` int64. Only the hidden states at the slots go through the head, and
    only the rows of the label words through the output matrix. Carries a gradient to the model unless switched off.

    Source: pattern-verbalizer pairs, Schick and Schütze 2021 (arXiv 2001.07676), section 3.1; several words a class are
    added as probabilities.
    """
    assert input_ids.ndim == 2 and attention_mask.shape == input_ids.shape, (input_ids.shape, attention_mask.shape)
    assert slot_positions.shape == (len(input_ids), len(compiled.template.slots)), slot_positions.shape
    transform = _head(model)
    decoder = model.get_output_embeddings()
    hidden = model.base_model(input_ids=input_ids, attention_mask=attention_mask)[0]  # [B, T, H]
    at_slots = hidden.gather(1, slot_positions.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
    at_slots = transform(model, at_slots)  # [B, S, H]

    word_ids = compiled.word_ids.to(hidden.device)
    word_mask = compiled.word_mask.to(hidden.device)
    logits = torch.einsum("bsh,skwh->bskw", at_slots, decoder.weight[word_ids]).float()
    if decoder.bias is not None:
        logits = logits + decoder.bias[word_ids].float()
    return torch.logsumexp(logits.masked_fill(~word_mask, -math.inf), dim=-1)


def slot_probabilities(class_logits: Tensor, temperature: float, prior: Tensor | None = None) -> Tensor:
    """Probabilities `[B, S, K]` of each slot's classes.

        p = softmax((z - c) / temperature)

    class_logits: `[B, S, K]`, z, nats. temperature: > 0. prior: `[S, K]`, c, nats, the class logits of content-free
    input; entries of classes a slot does not have are ignored.

    Source: temperature scaling, Guo et al. 2017 (arXiv 1706.04599), eq. 9; content-free prior, Zhao et al. 2021 (arXiv
    2102.09690), section 5. Departs from the latter in that c is subtracted as a logit before the temperature.
    """
    assert class_logits.ndim == 3, class_logits.shape
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}; 1.0 is uncalibrated")
    if prior is not None:
        assert prior.shape == class_logits.shape[1:], (prior.shape, class_logits.shape)
        # -inf - (-inf) would be NaN
        shifted = class_logits - prior.to(class_logits)
        class_logits = torch.where(torch.isneginf(class_logits), class_logits, shifted)
    return torch.softmax(class_logits.float() / temperature, dim=-1)


def slot_scores(probabilities: Tensor, values: Tensor) -> Tensor:
    """Scores `[B, S]`, the expected value of each slot in the unit of the reward: score_s = sum_k v_k p_k.

    probabilities: `[B, S, K]`. values: `[S, K]`.
    """
    assert probabilities.ndim == 3 and values.shape == probabilities.shape[1:], (probabilities.shape, values.shape)
    return (probabilities * values.to(probabilities)).sum(-1)


def combine(scores: Tensor, weights: Tensor) -> Tensor:
    """Rewards `[B]`: reward = sum_s weight_s * score_s. scores: `[B, S]`. weights: `[S]`."""
    assert scores.ndim == 2 and weights.shape == scores.shape[1:], (scores.shape, weights.shape)
    return (scores * weights.to(scores)).sum(-1)


def check_model(model: PreTrainedModel, compiled: CompiledTemplate) -> None:
    """Nothing where the model can read the template; else a ValueError of one line."""
    _head(model)
    num_words = len(compiled.tokenizer)
    num_rows = model.get_output_embeddings().weight.shape[0]
    if num_words > num_rows:
        raise ValueError(f"tokenizer must have at most the model's {num_rows} tokens, got {num_words}; use the "
                         "tokenizer the model was trained with")
    num_positions = getattr(model.config, "max_position_embeddings", None)
    if num_positions is not None and model.config.model_type in _POSITIONS_AFTER_PAD:
        num_positions -= model.config.pad_token_id + 1
    if num_positions is not None and compiled.template.max_tokens > num_positions:
        raise ValueError(f"max_tokens must be <= {num_positions}, the positions of the model, got "
                         f"{compiled.template.max_tokens}; lower it")


# model_type -> what the masked-LM head does before the output matrix: (model, hidden [..., H]) -> [..., H]
HEADS: dict[str, Callable[[PreTrainedModel, Tensor], Tensor]] = {
    "bert": lambda model, hidden: model.cls.predictions.transform(hidden),
    "deberta": lambda model, hidden: model.cls.predictions.transform(hidden),
    "deberta-v2": lambda model, hidden: model.cls.predictions.transform(hidden),
    "distilbert": lambda model, hidden: model.vocab_layer_norm(model.activation(model.vocab_transform(hidden))),
    "modernbert": lambda model, hidden: model.head(hidden),
    "roberta": lambda model, hidden: _roberta_transform(model, hidden),
    "xlm-roberta": lambda model, hidden: _roberta_transform(model, hidden),
}
_POSITIONS_AFTER_PAD = ("roberta", "xlm-roberta")  # position ids start after the id of the pad token


def _roberta_transform(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    return model.lm_head.layer_norm(functional.gelu(model.lm_head.dense(hidden)))


def _head(model: PreTrainedModel) -> Callable[[PreTrainedModel, Tensor], Tensor]:
    kind = model.config.model_type
    if kind not in HEADS:
        raise ValueError(f"model_type must be one of {', '.join(HEADS)}, got {kind}; add its head to "
                         "slot_scoring.HEADS")
    if not isinstance(model.get_output_embeddings(), nn.Linear) or not getattr(model.config, "legacy", True):
        raise ValueError(f"model must have a masked-LM head with an output matrix, got {type(model).__name__}; load it "
                         "with AutoModelForMaskedLM (and legacy=True for DeBERTa)")
    return HEADS[kind]
