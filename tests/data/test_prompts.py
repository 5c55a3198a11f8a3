import json

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from tokenizers import normalizers

from rlaif.batch import PROMPT, check
from rlaif.config.checks import UserError
from rlaif.config.prompts import ChatConfig, CurriculumConfig, PromptsConfig, PromptSourceConfig
from rlaif.data.prompts import PromptStream, in_order, read_prompts
from rlaif.modeling.models import word_tokenizer

TEXTS = ["red cat", "blue dog runs", "so", "red red red red red"]
CHATML = ("{% for message in messages %}{{ message.role }} {{ message.content }} {% endfor %}"
          "{% if add_generation_prompt %}assistant{% endif %}")


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer([*TEXTS, "system user assistant tool be brief ? : 007"], masked=False)


@pytest.fixture(scope="module")
def chat_tokenizer():
    found = word_tokenizer([*TEXTS, "system user assistant tool be brief ? : 007"], masked=False)
    found.chat_template = CHATML
    return found


@pytest.fixture
def config(tmp_path):
    lines = [json.dumps({"question": text, "answer": f"{text}!"}) for text in TEXTS]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    (tmp_path / "test.jsonl").write_text("\n".join(lines[:1]))
    return PromptsConfig(train=str(tmp_path / "train.jsonl"), test=str(tmp_path / "test.jsonl"),
                         prompt_column="question", reference_column="answer")


@pytest.fixture
def write(tmp_path):
    def written(rows, name="rows.jsonl"):
        path = tmp_path / name
        if path.suffix == ".parquet":
            pa.parquet.write_table(pa.Table.from_pylist(rows), path)
        elif path.suffix == ".csv":
            pa.csv.write_csv(pa.Table.from_pylist(rows), path)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)
    return written


def refusal(config, tokenizer, split="train", room=9):
    with pytest.raises(UserError) as caught:
        read_prompts(config, split, tokenizer, room)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_rows_carry_text_ids_reference_and_source(config, tokenizer):
    rows = read_prompts(config, "train", tokenizer, 5).rows
    assert [row["prompt"] for row in rows] == TEXTS
    assert [tokenizer.decode(row["prompt_ids"]) for row in rows] == TEXTS
    assert rows[1]["reference"] == "blue dog runs!" and rows[1]["source"] == config.train
    assert read_prompts(config, "test", tokenizer, 5).rows == [rows[0] | {"source": config.test}]


def test_without_a_reference_column_references_are_null(config, tokenizer):
    config.reference_column = None
    assert {row["reference"] for row in read_prompts(config, "train", tokenizer, 5).rows} == {None}


def test_a_prompt_of_digits_in_a_csv_stays_text(tmp_path, tokenizer):
    (tmp_path / "rows.csv").write_text("prompt,reference,n\n007,1e5,1\n")
    config = PromptsConfig(train=str(tmp_path / "rows.csv"), reference_column="reference")
    row = read_prompts(config, "train", tokenizer, 5).rows[0]
    assert (row["prompt"], row["reference"], tokenizer.decode(row["prompt_ids"])) == ("007", "1e5", "007")


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.parquet"])
def test_a_column_says_how_much_the_rows_of_a_prompt_count(name, write, tokenizer):
    path = write([{"prompt": "red cat", "w": 0.5}, {"prompt": "so", "w": 2}], name)
    rows = read_prompts(PromptsConfig(sources=[PromptSourceConfig(path, columns={"sample_weight": "w"})]), "train",
                        tokenizer, 5).rows
    assert [row["sample_weight"] for row in rows] == [0.5, 2.0]
    plain = read_prompts(PromptsConfig(sources=[PromptSourceConfig(path)]), "train", tokenizer, 5).rows
    assert [row["sample_weight"] for row in plain] == [1.0, 1.0]


@pytest.mark.parametrize("value", [-1.0, None, True, "much", float("inf")])
def test_a_weight_that_is_no_number_is_refused_with_its_row(value, write, tokenizer):
    path = write([{"prompt": "red cat", "w": 1.0}, {"prompt": "so", "w": value}], "rows.jsonl")
    config = PromptsConfig(sources=[PromptSourceConfig(path, columns={"sample_weight": "w"})])
    with pytest.raises(UserError, match=r"column 'w' must hold a finite number >= 0, got .* in row 1 of"):
        read_prompts(config, "train", tokenizer, 5)


# --- several sets


def test_sets_follow_one_another_with_their_columns_sizes_weights_names_and_places(write, tokenizer):
    first = write([{"q": "red cat", "who": "ann", "key": 7}, {"q": "so", "who": "bob", "key": 8}], "a.parquet")
    second = write([{"prompt": "blue dog", "ref": "runs"}], "b.jsonl")
    config = PromptsConfig(sources=[
        PromptSourceConfig(first, columns={"prompt": "q", "source": "who", "id": "key"}, weight=2.0),
        PromptSourceConfig(second, columns={"reference": "ref"})])
    found = read_prompts(config, "train", tokenizer, 9)
    assert [(row["prompt"], row["source"], row["reference"]) for row in found.rows] == [
        ("red cat", "ann", None), ("so", "bob", None), ("blue dog", second, "runs")]
    assert (found.sizes, found.weights, found.names) == ([2, 1], [2.0, 1.0], ["7", "8", None])
    assert [found.where(number) for number in range(3)] == [f"row 0 of {first!r}", f"row 1 of {first!r}",
                                                            f"row 0 of {second!r}"]
    batch = PromptStream(found.rows, 0, sizes=found.sizes, weights=found.weights).next(5)
    assert sorted(check(batch, PROMPT)["prompt_id"].to_pylist()) == [0, 0, 1, 1, 2]


def test_one_set_is_the_same_said_either_way(config, tokenizer):
    simple = read_prompts(config, "train", tokenizer, 9)
    listed = PromptsConfig(sources=[PromptSourceConfig(config.train, columns={"prompt": "question",
                                                                              "reference": "answer"})])
    assert read_prompts(listed, "train", tokenizer, 9) == simple


def test_a_folder_gives_training_and_test_rows_by_the_names_of_its_files(tmp_path, config, tokenizer):
    config.train = config.test = str(tmp_path)
    assert [row["prompt"] for row in read_prompts(config, "train", tokenizer, 9).rows] == TEXTS
    assert [row["prompt"] for row in read_prompts(config, "test", tokenizer, 9).rows] == TEXTS[:1]
    config.test, config.test_sources = None, [PromptSourceConfig(str(tmp_path), split="train", num_rows=3)]
    assert [row["prompt"] for row in read_prompts(config, "test", tokenizer, 9).rows] == TEXTS[:3]


def test_an_id_that_comes_twice_is_refused_with_both_rows(write, tokenizer):
    path = write([{"prompt": "so", "id": "x"}, {"prompt": "so", "id": "y"}, {"prompt": "red", "id": "x"}])
    config = PromptsConfig(sources=[PromptSourceConfig(path, columns={"id": "id"})])
    assert refusal(config, tokenizer) == (
        f"prompts.sources[0] column 'id' must tell rows apart, got 'x' in row 0 of {path!r} and in row 2 of {path!r}")


# --- chat messages

ASK = {"role": "user", "content": "red cat?"}
TALK = [{"role": "system", "content": "be brief"}, ASK, {"role": "assistant", "content": "so"},
        {"role": "user", "content": "runs?"}]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_messages_are_read_through_the_template_by_the_policy_and_as_text_by_a_judge(write, chat_tokenizer, name):
    path = write([{"talk": [ASK]}, {"talk": TALK}], name)
    config = PromptsConfig(train=path, messages_column="talk", chat=ChatConfig(system="so"))
    rows = read_prompts(config, "train", chat_tokenizer, 99).rows
    assert [row["prompt"] for row in rows] == ["red cat?",
                                               "System: be brief\nUser: red cat?\nAssistant: so\nUser: runs?"]
    assert [chat_tokenizer.convert_ids_to_tokens(row["prompt_ids"]) for row in rows] == [
        ["system", "so", "user", "red", "cat", "?", "assistant"],
        ["system", "be", "brief", "user", "red", "cat", "?", "assistant", "so", "user", "runs", "?", "assistant"]]
    config.chat.judge_reads = "last_user"
    assert [row["prompt"] for row in read_prompts(config, "train", chat_tokenizer, 99).rows] == ["red cat?", "runs?"]


def test_a_plain_prompt_becomes_a_message_where_that_is_asked_for(write, chat_tokenizer):
    path = write([{"prompt": "red cat?"}])
    config = PromptsConfig(train=path, chat=ChatConfig(wrap_prompts=True, system="be brief"))
    row, = read_prompts(config, "train", chat_tokenizer, 99).rows
    assert row["prompt"] == "red cat?"
    assert chat_tokenizer.decode(row["prompt_ids"]) == "system be brief user red cat? assistant"
    config.chat = ChatConfig()
    assert chat_tokenizer.decode(read_prompts(config, "train", chat_tokenizer, 99).rows[0]["prompt_ids"]) == "red cat?"


def test_special_tokens_of_the_tokenizer_are_not_put_around_what_a_template_wrote(write):
    bert_like = word_tokenizer(["red user assistant"], masked=True)     # puts [CLS] and [SEP] around a text
    bert_like.chat_template = CHATML
    config = PromptsConfig(train=write([{"prompt": "red"}]))
    for chat, expected in ((ChatConfig(), ["[CLS]", "red", "[SEP]"]),
                           (ChatConfig(wrap_prompts=True), ["user", "red", "assistant"])):
        config.chat = chat
        row, = read_prompts(config, "train", bert_like, 9).rows
        assert bert_like.convert_ids_to_tokens(row["prompt_ids"]) == expected


def test_a_tokenizer_without_a_chat_template_is_refused_by_the_set(write, tokenizer):
    path = write([{"talk": [ASK]}])
    message = "tokenizer must have a chat template for the messages of prompts.train, got none"
    assert refusal(PromptsConfig(train=path, messages_column="talk"), tokenizer).startswith(message)
    path = write([{"prompt": "so"}])
    assert refusal(PromptsConfig(train=path, chat=ChatConfig(wrap_prompts=True)), tokenizer).startswith(message)


# --- bad rows

CURE = "; mend the row or raise prompts.max_bad_rows"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": None}, "column 'prompt' must hold text, got None in row 1 of '{path}'" + CURE),
        ({"prompt": ""}, "column 'prompt' must hold text, got '' in row 1 of '{path}'" + CURE),
        ({"prompt": " "}, "column 'prompt' must hold text, got ' ' in row 1 of '{path}'" + CURE),
        ({"prompt": 7}, "column 'prompt' must hold text, got 7 in row 1 of '{path}'" + CURE),
        ({"text": "so"}, "must have the column 'prompt', got ['text'] in row 1 of '{path}'; map it in the config"),
    ],
)
def test_a_prompt_that_says_nothing_is_refused_by_file_row_and_column(write, tokenizer, row, message):
    path = write([{"prompt": "so"}, row])
    assert refusal(PromptsConfig(train=path), tokenizer) == "prompts.train " + message.replace("{path}", path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"m": [ASK], "answer": None}, "column 'answer' must hold text, got None"),
        ({"m": None, "answer": "a"}, "column 'm' must hold a list of messages, one at least, got None"),
        ({"m": [{"role": "bot", "content": "so"}], "answer": "a"},
         "column 'm' must have roles of system, user, assistant, tool, got 'bot' in message 0"),
        ({"m": TALK[:3], "answer": "a"}, "column 'm' must end before the assistant's turn, which the policy writes, "
                                         "got an assistant message at the end: 'so'"),
    ],
)
def test_messages_and_references_are_refused_by_file_row_and_column(write, chat_tokenizer, row, message):
    path = write([{"m": [ASK], "answer": "a"}, row])
    config = PromptsConfig(sources=[PromptSourceConfig(path, columns={"messages": "m", "reference": "answer"})])
    assert refusal(config, chat_tokenizer) == f"prompts.sources[0] {message} in row 1 of {path!r}{CURE}"


def test_a_column_that_a_parquet_file_lacks_is_named_with_those_it_has(write, tokenizer):
    path = write([{"q": "so", "a": "x"}], "rows.parquet")
    assert refusal(PromptsConfig(train=path), tokenizer) == (
        f"prompts.train must have the column 'prompt', got ['a', 'q'] in {path!r}; map it in the config")


def test_bad_rows_are_dropped_and_counted_up_to_a_number(write, tokenizer):
    path = write([{"prompt": "so"}, {"prompt": None}, {"prompt": "red"}, {"prompt": ""}, {"prompt": "cat"}])
    config = PromptsConfig(train=path, max_bad_rows=2)
    found = read_prompts(config, "train", tokenizer, 9)
    assert ([row["prompt"] for row in found.rows], found.num_bad) == (["so", "red", "cat"], 2)
    assert [found.where(number) for number in range(3)] == [f"row {row} of {path!r}" for row in (0, 2, 4)]
    config.max_bad_rows = 1
    assert refusal(config, tokenizer) == (
        f"prompts.train column 'prompt' must hold text, got '' in row 3 of {path!r} as bad row 2{CURE}")


def test_bad_rows_of_all_sets_count_together(write, tokenizer):
    paths = [write([{"prompt": "so"}, {"prompt": None}], f"{name}.jsonl") for name in "ab"]
    config = PromptsConfig(sources=[PromptSourceConfig(path) for path in paths], max_bad_rows=2)
    found = read_prompts(config, "train", tokenizer, 9)
    assert (found.sizes, found.num_bad) == ([1, 1], 2)
    config.max_bad_rows = 1
    assert refusal(config, tokenizer).startswith("prompts.sources[1] column 'prompt' must hold text, got None in row 1")


def test_a_prompt_without_a_token_is_refused_by_row(write):
    blank = word_tokenizer(["red"], masked=False)
    blank.backend_tokenizer.normalizer = normalizers.Replace("-", " ")
    path = write([{"prompt": "red"}, {"prompt": "-"}])
    assert refusal(PromptsConfig(train=path), blank) == (
        f"prompts.train must hold prompts of at least one token, got none in row 1 of {path!r}")


# --- long prompts


def test_prompts_that_are_too_long_are_counted_and_the_first_is_named(config, tokenizer):
    assert refusal(config, tokenizer, room=2) == (
        "prompts.train must fit into 2 tokens (max_model_len less rollout.max_tokens), got 2 longer ones, first row 1 "
        f"with 3; raise rollout.engine.max_model_len, shorten them in {config.train!r}, or set prompts.too_long=drop")


def test_prompts_that_are_too_long_are_dropped_and_counted_where_that_is_asked_for(config, tokenizer):
    config.too_long = "drop"
    found = read_prompts(config, "train", tokenizer, 3)
    assert [row["prompt"] for row in found.rows] == TEXTS[:3]
    assert (found.num_too_long, found.sizes) == (1, [3])
    assert found.where(2) == f"row 2 of {config.train!r}"
    assert [row["prompt"] for row in read_prompts(config, "train", tokenizer, 1).rows] == ["so"]


def test_a_set_of_which_nothing_is_left_is_refused(write, tokenizer):
    path = write([{"prompt": "red red red"}, {"prompt": None}, {"prompt": "red cat"}])
    config = PromptsConfig(train=path, too_long="drop", max_bad_rows=1)
    assert refusal(config, tokenizer, room=1) == (
        f"prompts.train must keep prompts, got none in {path!r}: 1 bad and 2 longer than 1 tokens")


def test_a_curriculum_and_two_sets_walk_from_the_config_to_batches(write, tokenizer):
    paths = [write([{"prompt": text} for text in texts], f"{name}.jsonl")
             for name, texts in (("a", ["red", "cat"]), ("b", ["so", "dog"]))]
    config = PromptsConfig(sources=[PromptSourceConfig(path) for path in paths],
                           curriculum=CurriculumConfig(prefer="bounds", outside=0.0))
    found = read_prompts(config, "train", tokenizer, 9)
    stream = PromptStream(found.rows, 3, sizes=found.sizes, weights=found.weights, curriculum=config.curriculum)
    batch = stream.next(4).to_pylist()
    stream.observe([row["group_id"] for row in batch], [float(row["prompt"] == "cat") for row in batch])
    assert stream.figures() == {"epoch": 1, "prompts_skipped": 0, "prompts_tried": 4, "prompts_hard": 3,
                                "prompts_easy": 1}
    assert in_order(found.rows)["prompt"].to_pylist() == ["red", "cat", "so", "dog"]
