import json
from collections import Counter

import pytest
from transformers import GenerationConfig

from rlaif.batch import SUPERVISED, check
from rlaif.config.checks import UserError
from rlaif.config.prompts import ChatConfig
from rlaif.config.train import SftConfig, SupervisedDataConfig
from rlaif.data.supervision import batches, supervised_rows, supervised_texts
from rlaif.modeling.models import load_tokenizer, word_tokenizer

ROWS = [{"prompt": "red {cat}", "completion": "so", "note": "n0"},
        {"prompt": "dog", "completion": "it is", "note": "n1"}]


@pytest.fixture
def config(tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    source = str(tmp_path / "rows.jsonl")
    return SftConfig(data=SupervisedDataConfig(train=source, dev=source, num_dev=1))


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer(["red cat dog so it is { }"], masked=False)


def test_any_column_may_be_a_field_of_the_input_and_braces_in_a_text_stay(config):
    config.input_template = "{note}: {prompt}\nAnswer:"
    assert supervised_texts(config, "train") == [("n0: red {cat}\nAnswer:", "so"), ("n1: dog\nAnswer:", "it is")]
    assert supervised_texts(config, "dev") == [("n0: red {cat}\nAnswer:", "so")]
    config.target_column = "note"
    assert supervised_texts(config, "dev") == [("n0: red {cat}\nAnswer:", "n0")]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("Answer:", "input_template must have a {field}, got 'Answer:'"),
        ("{prompt", "input_template must be a template, got '{prompt'"),
        ("{prompt} {colour}", "data.train must have the column 'colour', got"),
        ("{prompt.upper}", "data.train must have the column 'prompt.upper', got"),
    ],
)
def test_a_bad_input_template_is_refused(config, template, message):
    config.input_template = template
    with pytest.raises(UserError) as caught:
        supervised_texts(config, "train")
    assert str(caught.value).startswith(message)


@pytest.fixture(scope="module")
def chat_tokenizer():
    found = word_tokenizer(["red cat dog so it is system user assistant { }"], masked=False)
    found.chat_template = ("{% for m in messages %}<bos> {{ m['role'] }} {{ m['content'] }} {% endfor %}"
                           "{% if add_generation_prompt %}<bos> assistant{% endif %}")
    return found


def test_a_prompt_or_messages_go_through_the_chat_template(config, chat_tokenizer, tmp_path):
    config.chat = ChatConfig(wrap_prompts=True, system="is")
    assert supervised_texts(config, "train", chat_tokenizer)[1] == (
        "<bos> system is <bos> user dog <bos> assistant", " it is")
    turns = [{"role": "user", "content": "dog"}, {"role": "assistant", "content": "so"},
             {"role": "user", "content": "cat"}]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"turns": turns, "completion": "it is"}))
    config.chat, config.messages_column = ChatConfig(), "turns"
    texts = supervised_texts(config, "train", chat_tokenizer)
    assert texts == [("<bos> user dog <bos> assistant so <bos> user cat <bos> assistant", " it is")]
    row = supervised_rows(texts, chat_tokenizer, 20, "data.train", is_templated=True).to_pylist()[0]
    assert chat_tokenizer.convert_ids_to_tokens(row["prompt_ids"]) == texts[0][0].split()
    assert chat_tokenizer.convert_ids_to_tokens(row["completion_ids"]) == ["it", "is", "<eos>"]


@pytest.mark.parametrize(("stops", "ends"), [(["<|im_end|>", "<eos>"], ["<|im_end|>"]),
                                             (["<eos>"], ["<|im_end|>", "<eos>"]),
                                             (None, ["<|im_end|>", "<eos>"])])
def test_a_target_in_chat_ends_as_the_template_ends_the_turn(config, tmp_path, stops, ends):
    made = word_tokenizer(["red cat dog so it is user assistant { }"], masked=False)
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.chat_template = ("{% for m in messages %}<|im_start|> {{ m.role }} {{ m.content }} <|im_end|>\n{% endfor %}"
                          "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}")
    made.save_pretrained(tmp_path / "model")
    if stops is not None:
        GenerationConfig(eos_token_id=made.convert_tokens_to_ids(stops)).save_pretrained(tmp_path / "model")
    tokenizer = load_tokenizer(str(tmp_path / "model"))
    config.chat = ChatConfig(wrap_prompts=True)
    texts = supervised_texts(config, "train", tokenizer)
    assert texts[1] == ("<|im_start|> user dog <|im_end|>\n<|im_start|> assistant ", "it is <|im_end|>")
    rows = supervised_rows(texts, tokenizer, 20, "data.train", is_templated=True).to_pylist()
    # where an engine would not stop at it the end token follows
    assert tokenizer.convert_ids_to_tokens(rows[1]["completion_ids"]) == ["it", "is", *ends]
    config.chat = ChatConfig()
    rows = supervised_rows(supervised_texts(config, "train", tokenizer), tokenizer, 20, "data.train").to_pylist()
    assert tokenizer.convert_ids_to_tokens(rows[1]["completion_ids"]) == ["it", "is", "<eos>"], "plain text"


def test_messages_that_cannot_be_used_are_named_with_their_row(config, chat_tokenizer, tokenizer, tmp_path):
    good = {"turns": [{"role": "user", "content": "dog"}], "completion": "so"}
    bad = good | {"turns": [*good["turns"], {"role": "assistant", "content": "so"}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(good) + "\n" + json.dumps(bad))
    config.messages_column = "turns"
    with pytest.raises(UserError, match=r"^data.train column 'turns' must end before the assistant's turn, .*; row 1 "):
        supervised_texts(config, "train", chat_tokenizer)
    with pytest.raises(UserError, match=r"^tokenizer must have a chat template for the messages of data.train, got "):
        supervised_texts(config, "train", tokenizer)
    with pytest.raises(UserError, match=r"^policy.model must name a chat model with messages_column or chat.wrap"):
        supervised_texts(config, "train")


def test_the_loss_is_on_the_target_and_its_end(tokenizer):
    table = check(supervised_rows([("red cat", "so"), ("dog", "it is")], tokenizer, 4, "data.train"), SUPERVISED)
    decoded = [[tokenizer.convert_ids_to_tokens(row[name]) for name in SUPERVISED.names] for row in table.to_pylist()]
    assert decoded == [[["red", "cat"], ["so", "<eos>"]], [["dog"], ["it", "is", "<eos>"]]]


def test_rows_that_are_too_long_are_counted_and_the_first_is_named(tokenizer):
    texts = [("dog", "so"), ("red cat", "it is"), ("red red cat", "it")]
    message = r"data.dev must fit into max_tokens = 4, got 2 longer rows, first row 1 with 5 tokens"
    with pytest.raises(UserError, match=message):
        supervised_rows(texts, tokenizer, 4, "data.dev")


def test_an_input_without_a_token_is_refused_by_row(tokenizer):
    with pytest.raises(UserError, match=r"data.dev must have inputs of at least one token, got ' ' in row 1"):
        supervised_rows([("dog", "so"), (" ", "so")], tokenizer, 4, "data.dev")


def test_a_tokenizer_without_an_end_token_is_refused():
    masked = word_tokenizer(["red"], masked=True)
    with pytest.raises(UserError, match=r"tokenizer must have an end token for data.train, got none"):
        supervised_rows([("red", "red")], masked, 9, "data.train")


@pytest.mark.parametrize(("num_rows", "batch_size", "num_batches"), [(10, 4, 10), (8, 4, 6), (3, 5, 4), (1, 1, 3)])
def test_every_row_is_trained_equally_often_and_every_batch_is_full(num_rows, batch_size, num_batches):
    drawn = list(batches(num_rows, batch_size, num_batches, seed=0))
    size = min(num_rows, batch_size)
    assert [len(batch) for batch in drawn] == [size] * num_batches
    stream = [row for batch in drawn for row in batch]
    for start in range(0, len(stream) - num_rows + 1, num_rows):
        assert sorted(stream[start : start + num_rows]) == list(range(num_rows))
    counts = Counter(stream).values()
    assert max(counts) - min(counts) <= 1


def test_the_order_of_rows_follows_seed_and_epoch():
    first, second = list(batches(30, 30, 2, seed=0))
    assert first != second
    assert [first, second] == list(batches(30, 30, 2, seed=0))
    assert first != next(batches(30, 30, 2, seed=1))
