"""Language models and tokenizers: load a checkpoint, or build a small one from nothing.

Only safetensors are read, and code that comes with a checkpoint is never run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from rlaif.config.checks import UserError
from rlaif.config.train import ScratchConfig
from rlaif.modeling.weights import checkpoint_shapes

PAD, UNK, BOS, EOS, CLS, SEP, MASK = "<pad>", "<unk>", "<bos>", "<eos>", "[CLS]", "[SEP]", "[MASK]"


def word_tokenizer(texts: Iterable[str], *, masked: bool) -> PreTrainedTokenizerFast:
    """A tokenizer with one token a word or punctuation mark of `texts`, case kept, vocabulary exact.

    `masked` gives the special tokens of a masked LM, else those of a causal LM. The size is not padded: an id without
    a word could be sampled.
    """
    special = [PAD, UNK, CLS, SEP, MASK] if masked else [PAD, UNK, BOS, EOS]
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"[^\w\s]"), behavior="isolated")])
    tokenizer.decoder = decoders.Sequence([decoders.WordPiece(prefix="##", cleanup=True), decoders.Replace(" :", ":")])
    tokenizer.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=special, vocab_size=1 << 16))
    if masked:
        ids = [(token, tokenizer.token_to_id(token)) for token in (CLS, SEP)]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{CLS} $A {SEP}", pair=f"{CLS} $A {SEP} $B:1 {SEP}:1", special_tokens=ids)
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, unk_token=UNK, cls_token=CLS,
                                       sep_token=SEP, mask_token=MASK)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, unk_token=UNK, bos_token=BOS,
                                   eos_token=EOS)


def scratch_causal_lm(config: ScratchConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """A Llama-type causal LM with tied embeddings, its weights drawn from `seed`.

    Not Qwen2: AutoTokenizer replaces whatever tokenizer lies beside a Qwen2 model by a byte-level one."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=config.hidden_size, num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads, num_key_value_heads=config.num_heads,
        intermediate_size=config.intermediate_size, max_position_embeddings=config.max_positions,
        initializer_range=config.initializer_range, tie_word_embeddings=True, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id))


def scratch_judge(config: ScratchConfig, tokenizer: PreTrainedTokenizerBase, seed: int, head: str, num_classes: int
                  ) -> PreTrainedModel:
    """A BERT with a `head` of rlaif.esfp.slots.HEADS, its weights drawn from `seed`."""
    torch.manual_seed(seed)
    kind = BertForMaskedLM if head == "slot" else BertForSequenceClassification
    return kind(BertConfig(
        num_labels=num_classes,
        vocab_size=len(tokenizer), hidden_size=config.hidden_size, num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads, intermediate_size=config.intermediate_size,
        max_position_embeddings=config.max_positions, initializer_range=config.initializer_range,
        pad_token_id=tokenizer.pad_token_id, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))


def refuse_incomplete(model: str, what: str) -> None:
    """Raises UserError if `model` is a folder that lacks configuration, weights or tokenizer, or no folder at all.

    A name as on the Hugging Face hub passes: it is looked up when something of it is loaded.
    """
    folder = Path(model)
    if not folder.is_dir():
        is_path = model.startswith((".", "/", "~")) or model.count("/") > 1 or ("/" in model and folder.parent.is_dir())
        if is_path:
            raise UserError(f"{what} must be a model folder, got {model!r}, which is not there")
        return
    if not (folder / "config.json").is_file():
        raise UserError(f"{what} must hold config.json, got folder {model!r} without one")
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{what} must hold weights as *.safetensors, got folder {model!r} without any; "
                        "save the model with save_pretrained(folder)")
    checkpoint_shapes(folder)   # refuses files that are cut short
    if not (folder / "tokenizer_config.json").is_file() and not (folder / "tokenizer.json").is_file():
        raise UserError(f"{what} must hold a tokenizer, got folder {model!r} without tokenizer.json; "
                        "save it with tokenizer.save_pretrained(folder)")


def load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model name or folder. Raises UserError, one line, where there is none to load."""
    with _one_line("tokenizer", model):
        return AutoTokenizer.from_pretrained(model, trust_remote_code=False)


def stop_ids(model: str, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens at which an engine ends a completion of a model name or folder: the tokenizer's end token, and those
    of generation_config.json or, where there is none, of config.json."""
    found: set[int | None] = {tokenizer.eos_token_id}
    for kind in (GenerationConfig, AutoConfig):
        with contextlib.suppress(OSError, ValueError):
            ends = kind.from_pretrained(model).eos_token_id
            found.update(ends if isinstance(ends, list) else [ends])
            break
    return {token for token in found if token is not None}


@contextlib.contextmanager
def _one_line(part: str, model: str) -> Iterator[None]:
    """What the libraries say of a folder or name they cannot load, in one line that names it."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{part} must be loadable from {model!r}, got: {reason}; name a folder that is there or a "
                        "model of the Hugging Face hub") from error


def load_causal_lm(model: str, dtype: str) -> PreTrainedModel:
    """A causal LM from a name or folder, to train or to score with."""
    return AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype), use_safetensors=True,
                                                trust_remote_code=False, attn_implementation=attention())


def attention() -> str | None:
    """Which attention a learner takes: plain products on a CPU, whose fused kernel has a slow gradient (forward and
    backward of an encoder of 23 M parameters, 64 rows of 44 tokens in bfloat16: 1.4 s with it, 0.7 s without);
    transformers' own choice on a GPU."""
    return None if torch.cuda.is_available() else "eager"


def without_dropout(model: torch.nn.Module) -> None:
    """Makes `model` the same function in training as in sampling: no dropout, wherever a layer keeps its share."""
    for layer in model.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
        for name, value in vars(layer).items():
            if "drop" in name and isinstance(value, float):
                setattr(layer, name, 0.0)


def load_judge(model: str, dtype: str, seed: int, head: str, num_classes: int, *, is_trained: bool = False
               ) -> PreTrainedModel:
    """An encoder with a `head` of rlaif.esfp.slots.HEADS from a name or folder; a head it lacks is drawn from `seed`,
    or refused as a UserError where it should be trained."""
    torch.manual_seed(seed)
    kind = AutoModelForMaskedLM if head == "slot" else AutoModelForSequenceClassification
    classes = {} if head == "slot" else {"num_labels": num_classes}
    loaded, told = kind.from_pretrained(model, dtype=getattr(torch, dtype), use_safetensors=True,
                                        trust_remote_code=False, attn_implementation=attention(),
                                        output_loading_info=True, **classes)
    missing = sorted(map(str, [*told["missing_keys"], *told["mismatched_keys"]]))
    if is_trained and missing:
        raise UserError(f"weights of {model!r} must hold its head, got none for {len(missing)} such as {missing[0]}; "
                        "train it with launch/train_reward.py")
    return loaded


def context_length(model: str) -> int:
    """Tokens that the model of a name or folder can attend over, as its configuration says.

    Raises UserError, one line, where there is no configuration to load.
    """
    with _one_line("configuration", model):
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    return int(getattr(config.get_text_config(), "max_position_embeddings", 1 << 30))


def absolute(model: str | None) -> str | None:
    """A local folder as an absolute path; a name as it is."""
    return str(Path(model).resolve()) if model and Path(model).is_dir() else model


def skeleton(model: str, kind: type, **changes: Any) -> PreTrainedModel:
    """A model of a name or folder without its weights; `kind` is an Auto class, `changes` of its configuration. Takes
    no memory."""
    config = AutoConfig.from_pretrained(model, trust_remote_code=False, **changes)
    with torch.device("meta"):
        return kind.from_config(config, trust_remote_code=False)


def published_shapes(model: str) -> dict[str, tuple[int, ...]]:
    """name -> shape of the weights that a learner of `model`, a causal LM, publishes: parameters, tied ones once."""
    return {name: tuple(tensor.shape) for name, tensor in skeleton(model, AutoModelForCausalLM).named_parameters()}
