"""The cache of explanations: what makes a key, what is kept, who may share the file, what is refused."""

import dataclasses
import hashlib
import multiprocessing
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rlaif.config.checks import UserError
from rlaif.esfp.explanation_cache import (
    Author,
    ExplanationCache,
    Written,
    explanation_key,
    model_identity,
    server_identity,
)

AUTHOR = Author("folder 00", "{prompt}\nReason:", "be fair", 64, 0.7, 3)
QUESTION = "Is it day?\nReason:"


def test_a_key_is_the_sha256_of_its_canonical_json() -> None:
    text = ('{"max_tokens":64,"model":"folder 00","principles":"be fair","question":"Is it day?\\nReason:","sample":2,'
            '"seed":3,"temperature":0.7,"template":"{prompt}\\nReason:"}')
    assert explanation_key(AUTHOR, QUESTION, 2) == hashlib.sha256(text.encode()).hexdigest()


def test_every_ingredient_changes_the_key() -> None:
    others = {"model": "folder 01", "template": "{prompt}\nWhy:", "principles": "", "max_tokens": 63,
              "temperature": 0.8, "seed": 4}
    assert others.keys() == {field.name for field in dataclasses.fields(Author)}, "a new ingredient must be tried"
    keys = [explanation_key(dataclasses.replace(AUTHOR, **{name: value}), QUESTION, 0)
            for name, value in others.items()]
    keys += [explanation_key(AUTHOR, *rest) for rest in ((QUESTION, 0), (QUESTION, 1), (QUESTION + " ", 0))]
    assert len(set(keys)) == 9


def test_ingredients_do_not_run_into_each_other() -> None:
    moved = dataclasses.replace(AUTHOR, template=AUTHOR.template + AUTHOR.principles, principles="")
    quoted = dataclasses.replace(AUTHOR, template='{prompt}\nReason:","x":"', principles="")
    keys = {explanation_key(author, QUESTION, 0) for author in (AUTHOR, moved, quoted)}
    assert len(keys) == 3


@pytest.mark.parametrize("question", ["", "\0", "[MASK] {prompt}", "naïve 日本 \U0001f600", "\ud800", "x" * (4 << 20)])
def test_any_text_has_a_key_of_its_own(question: str) -> None:
    keys = {explanation_key(AUTHOR, text, 0) for text in (question, question + "\0", question + " ")}
    assert len(keys) == 3


def test_a_greedy_key_depends_on_neither_seed_nor_sample() -> None:
    greedy = dataclasses.replace(AUTHOR, temperature=0.0)
    keys = {explanation_key(dataclasses.replace(greedy, seed=seed), QUESTION, sample)
            for seed in (0, 5) for sample in (0, 1)}
    keys.add(explanation_key(dataclasses.replace(greedy, temperature=0), QUESTION, 0))
    assert len(keys) == 1
    assert explanation_key(dataclasses.replace(greedy, max_tokens=1), QUESTION, 0) not in keys


def test_equal_folders_are_one_model_and_any_changed_byte_of_it_makes_another(folders, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "deep" / "two"
    shutil.copytree(folders.causal, one)
    shutil.copytree(folders.causal, two)
    same = model_identity(str(one))
    assert same == model_identity(str(two)) and same.startswith("folder ")
    (two / "README.md").write_text("what it is")
    assert model_identity(str(two)) == same, "a note beside the model is not the model"
    seen = {same}
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        data = bytearray((two / name).read_bytes())
        data[-1] ^= 1                                   # same size, same shapes
        (two / name).write_bytes(data)
        seen.add(model_identity(str(two)))
    (two / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    seen.add(model_identity(str(two)))
    (two / "tokenizer.json").rename(two / "tokenizer.txt")
    seen.add(model_identity(str(two)))
    assert len(seen) == 6


def test_a_hub_name_is_told_by_its_downloaded_commit(tmp_path: Path) -> None:
    for commit in ("a" * 40, "b" * 40):
        snapshot = tmp_path / "models--house--tiny" / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text("{}")
    refs = tmp_path / "models--house--tiny" / "refs"
    refs.mkdir()
    told = []
    for commit in ("a" * 40, "b" * 40):
        (refs / "main").write_text(commit)
        code = ("from rlaif.esfp.explanation_cache import model_identity as m; "
                "print(m('house/tiny'), m('house/unknown'))")
        done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"HF_HUB_CACHE": str(tmp_path)},
                              cwd=Path(__file__).parents[2], text=True, capture_output=True, check=True)
        told.append(done.stdout.strip())
    assert told == [f"hub house/tiny {c * 40} hub house/unknown" for c in "ab"]


def test_a_server_is_told_by_url_api_and_model() -> None:
    told = {server_identity(*given) for given in (
        ("http://a/v1", "m", "chat"), ("http://b/v1", "m", "chat"), ("http://a/v1", "n", "chat"),
        ("http://a/v1", "m", "completions"))}
    assert len(told) == 4
    assert server_identity("http://a/v1/", "m", "chat") in told


TEXTS = ["plain", "", " \t\r\n", "nul \0 inside", "naïve 日本 \U0001f600", "'; DROP TABLE explanations; --",
         "x" * (1 << 20)]


def test_what_was_put_is_found_again_by_another_object(tmp_path: Path) -> None:
    entries = {explanation_key(AUTHOR, text, 0): Written(text, number, ("stop", "length")[number % 2])
               for number, text in enumerate(TEXTS)}
    cache = ExplanationCache(tmp_path / "new" / "folder" / "cache.sqlite")
    assert cache.get_many(entries) == {}
    assert cache.put_many(entries) == len(TEXTS)
    assert cache.get_many(entries) == entries
    cache.close()
    again = ExplanationCache(tmp_path / "new" / "folder" / "cache.sqlite")
    assert again.get_many([*entries, "unknown"]) == entries
    again.close()


def test_hits_are_counted_by_key(tmp_path: Path) -> None:
    cache = ExplanationCache(tmp_path / "cache.sqlite")
    cache.put_many({"a": Written("A", 1, "stop")})
    cache.get_many(["a", "a", "b"])
    cache.get_many([])
    assert (cache.num_hits, cache.num_lookups) == (1, 2)
    cache.close()


def test_failures_and_cut_questions_are_never_kept(tmp_path: Path) -> None:
    cache = ExplanationCache(tmp_path / "cache.sqlite")
    assert cache.put_many({"a": Written("", 0, "failed"), "b": Written("B", 1, "input_cut")}) == 0
    assert cache.put_many({"a": Written("", 0, "failed"), "c": Written("C", 1, "length")}) == 1
    assert cache.get_many(["a", "b", "c"]) == {"c": Written("C", 1, "length")}
    assert cache.put_many({"a": Written("A", 1, "stop")}) == 1, "a failure leaves room for the answer"
    cache.close()


def test_the_first_explanation_of_a_key_stays(tmp_path: Path) -> None:
    cache = ExplanationCache(tmp_path / "cache.sqlite")
    assert cache.put_many({"a": Written("first", 1, "stop")}) == 1
    assert cache.put_many({"a": Written("second", 1, "stop"), "b": Written("B", 1, "stop")}) == 1
    assert cache.get_many(["a"])["a"].text == "first"
    cache.close()


def test_more_keys_than_a_statement_may_hold_are_found(tmp_path: Path) -> None:
    entries = {str(number): Written(f"text {number}", number, "stop") for number in range(40_000)}
    cache = ExplanationCache(tmp_path / "cache.sqlite")
    cache.put_many(entries)
    assert cache.get_many(entries) == entries
    cache.close()


def test_a_batch_that_cannot_be_kept_is_kept_in_no_part(tmp_path: Path) -> None:
    cache = ExplanationCache(tmp_path / "cache.sqlite")
    with pytest.raises(UnicodeEncodeError):
        cache.put_many({"a": Written("A", 1, "stop"), "b": Written("\ud800", 1, "stop")})
    assert cache.get_many(["a"]) == {}
    assert cache.put_many({"a": Written("A", 1, "stop")}) == 1, "the file is free again"
    cache.close()


def fill(path: Path, writer: int, num_rows: int) -> None:
    """One process's part: opens the file itself, writes shared and own rows, reads after every write."""
    cache = ExplanationCache(path)
    for number in range(num_rows):
        cache.put_many({f"shared {number}": Written("same", 1, "stop"),
                        f"{writer} {number}": Written(f"by {writer}", number, "stop")})
        assert len(cache.get_many([f"shared {number}", f"{writer} {number}"])) == 2
    cache.close()


def test_processes_that_open_a_new_file_at_once_all_write_to_it(tmp_path: Path) -> None:
    path, num_rows = tmp_path / "cache.sqlite", 40
    context = multiprocessing.get_context("forkserver")
    processes = [context.Process(target=fill, args=(path, writer, num_rows)) for writer in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    cache = ExplanationCache(path)
    keys = [f"{writer} {number}" for writer in (*range(4), "shared") for number in range(num_rows)]
    assert len(cache.get_many(keys)) == 5 * num_rows
    cache.close()


def test_opening_waits_for_a_process_that_is_making_the_file(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "cache.sqlite", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")            # SQLite itself would say "locked" at once
    timer = threading.Timer(0.3, other.execute, ["ROLLBACK"])
    timer.start()
    cache = ExplanationCache(tmp_path / "cache.sqlite")
    assert not timer.is_alive()
    assert cache.put_many({"a": Written("A", 1, "stop")}) == 1
    cache.close()
    other.close()


def test_threads_may_share_one_object(tmp_path: Path) -> None:
    cache, errors = ExplanationCache(tmp_path / "cache.sqlite"), []

    def work(writer: int) -> None:
        try:
            for number in range(50):
                cache.put_many({f"{writer} {number}": Written(str(writer), number, "stop")})
                cache.get_many([f"{writer} {number}"])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert (cache.num_hits, cache.num_lookups) == (200, 200)
    cache.close()


def test_a_writer_killed_in_the_midst_leaves_whole_rows_and_a_file_that_opens(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    process = multiprocessing.get_context("forkserver").Process(target=fill, args=(path, 0, 1_000_000))
    process.start()
    reader = ExplanationCache(path)
    while not reader.get_many(["0 30"]):
        assert process.is_alive()
    process.kill()
    process.join()
    reader.close()
    cache = ExplanationCache(path)
    pairs = [len(cache.get_many([f"0 {number}", f"shared {number}"])) for number in range(2000)]
    assert set(pairs[:30]) == {2} and set(pairs) <= {0, 2}, "both rows of a batch or neither"
    assert cache.put_many({"new": Written("N", 1, "stop")}) == 1
    cache.close()


def refused(path: Path, *parts: str) -> None:
    with pytest.raises(UserError) as caught:
        cache = ExplanationCache(path)
        try:
            cache.get_many(map(str, range(3000)))
        finally:
            cache.close()
    assert "\n" not in str(caught.value)
    for part in (str(path), *parts):
        assert part in str(caught.value)


def test_a_corrupted_file_is_refused_in_one_line_with_the_cure(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.sqlite"
    garbage.write_bytes(bytes(range(256)) * 64)
    refused(garbage, "must be a whole SQLite file", "file is not a database", "delete it")

    torn = tmp_path / "torn.sqlite"
    cache = ExplanationCache(torn)
    cache.put_many({str(number): Written("x" * 200, 1, "stop") for number in range(3000)})
    cache.close()
    whole = torn.read_bytes()
    torn.write_bytes(whole[: len(whole) // 2])
    refused(torn, "must be a whole SQLite file", "malformed", "delete it")
    torn.write_bytes(whole[:8192] + b"\xff" * (len(whole) - 8192))
    refused(torn, "must be a whole SQLite file", "malformed", "delete it")


def test_an_empty_file_is_a_new_cache(tmp_path: Path) -> None:
    (tmp_path / "empty.sqlite").touch()
    cache = ExplanationCache(tmp_path / "empty.sqlite")
    assert cache.put_many({"a": Written("A", 1, "stop")}) == 1
    cache.close()


def test_a_file_of_another_program_or_format_is_refused_and_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "other.sqlite"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE theirs (a)")
    connection.close()
    refused(other, "must be of format 1", "of another program")
    connection = sqlite3.connect(other)
    assert [name for (name,) in connection.execute("SELECT name FROM sqlite_master")] == ["theirs"]
    connection.close()


def test_a_path_that_cannot_be_a_file_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "must be a file that can be read and written", "unable to open")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file" / "cache.sqlite", "must be a file that can be read and written", "name another file")
