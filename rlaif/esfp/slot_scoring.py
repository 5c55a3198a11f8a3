"""Stage 2 of the ESFP reward, read: what a masked LM says at the slots of a filled template, and what that is worth.

    class_logits -> slot_probabilities -> slot_scores -> combine
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from rlaif.esfp.encoder import states_at
from rlaif.esfp.encoding import CompiledTemplate
from rlaif.esfp.slots import SlotTemplate
from rlaif.modeling.collate import pad_right

__all__ = ["TRANSFORMS", "check_model", "class_logits", "combine", "entropies", "score_margins", "scores_of",
           "slot_probabilities", "slot_scores", "word_logits"]


def class_logits(model: PreTrainedModel, input_ids: Sequence[Sequence[int]], slot_positions: Sequence[Sequence[int]],
                 compiled: CompiledTemplate) -> Tensor:
    """Logits `[B, S, K]` float32 of each slot's classes, in nats up to a constant; -inf for classes it lacks.

        z_w = mean over the pieces of label word w of the masked LM's logit of the piece at the slot
        z_k = log sum over label words w of class k of exp z_w

    model: a masked language model of `TRANSFORMS` for head "slot", a sequence classifier for the others, whose logits
    are the classes as they are. input_ids: B rows of token ids, unpadded. slot_positions: B rows of S positions. Only
    the hidden states at the slots go through the masked LM's head, and only the rows of the label words through its
    output matrix. Carries a gradient to the model unless switched off.

    Source: pattern-verbalizer pairs, Schick and Schütze 2021 (arXiv 2001.07676), section 3.1; several words a class are
    added as probabilities; a word of several pieces as the mean of their logits, OpenPrompt, Ding et al. 2021 (arXiv
    2111.01998), section 3.2.
    """
    if compiled.template.head != "slot":
        return _classifier_logits(model, input_ids, compiled)
    states = states_at(model, input_ids, slot_positions, compiled.tokenizer.pad_token_id)   # [B, S, H]
    return word_logits(model, states, compiled)


def word_logits(model: PreTrainedModel, states: Tensor, compiled: CompiledTemplate) -> Tensor:
    """Class logits `[B, S, K]` float32 of hidden states at the slots, `[B, S, H]`; see `class_logits`."""
    at_slots = _transform(model)(model, states)
    decoder = model.get_output_embeddings()
    word_ids, piece_mask = compiled.word_ids.to(states.device), compiled.piece_mask.to(states.device)
    logits = torch.einsum("bsh,skwph->bskwp", at_slots, decoder.weight[word_ids]).float()
    if decoder.bias is not None:
        logits = logits + decoder.bias[word_ids].float()
    num_pieces = piece_mask.sum(-1)     # [S, K, W]; 0 where there is no word
    logits = logits.masked_fill(~piece_mask, 0.0).sum(-1) / num_pieces.clamp(min=1)
    return torch.logsumexp(logits.masked_fill(num_pieces == 0, -math.inf), dim=-1)


def _classifier_logits(model: PreTrainedModel, input_ids: Sequence[Sequence[int]], compiled: CompiledTemplate
                       ) -> Tensor:
    ids, mask = pad_right(input_ids, compiled.tokenizer.pad_token_id)
    logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits
    return logits.float().unsqueeze(1)


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
    return torch.softmax(without_prior(class_logits, prior).float() / temperature, dim=-1)


def without_prior(class_logits: Tensor, prior: Tensor | None) -> Tensor:
    """`class_logits` `[B, S, K]` less `prior` `[S, K]`, where there is one."""
    if prior is None:
        return class_logits
    assert prior.shape == class_logits.shape[1:], (prior.shape, class_logits.shape)
    # -inf - (-inf) would be NaN
    shifted = class_logits - prior.to(class_logits)
    return torch.where(torch.isneginf(class_logits), class_logits, shifted)


def slot_scores(probabilities: Tensor, values: Tensor) -> Tensor:
    """Scores `[B, S]`, the expected value of each slot in the unit of the reward: score_s = sum_k v_k p_k.

    probabilities: `[B, S, K]`. values: `[S, K]`.
    """
    assert probabilities.ndim == 3 and values.shape == probabilities.shape[1:], (probabilities.shape, values.shape)
    return (probabilities * values.to(probabilities)).sum(-1)


def score_margins(log_probabilities: Tensor, values: Tensor, class_mask: Tensor) -> Tensor:
    """Scores `[B, S]` in nats, the log odds of the best class against the worst.

        score_s = log p_good - log p_bad,    good: the classes of the highest value, bad: those of the lowest

    log_probabilities: `[B, S, K]`. values: `[S, K]`. class_mask: `[S, K]` bool, the classes a slot has.
    """
    assert log_probabilities.shape[1:] == values.shape == class_mask.shape, (log_probabilities.shape, values.shape)
    infinite = torch.full_like(values, math.inf)
    is_best = class_mask & (values == torch.where(class_mask, values, -infinite).amax(-1, keepdim=True))
    is_worst = class_mask & (values == torch.where(class_mask, values, infinite).amin(-1, keepdim=True))
    sides = [torch.logsumexp(log_probabilities.masked_fill(~side, -math.inf), dim=-1) for side in (is_best, is_worst)]
    return sides[0] - sides[1]


def entropies(probabilities: Tensor) -> Tensor:
    """Entropies `[B, S]` of each slot's classes, nats: -sum_k p_k log p_k. probabilities: `[B, S, K]`."""
    return -torch.xlogy(probabilities, probabilities).sum(-1)


def scores_of(logits: Tensor, compiled: CompiledTemplate, temperature: float, prior: Tensor | None = None) -> Tensor:
    """Scores `[B, S]` of class logits `[B, S, K]`, each slot by its own kind of score; carries the gradient.

    The logit of a scalar head is its score, divided by the temperature.
    """
    if compiled.template.head == "scalar":
        return logits[..., 0].float() / temperature
    values = compiled.values.to(logits.device)
    probabilities = slot_probabilities(logits, temperature, prior)
    scores = slot_scores(probabilities, values)
    by_margin = torch.tensor([slot.score == "margin" for slot in compiled.template.slots], device=logits.device)
    if by_margin.any():
        logs = torch.log_softmax(without_prior(logits, prior).float() / temperature, dim=-1)
        margins = score_margins(logs, values, compiled.class_mask.to(logits.device))
        scores = torch.where(by_margin, margins, scores)
    return scores


def combine(scores: Tensor, weights: Tensor) -> Tensor:
    """Rewards `[B]`: reward = sum_s weight_s * score_s. scores: `[B, S]`. weights: `[S]`."""
    assert scores.ndim == 2 and weights.shape == scores.shape[1:], (scores.shape, weights.shape)
    return (scores * weights.to(scores)).sum(-1)


def check_model(model: PreTrainedModel, compiled: CompiledTemplate) -> None:
    """Nothing where the model can read the template; else a ValueError of one line."""
    if compiled.template.head == "slot":
        _transform(model)
    else:
        _check_classes(model, compiled.template)
    num_words = len(compiled.tokenizer)
    num_rows = model.get_input_embeddings().weight.shape[0]
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
TRANSFORMS: dict[str, Callable[[PreTrainedModel, Tensor], Tensor]] = {
    "bert": lambda model, hidden: model.cls.predictions.transform(hidden),
    "deberta": lambda model, hidden: model.cls.predictions.transform(hidden),
    "deberta-v2": lambda model, hidden: model.cls.predictions.transform(hidden),
    "distilbert": lambda model, hidden: model.vocab_layer_norm(model.activation(model.vocab_transform(hidden))),
    "modernbert": lambda model, hidden: model.head(hidden),
    "roberta": lambda model, hidden: _roberta_transform(model, hidden),
    "xlm-roberta": lambda model, hidden: _roberta_transform(model, hidden),
}
_POSITIONS_AFTER_PAD = ("roberta", "xlm-roberta")  # position ids start after the id of the pad token


def _check_classes(model: PreTrainedModel, template: SlotTemplate) -> None:
    num_labels = model.config.num_labels
    wanted = template.num_classes
    if num_labels != wanted:
        raise ValueError(f"num_labels of the model must be {wanted} with head {template.head}, got {num_labels}; load "
                         f"it with num_labels={wanted}")


def _roberta_transform(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    return model.lm_head.layer_norm(functional.gelu(model.lm_head.dense(hidden)))


def _transform(model: PreTrainedModel) -> Callable[[PreTrainedModel, Tensor], Tensor]:
    kind = model.config.model_type
    if kind not in TRANSFORMS:
        raise ValueError(f"model_type must be one of {', '.join(TRANSFORMS)}, got {kind}; add its head to "
                         "slot_scoring.TRANSFORMS")
    if not isinstance(model.get_output_embeddings(), nn.Linear) or not getattr(model.config, "legacy", True):
        raise ValueError(f"model must have a masked-LM head with an output matrix, got {type(model).__name__}; load it "
                         "with AutoModelForMaskedLM (and legacy=True for DeBERTa)")
    return TRANSFORMS[kind]
