import json

import pytest

from rlaif.batch import PREFERENCE, check
from rlaif.config.checks import UserError
from rlaif.config.dpo import DpoConfig
from rlaif.config.prompts import ChatConfig
from rlaif.config.train import SupervisedDataConfig
from rlaif.data.preferences import encoded_pairs, preference_rows, preference_texts
from rlaif.modeling.models import word_tokenizer

ROWS = [{"prompt": "red cat", "chosen": "so it is", "rejected": "so"},
        {"prompt": "dog", "chosen": "it", "rejected": "it is so"}]
CHAT = "{% for m in messages %}<bos> {{ m['role'] }} {{ m['content'] }} {% endfor %}<bos> assistant"


@pytest.fixture
def config(tmp_path):
    def config(*rows, **changes):
        path = tmp_path / "pairs.jsonl"
        path.write_text("\n".join(map(json.dumps, rows or ROWS)))
        return DpoConfig(data=SupervisedDataConfig(train=str(path), dev=str(path), num_dev=1), **changes)

    return config


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer(["red cat dog so it is user assistant"], masked=False)


def test_a_pair_is_its_input_and_two_completions_with_their_ends(config, tokenizer):
    rows = encoded_pairs(config(), tokenizer)
    assert rows["dev"].num_rows == 1
    decoded = [{name: tokenizer.convert_ids_to_tokens(row[name]) for name in PREFERENCE.names}
               for row in check(rows["train"], PREFERENCE).to_pylist()]
    assert decoded == [
        {"prompt_ids": ["red", "cat"], "chosen_ids": ["so", "it", "is", "<eos>"], "rejected_ids": ["so", "<eos>"]},
        {"prompt_ids": ["dog"], "chosen_ids": ["it", "<eos>"], "rejected_ids": ["it", "is", "so", "<eos>"]}]


def test_columns_have_the_names_that_the_configuration_gives_them(config, tokenizer):
    made = config({"q": "dog", "good": "so", "bad": "it"}, input_template="red {q}", chosen_column="good",
                  rejected_column="bad")
    assert preference_texts(made, "train", tokenizer) == [("red dog", "so", "it")]


def test_whole_conversations_as_sides_are_their_last_answers(config, tokenizer):
    asked = {"role": "user", "content": "dog"}
    row = {"prompt": "dog"} | {side: [asked, {"role": "assistant", "content": text}]
                               for side, text in (("chosen", "so it is"), ("rejected", "so"))}
    assert preference_texts(config(row), "train", tokenizer) == [("dog", "so it is", "so")]


def test_chat_models_read_the_prompt_through_their_template(config, tokenizer):
    chat = word_tokenizer(["red cat dog so it is user assistant"], masked=False)
    chat.chat_template = CHAT
    wanted = ["<bos>", "user", "red", "cat", "<bos>", "assistant"]
    rows = encoded_pairs(config(chat=ChatConfig(wrap_prompts=True)), chat)["train"]
    assert chat.convert_ids_to_tokens(rows["prompt_ids"][0].as_py()) == wanted
    row = ROWS[0] | {"turns": [{"role": "user", "content": "red cat"}]}
    rows = encoded_pairs(config(row, messages_column="turns"), chat)["train"]
    assert chat.convert_ids_to_tokens(rows["prompt_ids"][0].as_py()) == wanted


def test_both_sides_in_chat_end_as_the_template_ends_the_turn(config):
    chat = word_tokenizer(["red cat dog so it is user assistant"], masked=False)
    chat.add_special_tokens({"additional_special_tokens": ["<end>"]})
    chat.chat_template = ("{% for m in messages %}{{ m.role }} {{ m.content }} <end>{% endfor %}"
                          "{% if add_generation_prompt %}assistant {% endif %}")
    assert preference_texts(config(chat=ChatConfig(wrap_prompts=True)), "dev", chat) == [
        ("user red cat <end>assistant ", "so it is <end>", "so <end>")]
    rows = encoded_pairs(config(chat=ChatConfig(wrap_prompts=True)), chat)["dev"].to_pylist()
    assert chat.convert_ids_to_tokens(rows[0]["chosen_ids"]) == ["so", "it", "is", "<end>", "<eos>"]
    assert chat.convert_ids_to_tokens(rows[0]["rejected_ids"]) == ["so", "<end>", "<eos>"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rejected": "so it is"}, "data.train must have two different sides, got 'so it is' twice in row 1 of "),
        ({"rejected": None}, "data.train column 'rejected' must hold text, got None in row 1 of "),
        ({"chosen": "  "}, "data.train column 'chosen' must hold text, got '  ' in row 1 of "),
        ({"chosen": [{"role": "user", "content": "so"}]}, "data.train column 'chosen' must hold messages that end with "
                                                          "the assistant's, got {'role': 'user', 'content': 'so'} at "
                                                          "the end in row 1 of "),
        ({"chosen": []}, "data.train column 'chosen' must hold messages that end with the assistant's, got None at "),
        ({"prompt": 3}, "data.train column 'prompt' must hold text, got 3 in row 1 of "),
    ],
)
def test_a_row_that_is_no_pair_is_refused_by_its_number(config, tokenizer, changes, message):
    with pytest.raises(UserError) as caught:
        preference_texts(config(ROWS[0], ROWS[0] | changes), "train", tokenizer)
    assert str(caught.value).startswith(message)


def test_a_missing_side_is_named_with_the_columns_that_are_there(config, tokenizer):
    with pytest.raises(UserError, match=r"data.train must have the column 'worse', got \['chosen', 'prompt', "
                                        r"'rejected'\] in row 0 of .*; map it in the config"):
        preference_texts(config(rejected_column="worse"), "train", tokenizer)


def test_the_longer_side_must_fit(tokenizer):
    pairs = [("dog", "so", "it"), ("red cat", "so", "it is so")]
    with pytest.raises(UserError, match=r"data.dev must fit into max_tokens = 5, got 1 longer rows, first row 1"):
        preference_rows(pairs, tokenizer, 5, "data.dev", is_templated=False)
    assert preference_rows(pairs, tokenizer, 6, "data.dev", is_templated=False).num_rows == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": 0}, "beta must be > 0, got 0"),
        ({"label_smoothing": 0.5}, "label_smoothing must be in [0, 0.5), got 0.5"),
        ({"select_by": "gold"}, "select_by must be one of loss, preference_accuracy, got 'gold'"),
        ({"chosen_column": "rejected"}, "rejected_column must be another one than chosen_column, got 'rejected'"),
        ({"messages_column": "m", "input_template": "{q}"}, "input_template must be left at {prompt} with "
                                                            "messages_column, got '{q}'"),
        ({"checkpoint_every": 15}, "checkpoint_every must be a multiple of log_every 10, got 15"),
    ],
)
def test_a_configuration_out_of_range_is_refused(changes, message):
    with pytest.raises(UserError) as caught:
        DpoConfig(**changes)
    assert str(caught.value) == message
