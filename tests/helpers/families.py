"""A tiny random judge of every family of encoders, with a tokenizer of the family's own kind, trained on a few lines.

Nothing is downloaded: special tokens, normalisation, splitting and post-processing follow each family's own files.
"""

from functools import cache

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ModernBertConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

LINES = [
    "The answer is yes. The answer is no. The answer is maybe. Is it helpful? Is it honest? It is so.",
    "So: yes, it is so. So: no, it is not so, not at all. So: Unbelievably so. It is one. It is two. It is five.",
    "A man in a red coat plays a guitar on a bench. A woman reads a blue book to a cat and a dog in a park.",
    "Which one is better, the first or the second? Both are the same. 0 1 2 3 4 5 6 7 8 9 (one) [two] {three} <four>",
    "How good is it, from one to five? Unbelievably well done, and rather disappointing. It costs $5!",
    "Ответ: да. 答えははい。 مرحبا",
]
BERT = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
ROBERTA = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "cls_token": "<s>",
           "sep_token": "</s>", "mask_token": "<mask>"}


def _fast(backend: Tokenizer, names: dict[str, str]) -> PreTrainedTokenizerFast:
    cls, sep = ((names[f"{name}_token"], backend.token_to_id(names[f"{name}_token"])) for name in ("cls", "sep"))
    backend.post_processor = processors.TemplateProcessing(single=f"{cls[0]} $A {sep[0]}", special_tokens=[cls, sep])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def word_piece(is_lower: bool) -> PreTrainedTokenizerFast:
    """As BERT's: words split into pieces that begin with ##."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=is_lower)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.train_from_iterator(LINES, trainers.WordPieceTrainer(
        vocab_size=160, special_tokens=list(BERT.values()), show_progress=False))
    return _fast(backend, BERT)


def byte_level(names: dict[str, str], added: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """As RoBERTa's and ModernBERT's: no unknown text, and words know the blank before them."""
    backend = Tokenizer(models.BPE(unk_token=names["unk_token"] if added else None))
    if added:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(LINES, trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(dict.fromkeys(names.values())), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    backend.add_tokens(list(added))
    return _fast(backend, names)


def unigram() -> PreTrainedTokenizerFast:
    """As DeBERTa-v3's and XLM-RoBERTa's: SentencePiece's unigram model, blanks as ▁."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence([
        normalizers.Replace("\n", " "), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " "),
        normalizers.Strip()])
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    backend.train_from_iterator(LINES, trainers.UnigramTrainer(
        vocab_size=160, special_tokens=list(BERT.values()), unk_token="[UNK]", show_progress=False))
    return _fast(backend, BERT)


_SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
_LONG = {"max_position_embeddings": 130}
_TOKENIZERS = {
    "bert": lambda: word_piece(is_lower=True),
    "roberta": lambda: byte_level(ROBERTA),
    "deberta-v2": unigram,
    "modernbert": lambda: byte_level(BERT, added=("|||EMAIL_ADDRESS|||", "  ", "    ")),
    "distilbert": lambda: word_piece(is_lower=False),
}
FAMILIES = tuple(_TOKENIZERS)


@cache
def tokenizer_of(family: str) -> PreTrainedTokenizerBase:
    return _TOKENIZERS[family]()


def config_of(family: str, **changes: int) -> PreTrainedConfig:
    tokenizer = tokenizer_of(family)
    size = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, **changes}
    match family:
        case "bert":
            return BertConfig(**_SMALL, **_LONG, **size)
        case "roberta":
            return RobertaConfig(**_SMALL, **_LONG, **size)
        case "deberta-v2":
            return DebertaV2Config(relative_attention=True, position_buckets=16, norm_rel_ebd="layer_norm",
                                   pos_att_type=["p2c", "c2p"], share_att_key=True, position_biased_input=False,
                                   max_relative_positions=-1, type_vocab_size=0, **_SMALL, **_LONG, **size)
        case "modernbert":
            ends = {f"{name}_token_id": tokenizer.cls_token_id for name in ("cls", "bos")}
            ends |= {f"{name}_token_id": tokenizer.sep_token_id for name in ("sep", "eos")}
            return ModernBertConfig(local_attention=8, global_attn_every_n_layers=2, **ends, **_SMALL, **_LONG, **size)
        case _:
            return DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=24, **_LONG, **size)


def judge_of(family: str, head: str = "slot", num_classes: int = 1) -> PreTrainedModel:
    """In eval mode; every parameter random and large, so that each token of an input matters."""
    torch.manual_seed(0)
    if head == "slot":
        model = AutoModelForMaskedLM.from_config(config_of(family))
    else:
        model = AutoModelForSequenceClassification.from_config(config_of(family, num_labels=num_classes))
    for name, parameter in model.named_parameters():
        is_scale = "norm" in name.lower() and name.endswith("weight")
        torch.nn.init.normal_(parameter, mean=float(is_scale), std=0.5 if parameter.ndim == 2 else 0.2)
    return model.eval()
