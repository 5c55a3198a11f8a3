import datasets
import pytest

from rlaif.config.checks import UserError
from rlaif.data.data_sets import Part, choose_split, folder_files, read_hub
from rlaif.data.tables import SUFFIXES, read_table

KEY = "prompts.train"
ROWS = {"train": [{"prompt": "a", "n": 1}, {"prompt": "b", "n": 2}, {"prompt": "c", "n": 3}],
        "test": [{"prompt": "z", "n": 9}]}


def files(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('{"prompt": "a"}\n')
    return folder


def found(folder, split=None, likely=None):
    return [str(path.relative_to(folder)) for path in folder_files(folder, SUFFIXES, Part(split, likely), KEY)]


@pytest.mark.parametrize(
    ("names", "split", "likely", "expected"),
    [
        (["b.jsonl", "a.jsonl", "notes.md", ".a.jsonl", "_tmp/c.jsonl"], None, "train", ["a.jsonl", "b.jsonl"]),
        (["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl", "data/test-00000-of-00001.jsonl"], None,
         "train", ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl"]),
        (["train/0.jsonl", "train/1.jsonl", "test/0.jsonl"], None, "test", ["test/0.jsonl"]),
        (["train.jsonl", "validation.jsonl"], "validation", "train", ["validation.jsonl"]),
        (["train.jsonl", "hard.jsonl"], "hard", "train", ["hard.jsonl"]),
        (["train.jsonl", "more.jsonl"], None, "train", ["more.jsonl", "train.jsonl"]),     # one split: all of it
        (["test.jsonl"], None, "train", ["test.jsonl"]),
    ],
)
def test_a_folders_files_are_chosen_by_the_words_of_their_names(tmp_path, names, split, likely, expected):
    assert found(files(tmp_path, *names), split, likely) == expected


@pytest.mark.parametrize(
    ("names", "split", "likely", "message"),
    [
        (["notes.md"], None, "train", "must hold files that end in .parquet, .csv, .jsonl, got none in the folder "
                                      "'{folder}'"),
        (["dev.jsonl", "test.jsonl"], None, "train", "must say which split of '{folder}' is meant, got none of dev, "
                                                     "test; set split, or give the path of one file"),
        (["train.jsonl"], None, "test", "must say which split of '{folder}' is meant, got none of train; set split"),
        (["train.jsonl", "test.jsonl"], "dev", "train", "must have the split 'dev', got test, train in '{folder}'"),
        (["a.jsonl"], "dev", "train", "must have the split 'dev', got none in '{folder}'"),
        (["a.jsonl", "a.csv"], None, "train", "must hold files of one kind, got .csv, .jsonl in '{folder}'; give the "
                                              "path of one file"),
    ],
)
def test_a_folder_that_leaves_it_open_is_refused(tmp_path, names, split, likely, message):
    with pytest.raises(UserError) as caught:
        found(files(tmp_path, *names), split, likely)
    assert str(caught.value).startswith(f"{KEY} " + message.replace("{folder}", str(tmp_path)))


def test_training_rows_are_test_rows_only_where_that_is_said():
    assert choose_split(["train"], Part("train", "test"), "x", KEY) == "train"
    assert choose_split(["train"], Part(None, "train"), "x", KEY) == "train"
    assert choose_split(["holdout"], Part(None, "test"), "x", KEY) == "holdout"


def read(folder, **options):
    table = read_table(str(folder), columns=["prompt"], num_rows=options.pop("num_rows", None), seed=0, key=KEY,
                       part=Part(**options), is_narrow=True)
    return [row["prompt"] for row in table.rows]


def test_what_save_to_disk_wrote_is_read_by_split_in_its_own_order(tmp_path):
    sets = datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in ROWS.items()})
    sets.save_to_disk(str(tmp_path / "both"))
    assert read(tmp_path / "both", likely="train") == ["a", "b", "c"]
    assert read(tmp_path / "both", split="test") == ["z"]
    assert read(tmp_path / "both", likely="train", num_rows=2) == ["a", "b"]
    with pytest.raises(UserError, match=r"^prompts.train must have the split 'dev', got test, train in "):
        read(tmp_path / "both", split="dev")
    sets["train"].select([2, 0]).save_to_disk(str(tmp_path / "one"))
    assert read(tmp_path / "one", likely="test") == ["c", "a"]


def test_a_folder_of_save_to_disk_with_a_part_missing_is_refused(tmp_path):
    datasets.Dataset.from_list(ROWS["train"]).save_to_disk(str(tmp_path))
    for path in tmp_path.glob("*.arrow"):
        path.unlink()
    with pytest.raises(UserError, match=r"^prompts.train must be a whole folder of save_to_disk, got '.*': "):
        read(tmp_path)


def test_a_hub_data_set_is_read_like_one_that_lies_here(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    for name, rows in ROWS.items():
        datasets.Dataset.from_list(rows).to_parquet(str(folder / f"{name}.parquet"))
    assert read_hub(str(folder), Part(likely="train"), KEY).to_pylist() == ROWS["train"]
    assert read_hub(str(folder), Part(split="test"), KEY).to_pylist() == ROWS["test"]
    (folder / "train.parquet").write_text("no parquet")
    with pytest.raises(UserError, match=r"^prompts.train must be a data set of the hub that can be read, got '.*': "):
        read_hub(str(folder), Part(likely="train"), KEY)


@pytest.mark.parametrize("name", ["", "a/b/c", "/no/such/folder", "a b"])
def test_a_hub_name_is_owner_and_name(name):
    with pytest.raises(UserError, match=r"^prompts.train must be hub:<owner>/<name>, got 'hub:.*'; a folder is named"):
        read_table("hub:" + name, columns=[], num_rows=None, seed=0, key=KEY)
