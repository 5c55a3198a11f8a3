import hashlib
import json
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import pytest

from rlaif.scenes.generate import MIN_NUM_FACTS, RIGHT_SHARE, TABLES, rows, split_of
from rlaif.scenes.judge import explain_answer, judge, parse_prompt
from rlaif.scenes.lexicon import DIMENSIONS, values
from rlaif.scenes.semantics import RELATIONS
from rlaif.scenes.sentence import Scene, parse, split_words, write
from rlaif.scenes.vocabulary import vocabulary
from tests.scenes.worlds import relation_by_worlds

NUM = 2000
Tables = dict[str, list[dict[str, str]]]


@pytest.fixture(scope="module")
def tables() -> Tables:
    return {table: rows(table, seed=7, num_rows=NUM) for table in TABLES}


def premises(table: list[dict[str, str]]) -> set[Scene]:
    return {parse_prompt(row["prompt"])[1] for row in table}


def digest(table: str, seed: int, num_rows: int) -> str:
    return hashlib.sha256(json.dumps(rows(table, seed=seed, num_rows=num_rows)).encode()).hexdigest()


def test_columns(tables: Tables) -> None:
    columns = {
        "prompts": ["prompt", "reference", "relation"],
        "policy": ["prompt", "completion"],
        "explainer": ["prompt", "completion", "explanation"],
        "judged": ["prompt", "completion", "label"],
        "pairs": ["prompt", "chosen", "rejected"],
    }
    for name, table in tables.items():
        assert len(table) == NUM
        assert all(list(row) == columns[name.partition("-")[0]] for row in table)


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_references_are_right_by_the_worlds_and_no_copies(tables: Tables, split: str) -> None:
    for row in tables[f"prompts-{split}"]:
        asked, premise = parse_prompt(row["prompt"])
        reference = parse(row["reference"])
        assert reference is not None and reference != premise
        assert row["relation"] == asked == relation_by_worlds(premise, reference)
        assert judge(row["prompt"], row["reference"]).reward == 1.0


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_prompts_are_unique_and_ask_in_turn(tables: Tables, split: str) -> None:
    table = tables[f"prompts-{split}"]
    assert len(premises(table)) == NUM
    assert [row["relation"] for row in table[:6]] == [*RELATIONS, *RELATIONS]


@pytest.mark.parametrize("split", ["train", "dev"])
def test_of_a_pair_only_the_chosen_one_is_right_and_both_are_sentences(tables: Tables, split: str) -> None:
    for row in tables[f"pairs-{split}"]:
        assert judge(row["prompt"], row["chosen"]).label == "yes"
        assert judge(row["prompt"], row["rejected"]).label == "no"


@pytest.mark.parametrize("split", ["train", "dev"])
def test_policy_rows_are_right_in_the_share_promised(tables: Tables, split: str) -> None:
    verdicts = [judge(**row) for row in tables[f"policy-{split}"]]
    assert all(verdict.label != "garbled" for verdict in verdicts)
    assert abs(sum(verdict.reward for verdict in verdicts) / NUM - RIGHT_SHARE) < 0.04


@pytest.mark.parametrize("split", ["train", "dev"])
def test_explanations_are_those_of_the_judge(tables: Tables, split: str) -> None:
    table = tables[f"explainer-{split}"]
    assert all(row["explanation"] == explain_answer(row["prompt"], row["completion"]) for row in table)


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_labels_agree_with_the_worlds_and_are_balanced(tables: Tables, split: str) -> None:
    table = tables[f"judged-{split}"]
    for row in table:
        asked, premise = parse_prompt(row["prompt"])
        hypothesis = parse(row["completion"])
        right = hypothesis is not None and relation_by_worlds(premise, hypothesis) == asked
        assert row["label"] == ("garbled" if hypothesis is None else "yes" if right else "no")
    share = {label: count / NUM for label, count in Counter(row["label"] for row in table).items()}
    assert 0.36 < share["yes"] < 0.52 and 0.3 < share["no"] < 0.46 and 0.13 < share["garbled"] < 0.22
    found = Counter(judge(row["prompt"], row["completion"]).relation for row in table)
    assert min(found[relation] for relation in RELATIONS) > 0.12 * NUM
    assert len({row["prompt"].split(":")[0] for row in table}) == 3


def test_splits_share_no_premise_and_tables_few(tables: Tables) -> None:
    by_split: dict[str, set[Scene]] = {"train": set(), "dev": set(), "test": set()}
    for name, table in tables.items():
        split = name.rpartition("-")[2]
        assert all(split_of(premise) == split for premise in premises(table))
        by_split[split] |= premises(table)
    assert by_split["train"].isdisjoint(by_split["dev"] | by_split["test"])
    assert by_split["dev"].isdisjoint(by_split["test"])
    assert len(by_split["train"]) > 0.98 * 5 * NUM


def test_premises_leave_room_for_all_three_relations(tables: Tables) -> None:
    """Checked on every scene one fact away from the premise."""
    for premise in list(premises(tables["prompts-test"]))[:300]:
        near = []
        for dimension in DIMENSIONS:
            for value in (None, *values(dimension)):
                try:
                    near.append(Scene(**{**premise.facts(), dimension: value}))
                except ValueError:
                    continue
        assert {relation_by_worlds(premise, scene) for scene in near if scene != premise} == set(RELATIONS)
        assert len(premise.facts()) >= MIN_NUM_FACTS


def test_a_table_is_the_same_in_another_process() -> None:
    code = "from tests.scenes.test_generate import digest; print(digest('judged-test', 3, 50))"
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert again.stdout.strip() == digest("judged-test", 3, 50)


@pytest.mark.parametrize("table", TABLES)
def test_a_longer_table_begins_with_the_shorter(table: str) -> None:
    assert rows(table, seed=1, num_rows=40)[:25] == rows(table, seed=1, num_rows=25)


def test_tables_and_seeds_draw_from_streams_of_their_own() -> None:
    streams = [rows(table, seed=seed, num_rows=20) for table in TABLES for seed in (0, 1)]
    drawn = [tuple(row["prompt"] for row in stream) for stream in streams]
    assert len(set(drawn)) == 2 * len(TABLES)
    assert len({prompt for stream in drawn for prompt in stream}) > 0.98 * 20 * len(drawn)


def test_every_word_is_in_the_vocabulary(tables: Tables) -> None:
    known = set(vocabulary())
    for name, table in tables.items():
        for row in table:
            texts = [text for column, text in row.items() if column != "relation"]
            assert known.issuperset(split_words(" ".join(texts))), (name, row)


def test_an_article_fits_the_next_word(tables: Tables) -> None:
    for row in tables["prompts-test"]:
        words = split_words(f"{row['prompt']} {row['reference']}")
        for word, following in pairwise(words):
            if word.lower() in ("a", "an"):
                assert (word.lower() == "an") == (following[0] in "aeiou")


def test_completions_differ_from_prompt_to_prompt(tables: Tables) -> None:
    references = Counter(row["reference"] for row in tables["prompts-test"])
    assert sum(count for count in references.values() if count > 1) < 0.02 * NUM
    assert sum(len(parse(text).facts()) >= 4 for text in references) > 0.75 * NUM


@pytest.mark.parametrize(("table", "num_rows", "message"), [
    ("prompts", 1, "table must be one of prompts-train, .*, got 'prompts'"),
    ("prompts-dev", -1, "num_rows must be >= 0, got -1"),
])
def test_a_wrong_table_is_refused(table: str, num_rows: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rows(table, seed=0, num_rows=num_rows)


def test_no_rows() -> None:
    assert rows("judged-dev", seed=0, num_rows=0) == []
    assert write(parse_prompt(rows("prompts-dev", seed=0, num_rows=1)[0]["prompt"])[1])
