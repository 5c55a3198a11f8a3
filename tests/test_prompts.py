import json

import pytest

from rlaif.batch import PROMPT, check
from rlaif.config import PromptsConfig, UserError
from rlaif.models import word_tokenizer
from rlaif.prompts import PromptStream, in_order, prompt_rows

TEXTS = ["red cat", "blue dog runs", "so", "red red red red red"]


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer(TEXTS, masked=False)


@pytest.fixture
def config(tmp_path):
    lines = [json.dumps({"question": text, "answer": f"{text}!"}) for text in TEXTS]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    (tmp_path / "test.jsonl").write_text("\n".join(lines[:1]))
    return PromptsConfig(train=str(tmp_path / "train.jsonl"), test=str(tmp_path / "test.jsonl"),
                         prompt_column="question", reference_column="answer")


def stream(num_rows=5, seed=0, cursor=0):
    rows = [{"prompt": f"p{n}", "prompt_ids": [n], "reference": None, "source": "here"} for n in range(num_rows)]
    return PromptStream(rows, seed, cursor)


def test_rows_carry_text_ids_reference_and_source(config, tokenizer):
    rows = prompt_rows(config, "train", tokenizer, 5)
    assert [row["prompt"] for row in rows] == TEXTS
    assert [tokenizer.decode(row["prompt_ids"]) for row in rows] == TEXTS
    assert rows[1]["reference"] == "blue dog runs!" and rows[1]["source"] == config.train
    assert prompt_rows(config, "test", tokenizer, 5) == [rows[0] | {"source": config.test}]


def test_without_a_reference_column_references_are_null(config, tokenizer):
    config.reference_column = None
    assert {row["reference"] for row in prompt_rows(config, "train", tokenizer, 5)} == {None}


def test_prompts_that_are_too_long_are_counted_and_the_first_is_named(config, tokenizer):
    message = r"prompts.train must fit into 2 tokens .*, got 2 longer ones, first row 1 with 3"
    with pytest.raises(UserError, match=message):
        prompt_rows(config, "train", tokenizer, 2)


def test_a_prompt_without_a_token_is_refused_by_row(tmp_path, tokenizer):
    (tmp_path / "blank.jsonl").write_text('{"prompt": "so"}\n{"prompt": " "}\n')
    config = PromptsConfig(train=str(tmp_path / "blank.jsonl"), test="")
    with pytest.raises(UserError, match=r"prompts.train must hold prompts of at least one token, got none in row 1 of"):
        prompt_rows(config, "train", tokenizer, 9)


def test_every_row_comes_once_an_epoch_also_across_batches():
    prompts = stream()
    taken = [row for size in (3, 3, 4) for row in prompts.next(size).to_pylist()]
    for epoch in (0, 1):
        rows = [row for row in taken if row["epoch"] == epoch]
        assert sorted(row["prompt_id"] for row in rows) == [0, 1, 2, 3, 4]
        assert all(row["prompt"] == f"p{row['prompt_id']}" for row in rows)
    assert [row["group_id"] for row in taken] == list(range(10))


def order(seed, epoch, num_rows=20):
    prompts = stream(num_rows, seed, cursor=epoch * num_rows)
    return prompts.next(num_rows)["prompt_id"].to_pylist()


def test_the_order_follows_seed_and_epoch():
    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_a_stream_that_is_cut_goes_on_at_its_cursor_as_if_it_were_not():
    whole = stream().next(13).to_pylist()
    first = stream()
    head = first.next(6).to_pylist()
    assert first.cursor == 6
    assert head + stream(cursor=6).next(7).to_pylist() == whole


def test_evaluation_takes_the_rows_in_file_order():
    rows = stream()._rows
    table = check(in_order(rows), PROMPT)
    assert table["prompt"].to_pylist() == ["p0", "p1", "p2", "p3", "p4"]
    assert table["group_id"].to_pylist() == table["prompt_id"].to_pylist() == [0, 1, 2, 3, 4]
