import json
from collections import Counter
from itertools import islice

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from rlaif import scenes
from rlaif.batch import JUDGED, check
from rlaif.config.checks import UserError
from rlaif.config.reward import JudgedDataConfig
from rlaif.data.judged_rows import COLUMNS, content_hash, draw, judged_rows, mixture
from rlaif.esfp.slots import Slot, SlotTemplate
from tests.helpers.batch_examples import table

VERDICT = Slot("verdict", [["yes", "sure"], ["maybe"], ["no"]], [1.0, 0.5, 0.0])
RATING = Slot("rating", [["low"], ["mid"], ["high"]], [1.0, 2.0, 4.5], kind="ordinal")
BETTER = Slot("better", [["first"], ["second"]], [1.0, 0.0], kind="pairwise")
TIED = Slot("tied", [["first"], ["same"], ["second"]], [1.0, 0.5, 0.0], kind="pairwise")
JUDGE = SlotTemplate("{completion} {explanation} [verdict] [rating]", [VERDICT, RATING], 64)
PAIR = SlotTemplate("{completion} {other} [better] [tied]", [BETTER, TIED], 64)
SCALAR = SlotTemplate("{completion}", [], 64, head="scalar")

ROWS = {
    "labels": [{"prompt": "p0", "completion": "c0", "label": "sure"}, {"prompt": "p1", "completion": "c1",
                                                                        "label": "no"}],
    "nli": [{"premise": "p0", "hypothesis": "c0", "label": "entailment"},
            {"premise": "p1", "hypothesis": "c1", "label": "contradiction"}],
    "ratings": [{"prompt": "p0", "completion": "c0", "rating": 4.5}, {"prompt": "p1", "completion": "c1",
                                                                       "rating": 2}],
    "pairs": [{"prompt": "p0", "chosen": "c0", "rejected": "o0"}, {"prompt": "p1", "chosen": "c1", "rejected": "o1"}],
    "verdicts": [{"prompt": "p0", "response_a": "c0", "response_b": "o0", "verdict": "b"},
                 {"prompt": "p1", "response_a": "c1", "response_b": "o1", "verdict": "tie"}],
}


@pytest.fixture
def write(tmp_path):
    def written(rows, name="rows.jsonl"):
        path = tmp_path / name
        if path.suffix == ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        elif path.suffix == ".csv":
            pa.csv.write_csv(pa.Table.from_pylist(rows), path)
        else:
            pa.parquet.write_table(pa.Table.from_pylist(rows), path)
        return str(path)
    return written


def read(path, kind, template=JUDGE, with_explanations=False, **changes):
    found = judged_rows(JudgedDataConfig(path, kind=kind, **changes), template, "data.train[0]",
                        with_explanations=with_explanations)
    return check(found, JUDGED).to_pylist()


def refusal(path, kind, template=JUDGE, **changes):
    with pytest.raises(UserError) as caught:
        read(path, kind, template, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- the five layouts


def judged(path, number, **changes):
    plain = {"prompt": f"p{number}", "completion": f"c{number}", "explanations": [], "other": None,
             "other_explanations": [], "labels": [-1, -1], "preference": -1.0, "source": path}
    return plain | changes


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet"])
@pytest.mark.parametrize("kind", ROWS)
def test_every_layout_in_every_kind_of_file_becomes_judged_rows(write, kind, name):
    path = write(ROWS[kind], name)
    want = {
        "labels": [judged(path, 0, labels=[0, -1]), judged(path, 1, labels=[2, -1])],
        "nli": [judged(path, 0, labels=[0, -1]), judged(path, 1, labels=[2, -1])],
        "ratings": [judged(path, 0, labels=[-1, 2]), judged(path, 1, labels=[-1, 1])],
        "pairs": [judged(path, 0, other="o0", preference=1.0),
                  judged(path, 1, completion="o1", other="c1", preference=0.0)],   # every second one is turned round
        "verdicts": [judged(path, 0, other="o0", preference=0.0), judged(path, 1, other="o1", preference=0.5)],
    }
    slot = {"slot": "rating"} if kind == "ratings" else {}
    assert read(path, kind, **slot) == want[kind]


@pytest.mark.parametrize("kind", ROWS)
def test_columns_may_have_other_names(write, kind):
    renamed = [{f"the {name}": value for name, value in row.items()} for row in ROWS[kind]]
    slot = {"slot": "rating"} if kind == "ratings" else {}
    got = read(write(renamed), kind, columns={name: f"the {name}" for name in COLUMNS[kind]}, **slot)
    assert got == read(write(ROWS[kind]), kind, **slot)


def test_the_source_is_the_rows_own_where_there_is_one(write):
    rows = [ROWS["labels"][0] | {"source": "web"}, ROWS["labels"][1] | {"source": None}]
    path = write(rows)
    assert [row["source"] for row in read(path, "labels")] == ["web", path]
    assert [row["source"] for row in read(path, "labels", columns={"source": "completion"})] == ["c0", "c1"]


def test_the_built_in_world_is_a_file_too():
    template = SlotTemplate("{completion} [v]", [Slot("v", [["yes"], ["no"], ["garbled"]], [1.0, 0.0, 0.0])], 64)
    got = read("scenes:judged-dev", "labels", template, num_rows=5, seed=3)
    want = scenes.rows("judged-dev", seed=3, num_rows=5)
    assert [(row["prompt"], row["completion"]) for row in got] == [(row["prompt"], row["completion"]) for row in want]
    assert [row["labels"] for row in got] == [[["yes", "no", "garbled"].index(row["label"])] for row in want]


# --- labels


def test_a_label_is_the_class_that_any_of_its_words_names(write):
    rows = [ROWS["labels"][0] | {"label": word} for word in ("yes", "sure", "maybe", "no")]
    assert [row["labels"][0] for row in read(write(rows), "labels")] == [0, 0, 1, 2]


def test_labels_of_the_file_are_mapped_to_label_words(write):
    rows = [ROWS["labels"][0] | {"label": label} for label in (1, 0, "no", True)]
    got = read(write(rows), "labels", labels={"1": "yes", "0": "no", "true": "maybe"})
    assert [row["labels"][0] for row in got] == [0, 2, 2, 1]


def test_numbers_may_be_label_words(write):
    slot = Slot("stars", [["1"], ["2"]], [1.0, 2.0])
    rows = [ROWS["labels"][0] | {"label": label} for label in (1, 2, "1")]
    got = read(write(rows), "labels", SlotTemplate("{completion} [stars]", [slot], 64))
    assert [row["labels"] for row in got] == [[0], [1], [0]]


def test_labels_of_nli_are_the_three_classes_in_order_unless_they_are_mapped(write):
    rows = [ROWS["nli"][0] | {"label": label} for label in ("entailment", "neutral", "contradiction", "maybe")]
    assert [row["labels"][0] for row in read(write(rows), "nli")] == [0, 1, 2, 1]
    mapped = {"entailment": "no", "neutral": "no", "contradiction": "yes"}
    assert [row["labels"][0] for row in read(write(rows), "nli", labels=mapped)] == [2, 2, 0, 1]
    two = SlotTemplate("{completion} [v]", [Slot("v", [["yes"], ["no"]], [1.0, 0.0])], 64)
    assert refusal(write(rows), "nli", two).startswith("data.train[0] row 0 of ")
    assert read(write(rows[:1]), "nli", two, labels={"entailment": "yes"})[0]["labels"] == [0]


def test_labels_are_of_the_slot_that_is_named_or_the_first(write):
    path = write([ROWS["labels"][0] | {"label": "high"}])
    assert read(path, "labels", slot="rating")[0]["labels"] == [-1, 2]
    assert refusal(path, "labels") == (
        f"data.train[0] row 0 of {path!r} must be labelled by one of yes, sure, maybe, no, got 'high'; map it under "
        "labels")
    assert refusal(path, "labels", slot="colour") == (
        f"data.train[0] row 0 of {path!r} must label one of the slots verdict, rating, got slot 'colour'; rename it")


def test_a_preference_labels_every_pairwise_slot_and_a_tie_only_those_that_know_ties(write):
    rows = [ROWS["verdicts"][0] | {"verdict": verdict} for verdict in ("a", "b", "tie")]
    got = read(write(rows), "verdicts", PAIR)
    assert [row["labels"] for row in got] == [[0, 0], [1, 2], [-1, 1]]
    assert [row["preference"] for row in got] == [1.0, 0.0, 0.5]
    assert [row["labels"] for row in read(write(ROWS["pairs"]), "pairs", PAIR)] == [[0, 0], [1, 2]]
    assert [row["labels"] for row in read(write(rows), "verdicts", SCALAR)] == [[-1]] * 3


def test_verdicts_of_the_file_are_mapped(write):
    rows = [ROWS["verdicts"][0] | {"verdict": verdict} for verdict in ("model_a", 2, "tie")]
    got = read(write(rows), "verdicts", labels={"model_a": "a", "2": "b"})
    assert [row["preference"] for row in got] == [1.0, 0.0, 0.5]


def test_half_of_the_pairs_are_turned_round_and_none_is_lost(write):
    rows = [{"prompt": "p", "chosen": f"good {number}", "rejected": f"bad {number}"} for number in range(100)]
    got = read(write(rows), "pairs")
    assert sum(row["preference"] for row in got) == 50
    for number, row in enumerate(got):
        better, worse = (row["completion"], row["other"])[:: 1 if row["preference"] else -1]
        assert (better, worse) == (f"good {number}", f"bad {number}")


# --- explanations of the file


def test_explanations_of_the_file_are_read_where_they_are_asked_for(write):
    rows = [ROWS["labels"][0] | {"explanation": "because"}, ROWS["labels"][1] | {"explanation": None},
            ROWS["labels"][0] | {"explanation": " "}, ROWS["labels"][0]]
    got = read(write(rows), "labels", with_explanations=True)
    assert [row["explanations"] for row in got] == [["because"], [], [], []]
    assert [row["explanations"] for row in read(write(rows), "labels")] == [[]] * 4
    renamed = [ROWS["labels"][0] | {"why": "so"}]
    got = read(write(renamed), "labels", with_explanations=True, columns={"explanation": "why"})
    assert got[0]["explanations"] == ["so"]


def test_each_side_of_a_pair_keeps_its_own_explanation(write):
    rows = [row | {"explanation": f"of {row['chosen']}", "other_explanation": f"of {row['rejected']}"}
            for row in ROWS["pairs"]]
    for row in read(write(rows), "pairs", with_explanations=True):
        assert row["explanations"] == [f"of {row['completion']}"]
        assert row["other_explanations"] == [f"of {row['other']}"]


def test_explanations_that_are_not_there_or_no_texts_are_refused(write):
    path = write(ROWS["labels"])
    assert refusal(path, "labels", with_explanations=True) == (
        "data.train[0] must have the column 'explanation' with explainer.source = column, got ['completion', 'label', "
        "'prompt']; map it under columns")
    path = write([ROWS["labels"][0] | {"explanation": ["so"]}])
    assert refusal(path, "labels", with_explanations=True) == (
        f"data.train[0] row 0 of {path!r} must have a text as explanation, got ['so']; take the row out")


# --- rows that are kept


def test_rows_are_kept_by_where_then_skipped_then_counted(write):
    rows = [{"prompt": f"p{number}", "completion": "c", "label": "no", "split": "ab"[number % 2], "level": number // 2}
            for number in range(10)]
    path = write(rows)
    kept = lambda **changes: [row["prompt"] for row in read(path, "labels", **changes)]  # noqa: E731
    assert kept(where={"split": "b"}) == ["p1", "p3", "p5", "p7", "p9"]
    assert kept(where={"split": "b"}, skip_rows=1, num_rows=2) == ["p3", "p5"]
    assert kept(where={"split": "b", "level": "3"}) == ["p7"]
    assert kept(skip_rows=8) == ["p8", "p9"]
    assert kept(num_rows=2) == ["p0", "p1"]
    assert kept(num_rows=2, skip_rows=9) == ["p9"]


def test_rows_that_are_left_out_may_be_bad(write):
    path = write([ROWS["labels"][0] | {"label": "what"}, ROWS["labels"][0]])
    assert len(read(path, "labels", skip_rows=1)) == 1


def test_data_of_which_nothing_is_kept_is_refused(write):
    path = write(ROWS["labels"])
    assert refusal(path, "labels", where={"split": "dev"}) == (
        f"data.train[0] must keep rows, got none of 2 in {path!r} after where = {{'split': 'dev'}} and skip_rows = 0; "
        "loosen them")
    assert refusal(path, "labels", skip_rows=2).startswith("data.train[0] must keep rows, got none of 2 in ")


@pytest.mark.parametrize(
    ("kind", "change", "template", "message"),
    [
        ("labels", {"label": "what"}, JUDGE, "{where} must be labelled by one of yes, sure, maybe, no, got 'what'; map "
                                             "it under labels"),
        ("labels", {"label": None}, JUDGE, "{where} must be labelled by one of yes, sure, maybe, no, got None; map"),
        ("labels", {"label": "Yes"}, JUDGE, "{where} must be labelled by one of yes, sure, maybe, no, got 'Yes'; map"),
        ("nli", {"label": "?"}, JUDGE, "{where} must be labelled by one of entailment, neutral, contradiction, yes, "),
        ("labels", {}, PAIR, "{where} must hold pairs for this template, got kind labels; use pairs or verdicts"),
        ("ratings", {}, SCALAR, "{where} must hold pairs for this template, got kind ratings; use pairs or verdicts"),
        ("ratings", {"rating": 3}, JUDGE, "{where} must be rated by a value of slot rating [1.0, 2.0, 4.5], got 3; "
                                          "change the slot's values or the data"),
        ("ratings", {"rating": True}, JUDGE, "{where} must be rated by a value of slot rating [1.0, 2.0, 4.5], got Tr"),
        ("ratings", {"rating": "2"}, JUDGE, "{where} must be rated by a value of slot rating [1.0, 2.0, 4.5], got '2'"),
        ("pairs", {"chosen": "o1"}, JUDGE, "{where} must have two different sides, got 'o1' twice; take the row out"),
        ("verdicts", {"response_b": "c1"}, JUDGE, "{where} must have two different sides, got 'c1' twice"),
        ("verdicts", {"verdict": "both"}, JUDGE, "{where} must have a verdict of a, b, tie, got 'both'; map it under "
                                                 "labels"),
        ("verdicts", {"verdict": None}, JUDGE, "{where} must have a verdict of a, b, tie, got None"),
        ("verdicts", {"verdict": ["a"]}, JUDGE, "{where} must have a verdict of a, b, tie, got ['a']"),
        ("pairs", {"chosen": None}, JUDGE, "data.train[0].path column 'chosen' must hold text, got None in row 1 of "),
        ("labels", {"completion": 3}, JUDGE, "data.train[0].path column 'completion' must hold text, got 3 in row 1 "),
    ],
)
def test_a_bad_row_is_named_with_its_file_and_number(write, kind, change, template, message):
    good = ROWS["verdicts"][0] if kind == "verdicts" else ROWS[kind][0]
    path = write([good, ROWS[kind][1] | change])
    slot = {"slot": "rating"} if kind == "ratings" and template is JUDGE else {}
    where = f"data.train[0] row {1 if change else 0} of {path!r}"
    assert refusal(path, kind, template, **slot).startswith(message.replace("{where}", where))


@pytest.mark.parametrize("kind", ROWS)
def test_a_column_that_is_missing_is_named(write, kind):
    for column in COLUMNS[kind]:
        path = write([{name: value for name, value in row.items() if name != column} for row in ROWS[kind]])
        message = refusal(path, kind, slot="rating" if kind == "ratings" else None)
        assert message.startswith(("data.train[0] must", "data.train[0].path must"))
        assert f" have the column {column!r}, got " in message and f"in row 0 of {path!r}; map it" in message


def test_a_column_that_no_layout_has_cannot_be_mapped(write):
    assert refusal(write(ROWS["labels"]), "labels", columns={"promt": "text"}) == (
        "data.train[0].columns must map prompt, completion, label, source, explanation, other_explanation only, got "
        "'promt'; the name in the file comes behind it")


def test_a_file_that_is_missing_is_named(tmp_path):
    message = refusal(str(tmp_path / "none.jsonl"), "labels")
    assert message.startswith("data.train[0].path must be a file or scenes:<table>, got ")


# --- what is drawn of them


def test_the_hash_follows_every_column_and_the_order_of_the_rows():
    rows = [{"prompt": "p", "labels": [number]} for number in range(3)]
    one = content_hash(table(JUDGED, *rows))
    assert len(one) == 16 and one == content_hash(table(JUDGED, *rows))
    assert one == content_hash(pa.concat_tables([table(JUDGED, *rows[:1]), table(JUDGED, *rows[1:])]))
    assert one != content_hash(table(JUDGED, *rows[::-1])) != content_hash(table(JUDGED, *rows[:2]))
    for change in ({"prompt": "q"}, {"completion": ""}, {"explanations": ["because", "so"]}, {"other": ""},
                   {"other_explanations": ["because"]}, {"labels": [0]}, {"preference": 0.0}, {"source": "web"}):
        assert content_hash(table(JUDGED, *rows[:2], rows[2] | change)) != one, change


def test_in_an_epoch_every_row_is_drawn_as_often_as_its_weight_says():
    sizes, weights = [4, 3, 8], [1.0, 2.0, 0.5]
    drawn = [row for batch in mixture(sizes, weights, 7, 14 * 2, seed=0) for row in batch]
    epoch = 4 + 6 + 4
    for start in range(0, len(drawn), epoch):
        counts = Counter(drawn[start : start + epoch])
        assert all(counts[row] == 1 for row in range(4)) and all(counts[row] == 2 for row in range(4, 7))
        assert sum(counts[row] for row in range(7, 15)) == 4 and max(counts[row] for row in range(7, 15)) == 1
    assert set(drawn) == set(range(15))


def test_a_share_smaller_than_a_row_is_drawn_in_its_turn():
    drawn = [row for batch in mixture([10, 2], [1.0, 0.25], 4, 42, seed=0) for row in batch]
    counts = Counter(drawn)     # 16 epochs of 10.5 rows
    assert counts[10] + counts[11] == 8 and all(counts[row] == 16 for row in range(10))
    assert [len(batch) for batch in mixture([1], [0.25], 2, 3, seed=0)] == [2, 2, 2]


@pytest.mark.parametrize("weights", [[1.0, 1.0], [0.5, 2.25]])
def test_batches_are_full_and_go_on_where_an_earlier_run_stopped(weights):
    made = lambda: mixture([5, 6], weights, 4, 20, seed=7)  # noqa: E731
    whole = list(made())
    assert [len(batch) for batch in whole] == [4] * 20
    for stopped in (0, 1, 7, 19, 20):
        assert list(islice(made(), stopped, None)) == whole[stopped:]
    assert whole != list(mixture([5, 6], weights, 4, 20, seed=8))
    assert whole[:12] == list(mixture([5, 6], weights, 4, 12, seed=7))     # however long the run is
    first, second = (sorted(row for batch in whole for row in batch)[part] for part in (0, -1))
    assert (first, second) == (0, 10)


def several(num_rows=400):
    return table(JUDGED, *({"prompt": f"p{row}", "explanations": ["a", "b", "c"][: row % 4],
                            "other_explanations": ["d", "e"][: row % 3]} for row in range(num_rows)))


def test_of_a_rows_explanations_one_is_drawn_each_equally_often():
    rows = several(4000)
    drawn = draw(rows, range(4000), step=1, seed=0, explanation_dropout=0.0).to_pylist()
    for before, after in zip(rows.to_pylist(), drawn, strict=True):
        for name in ("explanations", "other_explanations"):
            assert len(after[name]) == min(1, len(before[name])) and set(after[name]) <= set(before[name])
    counts = Counter(row["explanations"][0] for number, row in enumerate(drawn) if number % 4 == 3)
    assert all(abs(count - 1000 / 3) < 60 for count in counts.values()) and len(counts) == 3


def test_a_share_of_the_rows_is_shown_without_explanation_on_both_sides_alike():
    rows = table(JUDGED, *[{"explanations": ["a"], "other_explanations": ["b"]}] * 2000)
    drawn = draw(rows, range(2000), step=3, seed=0, explanation_dropout=0.25).to_pylist()
    assert all(len(row["explanations"]) == len(row["other_explanations"]) for row in drawn)
    assert sum(not row["explanations"] for row in drawn) == pytest.approx(500, abs=80)
    none = draw(rows, range(2000), step=3, seed=0, explanation_dropout=1.0)
    assert none["explanations"].to_pylist() == [[]] * 2000


def test_what_is_drawn_follows_seed_and_step_and_nothing_else_changes():
    rows = several()
    chosen = [5, 3, 3, 399, 11] * 20
    made = lambda **changes: draw(rows, chosen, **({"step": 4, "seed": 1, "explanation_dropout": 0.3} | changes))  # noqa: E731
    one = made()
    assert check(one, JUDGED).equals(made())
    assert not one.equals(made(step=5)) and not one.equals(made(seed=2))
    for name in JUDGED.names:
        if "explanations" not in name:
            assert one[name].to_pylist() == rows.take(chosen)[name].to_pylist()


def test_a_mapped_column_that_the_file_lacks_is_refused(write):
    path = write([{"prompt": "p", "completion": "c", "label": "yes"}])
    with pytest.raises(UserError, match=r"columns must name columns of the file, got 'orign' for source; "):
        read(path, "labels", columns={"source": "orign"})


def test_true_and_false_of_a_file_are_written_as_in_yaml(write):
    path = write([{"prompt": "p", "completion": "c", "label": True, "is_kept": True},
                  {"prompt": "q", "completion": "c", "label": False, "is_kept": False}])
    got = read(path, "labels", labels={"true": "yes", "false": "no"}, where={"is_kept": "true"})
    assert [row["prompt"] for row in got] == ["p"]
