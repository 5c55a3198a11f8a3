import json

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from rlaif import scenes
from rlaif.config.checks import UserError
from rlaif.data.data_sets import Part
from rlaif.data.tables import DEFAULT_NUM_ROWS, read_rows, read_table

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
        ("nothing.jsonl", None, "must be a file or scenes:<table>, got '{path}', which is not there; a folder and "
                                "hub:<owner>/<name> are read too"),
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
        ("rows.csv", "prompt,prompt\na,b\n", "must have columns of different names, got 'prompt' twice in '{path}'"),
        ("rows.csv", 'prompt\na\n"b\nc\n', "must be readable as .csv, got '{path}': unexpected end of data in line 4"),
        ("rows.csv", 'prompt\n"a\nb"c\n', "must be readable as .csv, got '{path}': ',' expected after '\"' in line 3"),
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


def test_a_parquet_file_that_is_cut_short_is_refused(tmp_path):
    path = write(tmp_path, ".parquet", ROWS)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"^prompts.train must be readable as .parquet, got '.*rows.parquet': "):
        read(path)


def test_text_of_a_csv_stays_the_text_it_is_whatever_it_looks_like(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('prompt,note,rating\n007,1e3,4.5\ntrue,NA,2\n"two\nlines, quoted",2024-01-01,3\n')
    rows = read(path, ("prompt", "note"))
    assert [row["prompt"] for row in rows] == ["007", "true", "two\nlines, quoted"]
    assert [row["note"] for row in rows] == ["1e3", "NA", "2024-01-01"]
    assert [row["rating"] for row in rows] == [4.5, 2.0, 3.0]       # not asked for as text: as it looks


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path):
    for name, text in (("rows.jsonl", '{"prompt": "a"}\n'), ("rows.csv", "prompt\na\n")):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert read(tmp_path / name) == [{"prompt": "a"}]


def test_lines_behind_the_rows_that_are_asked_for_are_not_read(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\nno JSON\n')
    assert read(tmp_path / "rows.jsonl", num_rows=2) == [{"prompt": "a"}, {"prompt": "b"}]


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_only_the_columns_that_are_asked_for_are_read_where_that_is_wanted(tmp_path, suffix):
    path = str(write(tmp_path, suffix, ROWS))
    options = {"num_rows": None, "seed": 0, "key": "prompts.train", "is_narrow": True}
    assert read_table(path, columns=["note", "note"], **options).rows == [{"note": row["note"]} for row in ROWS]
    with pytest.raises(UserError) as caught:
        read_table(path, columns=["note", "text"], **options)
    assert str(caught.value) == (f"prompts.train must have the column 'text', got ['note', 'prompt'] in '{path}'; map "
                                 "it in the config")


def test_a_row_of_a_folder_is_named_by_its_own_file_and_its_place_there(tmp_path):
    for name, texts in (("part-1.jsonl", ["a", "b"]), ("part-2.jsonl", ["c"])):
        (tmp_path / name).write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    table = read_table(str(tmp_path), columns=["prompt"], num_rows=None, seed=0, key="prompts.train")
    assert [row["prompt"] for row in table.rows] == ["a", "b", "c"]
    assert [table.place(number) for number in range(3)] == [
        (str(tmp_path / "part-1.jsonl"), 0), (str(tmp_path / "part-1.jsonl"), 1), (str(tmp_path / "part-2.jsonl"), 0)]
    assert table.where(1) == f"row 1 of '{tmp_path}/part-1.jsonl'"
    (tmp_path / "part-2.jsonl").write_text('{"prompt": null}\n')
    with pytest.raises(UserError, match=r"column 'prompt' must hold text, got None in row 0 of '.*part-2.jsonl'"):
        read(tmp_path)
    assert [row["prompt"] for row in read(tmp_path, num_rows=2)] == ["a", "b"]


def test_a_file_has_no_splits(tmp_path):
    path = str(write(tmp_path, ".jsonl", ROWS))
    with pytest.raises(UserError, match=r"^data.dev must be a folder or of the hub to have splits, got '.*' with split "
                                        r"'test'$"):
        read_rows(path, columns=[], num_rows=None, seed=0, key="data.dev", part=Part("test"))


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b'{"prompt": "\xff"}\n')
    with pytest.raises(UserError, match=r"must be readable as .jsonl, got .*codec can't decode byte 0xff"):
        read(tmp_path / "rows.jsonl")


def test_an_unknown_table_of_the_world_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"prompts.train must name one of prompts-train, .* after 'scenes:', got 'x'"):
        read("scenes:x")
