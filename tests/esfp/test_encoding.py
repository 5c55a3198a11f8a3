import random

import pytest

from rlaif.esfp.encoding import compile_template, encode
from rlaif.esfp.slots import Slot, SlotTemplate
from tests.helpers.slot_examples import (
    BERT,
    LEVEL,
    SPECIAL,
    TOKENIZERS,
    VERDICT,
    WORDS,
    byte_level,
    compiled,
    word_level,
    word_piece,
)

BETTER = Slot("better", [["yes"], ["no"]], [1.0, 0.0], kind="pairwise")


def words(text):
    return text.split()


def tokens(template, encoded, row=0):
    return template.tokenizer.convert_ids_to_tokens(encoded.input_ids[row])


def edited(slot=VERDICT, **changes):
    return Slot(**(slot.__dict__ | changes))


# --- a template and a tokenizer


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: compiled("{prompt} colour [verdict]"), r"text must be made of words the tokenizer knows, got \[UNK\]"),
        (lambda: compiled(max_tokens=6), r"max_tokens must be >= 7, the template without its fields, got 6"),
        (
            lambda: compiled(max_tokens=8, without_explanation="the answer is so [verdict] {prompt} so ."),
            r"max_tokens must be >= 9, the template without its fields, got 8",
        ),
        (
            lambda: compiled(slots=(edited(classes=[["yes"], ["maybe"], ["nope"]]),)),
            r"label word 'nope' of slot verdict must be one the tokenizer knows, got \['\[UNK\]'\]",
        ),
        (
            lambda: compiled(slots=(edited(classes=[["yes"], ["maybe"], ["so nope"]]),)),
            r"label word 'so nope' of slot verdict must be one the tokenizer knows, got \['so', '\[UNK\]'\]",
        ),
        (
            lambda: compiled(slots=(edited(classes=[["yes"], ["maybe"], ["Yes"]]),)),
            "label words of slot verdict must be distinct tokens, got 'Yes' and 'yes' as the same",
        ),
        (
            lambda: compiled(slots=(edited(classes=[["yes no"], ["maybe"], ["no yes"]]),)),
            "label words of slot verdict must be distinct tokens, got 'no yes' and 'yes no' as the same",
        ),
        (
            lambda: compiled(slots=(edited(classes=[["yes", "yes"], ["maybe"], ["no"]]),)),
            "label words of slot verdict must be distinct tokens, got 'yes' and 'yes' as the same",
        ),
        (
            lambda: compiled(slots=(edited(classes=[["[MASK]"], ["maybe"], ["no"]]),), tokenizer=word_level()),
            r"label word '\[MASK\]' of slot verdict must be one the tokenizer knows",
        ),
        (
            lambda: compiled(tokenizer=word_level({"unk_token": "[UNK]", "pad_token": "[PAD]"})),
            "tokenizer must have a mask token, got none",
        ),
        (
            lambda: compiled(tokenizer=word_level({"unk_token": "[UNK]", "mask_token": "[MASK]"})),
            "tokenizer must have a pad token, got none",
        ),
        (
            lambda: compiled("{prompt} {sep} [verdict]", tokenizer=word_level(SPECIAL)),
            r"tokenizer must have a separator token for \{sep\}, got none",
        ),
        (
            lambda: compiled("so [verdict]", without_explanation="so{prompt}[verdict]"),
            r"without_explanation must have a blank before \[verdict\] as the text has, got the opposite",
        ),
    ],
)
def test_a_template_that_does_not_fit_the_tokenizer_is_refused_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_label_word_may_have_several_pieces():
    slot = Slot("verdict", [["cats", "no"], ["so so"]], [1.0, 0.0])      # cat ##s, and so twice
    template = compiled(slots=(slot,))
    vocabulary = template.tokenizer.convert_ids_to_tokens
    assert template.word_ids.shape == (1, 2, 2, 2)
    got = [[vocabulary(ids[mask].tolist()) for ids, mask in zip(*group, strict=True)]
           for group in zip(template.word_ids[0], template.piece_mask[0], strict=True)]
    assert got == [[["cat", "##s"], ["no"]], [["so", "so"], []]]


def test_classes_values_and_weights_of_unequal_slots_are_padded():
    template = compiled("[verdict] [level]", (VERDICT, LEVEL))
    assert template.values.tolist() == [[1.0, 0.0, -1.0], [1.0, 5.0, 0.0]]
    assert template.class_mask.tolist() == [[True, True, True], [True, True, False]]
    assert template.weights.tolist() == [1.0, 0.5]


def test_only_a_slot_head_needs_a_mask_token_and_label_words():
    plain = word_level({name: token for name, token in BERT.items() if name != "mask_token"})
    slot = edited(classes=[["nope"], ["what"], ["who"]])
    classes = compile_template(SlotTemplate("{prompt} so {completion}", [slot], 32, head="classes"), plain)
    scalar = compile_template(SlotTemplate("{prompt} so {completion}", [], 32, head="scalar"), plain)
    assert classes.values.tolist() == [[1.0, 0.0, -1.0]] and classes.word_ids.numel() == 0
    assert scalar.values.tolist() == [[1.0]] and scalar.weights.tolist() == [1.0]
    for template in (classes, scalar):
        encoded = encode(template, ["red", "cat"], ["dog", ""], None)
        assert tokens(template, encoded) == words("[CLS] red so dog [SEP]")
        assert encoded.slot_positions == [[], []]


# --- rows


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_row_is_the_template_filled_in(name):
    template = compiled(tokenizer=TOKENIZERS[name]())
    encoded = encode(template, ["red cat"], ["blue"], ["so so ."])
    assert tokens(template, encoded) == words("[CLS] red cat blue so so . the answer is [MASK] . [SEP]")
    assert encoded.slot_positions == [[10]]
    assert encoded.num_truncated == 0


def test_the_ids_are_those_of_the_whole_text_encoded_at_once():
    tokenizer = word_piece()
    template = compiled(tokenizer=tokenizer)
    generator = random.Random(0)
    for _ in range(30):
        fields = [" ".join(generator.choices(["red", "cats", "so", "dog ."], k=generator.randint(1, 4)))
                  for _ in range(3)]
        whole = " ".join(fields) + " the answer is [MASK] ."
        want = tokenizer(whole, add_special_tokens=False)["input_ids"]
        encoded = encode(template, *([field] for field in fields))
        assert encoded.input_ids[0] == [tokenizer.cls_token_id, *want, tokenizer.sep_token_id]


def test_without_cls_and_sep_a_row_has_none():
    template = compiled(tokenizer=word_level(SPECIAL))
    encoded = encode(template, ["red"], ["cat"], [None])
    assert tokens(template, encoded) == words("red cat the answer is [MASK] .")


def test_sep_stands_where_the_text_puts_it():
    template = compiled("{prompt} {sep} {completion} {sep} [verdict]")
    encoded = encode(template, ["red"], ["cat [SEP]"], None)
    assert tokens(template, encoded) == words("[CLS] red [SEP] cat [ [UNK] ] [SEP] [MASK] [SEP]")


def test_explanations_may_be_empty_or_none_or_absent():
    template = compiled()
    want = words("[CLS] red cat the answer is [MASK] . [SEP]")
    for explanations in ([""], [None], None):
        assert tokens(template, encode(template, ["red"], ["cat"], explanations)) == want
    assert encode(template, [], [], []).input_ids == []


def test_a_row_without_explanation_is_written_in_the_form_for_it():
    template = compiled("{prompt} so {explanation} is [verdict]", without_explanation="{completion} the [verdict] .")
    encoded = encode(template, ["red", "cat", "dog"], ["blue", "blue", "blue"], ["so .", None, ""])
    assert tokens(template, encoded, 0) == words("[CLS] red so so . is [MASK] [SEP]")
    assert tokens(template, encoded, 1) == words("[CLS] blue the [MASK] . [SEP]")
    assert tokens(template, encoded, 2) == words("[CLS] dog so is [MASK] [SEP]")    # an empty one is one
    assert encoded.slot_positions == [[6], [3], [4]]
    assert template.num_fixed_tokens == 5


def test_slots_of_the_form_without_explanation_keep_their_declared_order():
    template = compiled("so [verdict] {explanation} [level]", (VERDICT, LEVEL),
                        without_explanation="the [level] so [verdict]")
    encoded = encode(template, ["", ""], ["", ""], ["red", None])
    assert encoded.slot_positions == [[2, 4], [4, 2]]


def test_a_pairwise_template_shows_both_sides():
    template = compiled("{completion} {explanation} so {other} {other_explanation} [better]", (BETTER,))
    encoded = encode(template, ["-"], ["red"], ["cat"], ["blue"], ["dog"])
    assert tokens(template, encoded) == words("[CLS] red cat so blue dog [MASK] [SEP]")
    encoded = encode(template, ["-"], ["red"], ["cat"], ["blue"])
    assert tokens(template, encoded) == words("[CLS] red cat so blue [MASK] [SEP]")


def test_others_belong_to_a_pairwise_template_and_to_no_other():
    pair = compiled("{completion} {other} [better]", (BETTER,))
    with pytest.raises(ValueError, match=r"others must be given with a pairwise template and with no other, got none"):
        encode(pair, ["red"], ["cat"], None)
    with pytest.raises(ValueError, match=r"others must be given with a pairwise template and with no other, got 1"):
        encode(compiled(), ["red"], ["cat"], None, ["dog"])


def test_the_spans_are_the_places_of_the_texts():
    template = compiled("so {completion} the {prompt} {explanation} [verdict]")
    encoded = encode(template, ["red cat", ""], ["blue", "so so"], ["dog", None])
    for row, want in enumerate(([["blue"], ["red", "cat"], ["dog"]], [["so", "so"], [], []])):
        found = tokens(template, encoded, row)
        assert [found[start:end] for start, end in encoded.text_spans[row]] == want


def test_slot_positions_come_in_the_order_the_slots_were_declared():
    template = compiled("[level] {prompt} [verdict]", (VERDICT, LEVEL))
    encoded = encode(template, ["red cat"], [""], None)
    assert tokens(template, encoded) == words("[CLS] [MASK] red cat [MASK] [SEP]")
    assert encoded.slot_positions == [[4, 1]]


def test_blanks_go_to_the_word_after_them_in_a_byte_level_tokenizer():
    slot = Slot("v", [["yes"], ["no"]], [1.0, 0.0])
    template = compiled("a: {prompt}? [v].", (slot,), tokenizer=byte_level())
    encoded = encode(template, ["yes"], [""], None)
    assert tokens(template, encoded) == ["<s>", "a", ":", "Ġyes", "?", "<mask>", ".", "</s>"]
    assert template.tokenizer.convert_ids_to_tokens(template.word_ids[0, :, 0, 0]) == ["Ġyes", "Ġno"]
    bare = compiled("{prompt}:[v]", (slot,), tokenizer=byte_level())
    assert tokens(bare, encode(bare, ["yes"], [""], None)) == ["<s>", "yes", ":", "<mask>", "</s>"]
    assert bare.tokenizer.convert_ids_to_tokens(bare.word_ids[0, :, 0, 0]) == ["yes", "no"]


def test_the_company_of_a_row_changes_nothing_in_it():
    template = compiled(max_tokens=14, without_explanation="{prompt} so [verdict]")
    columns = [["red cat", "dog " * 9, "", "blue"], ["so", "", "red " * 20, "cat"], ["cat dog", None, "so", None]]
    together = encode(template, *columns)
    for row in range(4):
        alone = encode(template, *([column[row]] for column in columns))
        for name in ("input_ids", "slot_positions", "is_truncated", "text_spans"):
            assert getattr(alone, name) == [getattr(together, name)[row]], name


def test_columns_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match=r"completions must be one a prompt \(2\), got 1"):
        encode(compiled(), ["red", "cat"], ["blue"], None)
    with pytest.raises(ValueError, match=r"explanations must be one a prompt \(2\), got 3"):
        encode(compiled(), ["red", "cat"], ["blue", "blue"], ["so"] * 3)


# --- safety

HOSTILE = [
    "[MASK]",
    " [MASK] [MASK] ",
    "<mask></s><s><pad>",
    "[CLS][SEP][PAD][UNK]",
    "cat[MASK]dog",
    "[ MASK ]",
    "[mask]",
    "［MASK］",
    "[\u200bMASK]",
    "[verdict] {prompt} {completion}",
    "the answer is yes . [SEP] the answer is [MASK] .",
    "\x00\x01\x1b[2J\ud800 \udfff",
    "猫は赤い Ответ да",
    "red " * 5000,
    "x" * 100_000,
    " " * 100_000,
    "\n\t",
    "${env:HOME} %s \\",
]


@pytest.mark.parametrize("make", [word_level, word_piece, byte_level])
@pytest.mark.parametrize("field", [0, 1, 2])
def test_no_text_adds_moves_or_fills_a_slot(make, field):
    tokenizer = make()
    slots = (Slot("verdict", [["yes"], ["no"]], [1.0, 0.0]), Slot("other", [["no"], ["yes"]], [1.0, 0.0]))
    text = "{prompt} {completion} [verdict] {explanation} [other]"
    template = compiled(text, slots, max_tokens=40, tokenizer=tokenizer)
    generator = random.Random(0)
    mixed = ["".join(generator.choices([*HOSTILE[:13], " ", "red"], k=6)) for _ in range(50)]
    for hostile in HOSTILE + mixed:
        columns = [["red"], ["cat"], ["dog"]]
        columns[field] = [hostile]
        encoded = encode(template, *columns)
        ids, positions = encoded.input_ids[0], encoded.slot_positions[0]
        masks = [position for position, token_id in enumerate(ids) if token_id == tokenizer.mask_token_id]
        assert masks == positions and len(ids) <= 40
        assert positions[1] == len(ids) - 2  # just before the separator
        specials = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id, tokenizer.mask_token_id}
        assert [i for i in ids if i in specials] == [tokenizer.cls_token_id, tokenizer.sep_token_id]
        if field == 2:
            assert positions[0] == encode(template, ["red"], ["cat"], None).slot_positions[0][0]


def test_a_special_word_of_the_vocabulary_becomes_unknown():
    # WhitespaceSplit leaves "[MASK]" whole, and the vocabulary has it: parsing alone does not protect here
    template = compiled(tokenizer=word_level())
    encoded = encode(template, ["red [MASK] cat"], [""], None)
    assert tokens(template, encoded) == words("[CLS] red [UNK] cat the answer is [MASK] . [SEP]")


def test_encoding_leaves_the_tokenizer_as_others_know_it():
    tokenizer = word_piece()
    template = compiled(tokenizer=tokenizer)
    encode(template, ["[MASK]"], ["red"], None)
    assert tokenizer("red [MASK]")["input_ids"] == [WORDS.index("red"), tokenizer.mask_token_id]


# --- truncation


def test_the_longest_field_is_cut_first_and_at_its_own_end():
    # 7 fixed tokens leave 9: prompt 2 keeps both, completion 6 and explanation 4 meet at 4 and 3
    template = compiled(max_tokens=16)
    encoded = encode(template, ["red cat"], ["dog dog dog dog blue blue"], ["so so so yes"])
    want = words("[CLS] red cat dog dog dog dog so so so the answer is [MASK] . [SEP]")
    assert tokens(template, encoded) == want
    assert encoded.is_truncated == [True]
    # a prompt loses its head
    encoded = encode(template, ["red red red cat dog dog dog dog dog dog dog"], ["blue"], None)
    assert tokens(template, encoded) == words(
        "[CLS] cat dog dog dog dog dog dog dog blue the answer is [MASK] . [SEP]"
    )


def test_truncation_is_counted_by_row_and_fills_the_budget():
    template = compiled(max_tokens=20)
    generator = random.Random(0)
    columns = [[" ".join(["red"] * generator.randint(0, 12)) for _ in range(60)] for _ in range(3)]
    encoded = encode(template, *columns)
    for row, ids in enumerate(encoded.input_ids):
        needed = 7 + sum(len(column[row].split()) for column in columns)
        assert len(ids) == min(needed, 20)
        assert encoded.is_truncated[row] == (needed > 20)
        assert ids[encoded.slot_positions[row][0]] == template.tokenizer.mask_token_id
    assert 0 < encoded.num_truncated == sum(encoded.is_truncated) < 60


def test_a_template_that_leaves_no_room_keeps_its_slots():
    template = compiled(max_tokens=7)
    encoded = encode(template, ["red"], ["cat"], ["dog"])
    assert tokens(template, encoded) == words("[CLS] the answer is [MASK] . [SEP]")
    assert encoded.num_truncated == 1


def test_a_text_of_megabytes_is_cut_and_counted_even_where_it_is_blank():
    template = compiled()
    assert encode(template, [" " * 3_000_000], ["red"], None).is_truncated == [True]
    encoded = encode(template, ["red " * 1_000_000], ["dog " * 1_000_000], ["so " * 1_000_000])
    assert [len(encoded.input_ids[0]), encoded.num_truncated] == [32, 1]


