"""Templates, tokenizers and texts that the tests of slots share."""

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rlaif.esfp.encoding import compile_template
from rlaif.esfp.slots import Slot, SlotTemplate

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "yes", "no", "maybe", "sure", "the", "answer", "is", "so", "."]
WORDS += ["red", "blue", "cat", "dog", "[", "]", "mask", "high", "low", "##s"]
SPECIAL = {"unk_token": "[UNK]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
BERT = SPECIAL | {"cls_token": "[CLS]", "sep_token": "[SEP]"}


def word_level(special=BERT):
    """Words between blanks: "[MASK]" in a text is one of them even when special tokens are not parsed."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def word_piece():
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **BERT)


def byte_level():
    """Every byte a token, and " yes" and " no" merged: words know the blank before them, as in RoBERTa."""
    vocab = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}
    for piece in [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ye", "yes", "Ġyes", "no", "Ġno"]:
        vocab[piece] = len(vocab)
    merges = [("y", "e"), ("ye", "s"), ("Ġ", "yes"), ("n", "o"), ("Ġ", "no")]
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, cls_token="<s>", sep_token="</s>", pad_token="<pad>",
                                   unk_token="<unk>", mask_token="<mask>")


TOKENIZERS = {"word_level": word_level, "word_piece": word_piece}
VERDICT = Slot("verdict", [["yes", "sure"], ["maybe"], ["no"]], [1.0, 0.0, -1.0])
LEVEL = Slot("level", [["low"], ["high"]], [1.0, 5.0], weight=0.5)
TEXT = "{prompt} {completion} {explanation} the answer is [verdict] ."


def compiled(text=TEXT, slots=(VERDICT,), max_tokens=32, tokenizer=None, **changes):
    return compile_template(SlotTemplate(text, list(slots), max_tokens, **changes), tokenizer or word_piece())
