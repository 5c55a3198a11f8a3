import json

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from rlaif import scenes
from rlaif.config import UserError
from rlaif.tables import DEFAULT_NUM_ROWS, read_rows

ROWS = [{"prompt": "red, \"blue\"", "note": "so"}, {"prompt": "a line\u2028and another", "note": "é\x85"}]


def read(source, columns=("prompt",), num_rows=None, seed=0):
    return read_rows(str(source), columns=columns, num_rows=num_rows, seed=seed, key="prompts.train")


def write(folder, suffix, rows):
    path = folder / f"rows{suffix}"
    if suffix == ".parquet":
        pa.parquet.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == ".csv":
        pa.csv.write_csv(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_every_kind_of_file_gives_the_rows_that_were_written(tmp_path, suffix):
    path = write(tmp_path, suffix, ROWS)
    assert read(path, ("prompt", "note")) == ROWS
    assert read(path, num_rows=1) == ROWS[:1]
    assert read(path, num_rows=5) == ROWS


def test_blank_lines_are_no_rows(tmp_path):
    (tmp_path / "rows.jsonl").write_text('\n{"prompt": "a"}\r\n   \n{"prompt": "b"}')
    assert [row["prompt"] for row in read(tmp_path / "rows.jsonl")] == ["a", "b"]


def test_the_built_in_world_is_drawn_from_the_seed():
    assert read("scenes:prompts-train", num_rows=3, seed=4) == scenes.rows("prompts-train", seed=4, num_rows=3)
    assert read("scenes:prompts-train", num_rows=3, seed=5) != read("scenes:prompts-train", num_rows=3, seed=4)
    assert len(read("scenes:prompts-test")) == DEFAULT_NUM_ROWS


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("nothing.jsonl", None, "must be a file or scenes:<table>, got '{path}', which is not there"),
        ("rows.txt", "a", "must end in one of .parquet, .csv, .jsonl, got '{path}'"),
        ("rows.jsonl", "", "must hold rows, got none in '{path}'"),
        ("rows.jsonl", "\n\n", "must hold rows, got none in '{path}'"),
        ("rows.jsonl", '{"prompt": "a"}\n{"prompt": \n',
         "must hold one JSON object a line, got line 2 of '{path}': Expecting value"),
        ("rows.jsonl", '{"prompt": "a"}\n[1]\n', "must hold one JSON object a line, got list in line 2 of '{path}'"),
        ("rows.jsonl", '{"prompt": "a"}\n{"text": "b"}\n',
         "must have the column 'prompt', got ['text'] in row 1 of '{path}'; map it in the config"),
        ("rows.jsonl", '{"prompt": "a"}\n{"prompt": null}\n',
         "column 'prompt' must hold text, got None in row 1 of '{path}'"),
        ("rows.jsonl", '{"prompt": 5}\n', "column 'prompt' must hold text, got 5 in row 0 of '{path}'"),
        ("rows.csv", "", "must be readable as .csv, got '{path}': Empty CSV file"),
        ("rows.csv", "prompt\na\nb,c\n",
         "must be readable as .csv, got '{path}': CSV parse error: Expected 1 columns, got 2: b,c"),
        ("rows.parquet", "no parquet", "must be readable as .parquet, got '{path}': "),
    ],
)
def test_a_bad_source_is_refused_by_file_and_place(tmp_path, name, text, message):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError) as caught:
        read(path)
    assert str(caught.value).startswith("prompts.train " + message.replace("{path}", str(path)))
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b'{"prompt": "\xff"}\n')
    with pytest.raises(UserError, match=r"must be readable as .jsonl, got .*codec can't decode byte 0xff"):
        read(tmp_path / "rows.jsonl")


def test_an_unknown_table_of_the_world_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"prompts.train must name one of prompts-train, .* after 'scenes:', got 'x'"):
        read("scenes:x")
