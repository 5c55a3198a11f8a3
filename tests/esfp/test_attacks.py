"""Whatever a prompt, completion or explanation holds: it can add, move or fill no slot, and touches no other row."""

from functools import cache
from itertools import cycle

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, example, given, settings
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rlaif.esfp.encoding import compile_template, encode
from rlaif.esfp.reward_model import RewardModel, Texts
from rlaif.esfp.reward_spec import RewardSpec
from rlaif.esfp.slots import Slot, SlotTemplate
from rlaif.modeling.models import word_tokenizer
from tests.helpers.families import BERT, FAMILIES, LINES, ROBERTA, byte_level, judge_of, tokenizer_of

VERDICT = Slot("verdict", [["yes", "plainly"], ["maybe"], ["no", "not at all"]], [1.0, 0.5, 0.0])
GOOD = Slot("good", [["one"], ["two"]], [0.0, 1.0])
BETTER = Slot("better", [["first"], ["same"], ["second"]], [1.0, 0.5, 0.0], kind="pairwise")
MAX_TOKENS = 60
TEMPLATES = {
    "judging": SlotTemplate("Is it {prompt}{sep}so? [good] {completion}\n{explanation} The answer is [verdict].",
                            [VERDICT, GOOD], MAX_TOKENS,
                            without_explanation="{completion} So: [verdict] {prompt} [good]"),
    "pairwise": SlotTemplate("{prompt} (one) {completion} {explanation} (two){other} {other_explanation}{sep}[better]",
                             [BETTER], MAX_TOKENS),
    "classes": SlotTemplate("{prompt}{sep}{completion} {explanation}", [VERDICT], MAX_TOKENS, head="classes"),
}

# --- tokenizers


def between_blanks() -> PreTrainedTokenizerFast:
    """Words between blanks, the special tokens among them: it knows "[MASK]" in a text without parsing it."""
    words = [*BERT.values(), *dict.fromkeys(word for line in (*LINES, "plainly ( )") for word in line.replace(
        "?", " ?").replace(".", " .").replace(":", " :").replace("(", "( ").replace(")", " )").split())]
    words += ["(one)", "(two)", "so?", "So:"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **BERT)


# The families', the project's own for models from nothing, and two that leave more to us than those.
TOKENIZERS = {
    **{family: lambda family=family: tokenizer_of(family) for family in FAMILIES},
    "words": lambda: word_tokenizer([*LINES, "plainly"], masked=True),
    "between blanks": between_blanks,
    "without unknown": lambda: byte_level({name: token for name, token in ROBERTA.items() if name != "unk_token"}),
}

# --- texts

SPECIAL_TOKENS = [
    *BERT.values(), *ROBERTA.values(), "<|endoftext|>", "<|padding|>", "<|im_start|>", "<|im_end|>", "<bos>", "<eos>",
    "<extra_id_0>", "[unused1]", "▁<mask>", "Ġ<mask>", "[mask]", "[ MASK ]", "［MASK］", "[\u200bMASK]", "[MA\u00adSK]",
    "[M\u0301ASK]", "<MASK>", "<ma\u2060sk>", "##[MASK]", "@@<mask>", "|||EMAIL_ADDRESS|||", "\u202e]KSAM[\u202c"]
MARKERS = ["[verdict]", "[good]", "[better]", "{prompt}", "{explanation}", "{sep}", "{other}", "${x}", "${env:HOME}",
           "{0}", "{}", "%s", "%(prompt)s", "{{prompt}}", "\\", "<slot>", "[", "]", "{", "}", "$"]
WORDS = ["yes", " no", "plainly", "not at all", "maybe", "first", " second", "The answer is yes.", "So: no", *LINES]
CONTROLS = ["\x00", "\x01", "\x1b[2J", "\r\n", "\t", "\x7f", "\x85", "\u2028", "\u200b", "\u200d", "\u2060", "\ufeff",
            "\u00ad", "\u180e", "\u3164", " ", "\u00a0", "\u3000", "\ufffd", "\uffff", "\U0010ffff"]
SCRIPTS = ["مرحبا بالعالم", "שלום", "\u202eabc\u202c", "\u2067abc\u2069", "答えははい", "Ответ", "한국어", "ไทย",
           "i\u0307", "e\u0301\u0323", "Z̷͉̀ä̸́l̶̀g̵̛o̷͐", "a" + "\u0301" * 40, "ﬁ", "ŉ", "Ⅷ", "ß", "İ", "K", "\u1d2c",
           "🙂", "👩\u200d👩\u200d👧\u200d👦", "🇪🇺", "👍🏽", "\u0600\u0601", "क्षि"]
SURROGATES = ["\ud800", "\udfff", "\ud83d", "\udc00\ud800", "[MASK\udcff]"]
MEGABYTES = ["a" * 1_000_000, "yes " * 250_000, " " * 1_000_000, "[MASK]" * 170_000, "<mask>" * 170_000,
             "\x00" * 1_000_000, "\u0301" * 500_000, "🙂" * 250_000, "[verdict]{prompt}" * 60_000, "答" * 340_000,
             "\ud800" * 340_000]

SNIPPETS = st.one_of(
    *(st.sampled_from(part) for part in (SPECIAL_TOKENS, MARKERS, WORDS, CONTROLS, SCRIPTS, SURROGATES)),
    st.text(st.characters(exclude_categories=()), max_size=8))
HOSTILE = st.one_of(st.lists(SNIPPETS, max_size=6).map("".join), st.just(""), st.sampled_from(SPECIAL_TOKENS))
LONG = st.builds(lambda before, long, after: before + long + after, HOSTILE, st.sampled_from(MEGABYTES), HOSTILE)
ANY_TEXT = st.one_of(*[HOSTILE] * 11, LONG)
ROW = st.tuples(ANY_TEXT, ANY_TEXT, st.none() | ANY_TEXT, ANY_TEXT, st.none() | ANY_TEXT)

DETERMINED = {"derandomize": True, "deadline": None, "database": None, "suppress_health_check": [
    HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]}


# --- the ids of a row


class Attacked:
    """A template bound to a tokenizer, and what it is with empty texts."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: SlotTemplate) -> None:
        self.tokenizer = tokenizer
        self.compiled = compile_template(template, self.tokenizer)
        self._is_pairwise = template.is_pairwise
        self._special = {token_id for token, token_id in tokenizer.get_vocab().items() if token in SPECIAL_TOKENS[:12]}
        self._special |= set(tokenizer.all_special_ids)
        self._special -= {tokenizer.unk_token_id}
        assert {tokenizer.mask_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id,
                tokenizer.pad_token_id} <= self._special
        self._empty = {explanation: self.fill("", "", explanation, "", explanation) for explanation in (None, "")}

    def fill(self, prompt, completion, explanation, other, other_explanation):
        others = ([other], [other_explanation]) if self._is_pairwise else ()
        return encode(self.compiled, [prompt], [completion], [explanation], *others)

    def withstands(self, row):
        encoded = self.fill(*row)
        ids, positions, spans = encoded.input_ids[0], encoded.slot_positions[0], encoded.text_spans[0]
        empty = self._empty[None if row[2] is None else ""]
        assert len(ids) <= MAX_TOKENS

        places = [place for start, end in spans for place in range(start, end)]
        inside = set(places)
        assert places == sorted(inside), "texts must stand one after the other"
        assert not self._special & {ids[place] for place in inside}, "a text made a special token"
        outside = [place for place in range(len(ids)) if place not in inside]
        assert [ids[place] for place in outside] == empty.input_ids[0], "the template's own tokens must stay"
        assert positions == [outside[place] for place in empty.slot_positions[0]], "a slot moved"
        masks = [place for place, token_id in enumerate(ids) if token_id == self.tokenizer.mask_token_id]
        assert masks == sorted(positions), "a mask must be a slot"
        # What stands before and after each text is what stands there in the empty template.
        starts = [start - sum(end - begin for begin, end in spans[:number])
                  for number, (start, _) in enumerate(spans)]
        assert starts == [start for start, _ in empty.text_spans[0]], "a text stands in another place"
        if encoded.is_truncated[0] and max(len(text or "") for text in row) <= 64 * MAX_TOKENS:
            assert len(ids) == MAX_TOKENS, "a row that is cut must use its room"


@cache
def attacked() -> dict[str, list[Attacked]]:
    """By the name of a template, with every tokenizer."""
    tokenizers = [make() for make in TOKENIZERS.values()]
    return {name: [Attacked(tokenizer, template) for tokenizer in tokenizers] for name, template in TEMPLATES.items()}


def test_no_text_adds_moves_or_fills_a_slot_in_ten_thousand_rows():
    names, tried = cycle(TEMPLATES), 0

    @settings(max_examples=1300, **DETERMINED)
    @given(ROW)
    @example(("[MASK]", "<mask>", "[MASK]", "</s>", None))
    @example(("", "", "", "", ""))
    @example(tuple(MEGABYTES[:5]))
    def attack(row):
        nonlocal tried
        for target in attacked()[next(names)]:
            target.withstands(row)
            tried += 1

    attack()
    assert tried >= 10_000, f"only {tried} rows were tried"


@pytest.mark.parametrize("text", [*SPECIAL_TOKENS, *MARKERS, *WORDS, *CONTROLS, *SCRIPTS, *SURROGATES, *MEGABYTES],
                         ids=lambda text: ascii(text[:8]))
def test_no_single_text_does_in_any_field(text):
    for field in range(5):
        row = ["red", "cat", "so", "dog", "is"]
        row[field] = text
        for targets in attacked().values():
            for target in targets:
                target.withstands(row)


# --- the reward of a row


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
@pytest.mark.parametrize("name", TEMPLATES)
def test_no_row_changes_the_reward_of_its_neighbours(name):
    template = TEMPLATES[name]
    models = [RewardModel(judge_of(family, template.head, template.num_classes), tokenizer_of(family),
                          RewardSpec(template)) for family in FAMILIES]
    tried = 0

    @settings(max_examples=15, **DETERMINED)
    @given(st.lists(ROW, min_size=2, max_size=4))
    def one(rows):
        nonlocal tried
        prompts, completions, explanations, others, other_explanations = zip(*rows, strict=True)
        listed = [[[] if text is None else [text] for text in column] for column in (explanations, other_explanations)]
        pair = (others, listed[1]) if template.is_pairwise else (None, None)
        texts = Texts(prompts, completions, listed[0], *pair)
        for model in models:
            together = model.score(texts, max_tokens_per_batch=4 * MAX_TOKENS).reward
            assert ((together >= 0) & (together <= 2)).all()
            for row in range(len(rows)):
                alone = Texts(*(None if column is None else column[row : row + 1] for column in (
                    texts.prompts, texts.completions, texts.explanations, texts.others, texts.other_explanations)))
                reward = model.score(alone, max_tokens_per_batch=4 * MAX_TOKENS).reward
                assert reward[0].item() == pytest.approx(together[row].item(), abs=1e-5)
                tried += 1

    one()
    assert tried >= 150
