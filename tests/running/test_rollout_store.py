"""Stored rollouts: what comes back, and what is refused."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.fakes.rows import explained, prompts, rollouts, scored
from rlaif.batch import SCORED
from rlaif.config.checks import UserError
from rlaif.data.prompts import PromptStream
from rlaif.policy.training_batch import ORDER
from rlaif.running.rollout_store import HEADER, RolloutStore, StoredRollouts

MADE_OF = {"tokenizer": "ab", "temperature": 1.0, "weights": {"esfp": 1.0}}


def batches(first, num_groups=4, size=3):
    """SCORED batches of consecutive groups, the later one first, as they may finish."""
    stream = PromptStream(prompts(16), 0, cursor=first)
    halves = [stream.next(num_groups // 2) for _ in range(2)]
    return [scored(explained(rollouts(half, size, 0))) for half in reversed(halves)]


@pytest.fixture
def folder(tmp_path):
    """Three steps of four groups; of the second one, groups 4 and 6 are to train on."""
    store = RolloutStore(tmp_path, MADE_OF)
    store.rewind(0)
    for step, kept in enumerate([[0, 1, 2, 3], [6, 4], [8, 9, 10, 11]], 1):
        first = 4 * (step - 1)
        store.write(step, batches(first), range(first, first + 4), kept)
    return tmp_path


def test_rows_come_back_bit_for_bit_in_order_and_only_those_of_groups_to_train_on(folder):
    stored = StoredRollouts(folder)
    assert stored.groups == [(1, 0), (1, 1), (1, 2), (1, 3), (2, 4), (2, 6), (3, 8), (3, 9), (3, 10), (3, 11)]
    assert (stored.num_steps, stored.weights) == (3, {"esfp": 1.0})
    for step, groups in ((1, [0, 1, 2, 3]), (2, [4, 6])):
        whole = pa.concat_tables(batches(4 * (step - 1))).sort_by(ORDER)
        expected = whole.filter(pa.array([group in groups for group in whole["group_id"].to_pylist()]))
        found = stored.rows(step, groups)
        assert found.schema.equals(SCORED, check_metadata=True)
        assert found.equals(expected.combine_chunks())


def test_rows_of_other_steps_that_a_batch_holds_are_left_out(tmp_path):
    store = RolloutStore(tmp_path, MADE_OF)
    store.rewind(0)
    store.write(1, batches(0), [0, 1], [0, 1])
    assert pq.read_table(tmp_path / "step-000000001.parquet")["group_id"].unique().to_pylist() == [0, 1]


def test_a_run_that_goes_on_after_a_step_writes_later_ones_anew(folder):
    before = StoredRollouts(folder).digest
    (folder / "step-000000009.parquet.partial").write_bytes(b"cut")
    RolloutStore(folder, MADE_OF).rewind(2)
    assert sorted(path.name for path in folder.iterdir()) == [
        HEADER, *(f"step-{step:09d}.{kind}" for step in (1, 2) for kind in ("json", "parquet"))]
    assert StoredRollouts(folder).digest != before
    RolloutStore(folder, MADE_OF).write(3, batches(8), range(8, 12), range(8, 12))
    assert StoredRollouts(folder).digest == before, "the same rows are the same rollouts"


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def changed(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def other_rows(path):
    """A whole file with a manifest that fits, of another schema."""
    table = pq.read_table(path).drop_columns(["reward"])
    rewritten(path, table)


def infinite(path):
    table = pq.read_table(path)
    rewards = table["reward"].to_pylist()
    rewards[4] = float("inf")
    number = table.schema.get_field_index("reward")
    rewritten(path, table.set_column(number, table.schema.field(number), pa.array(rewards, pa.float32())))


def rewritten(path, table):
    from rlaif.running.rollout_store import _digest

    pq.write_table(table, path)
    changed(path.with_suffix(".json"), blake2b=_digest(path))


STEP = "step-000000002"


def without_group(folder):
    (folder / "step-000000003.json").unlink()
    changed(folder / f"{STEP}.json", kept=[4, 30])


@pytest.mark.parametrize(("damage", "told"), [
    (lambda folder: flipped(folder / f"{STEP}.parquet"), rf"{STEP}.parquet must have blake2b .* got another one; copy"),
    (lambda folder: (folder / f"{STEP}.parquet").unlink(), rf"{STEP}.parquet must have blake2b .* got no file; copy"),
    (lambda folder: (folder / f"{STEP}.json").write_text("{"), rf"{STEP}.json must be a JSON object"),
    (lambda folder: (folder / f"{STEP}.json").unlink(), r"must hold every step from 1 on, got none 2; copy"),
    (lambda folder: (folder / HEADER).unlink(), r"stored.read must be a folder of .* no rollouts.json"),
    (lambda folder: changed(folder / HEADER, format=2), r"rollouts.json must have format 1, got 2: another version"),
    (lambda folder: changed(folder / HEADER, schema="x"), r"rollouts.json must have schema \w+, got 'x': another"),
    (without_group, rf"{STEP}.parquet must hold rows of every group of {STEP}.json, got none of group 30; copy"),
    (lambda folder: changed(folder / f"{STEP}.json", kept=[3, 4]), rf"{STEP}.json must name groups after 3, got 3"),
    (lambda folder: other_rows(folder / f"{STEP}.parquet"), rf"{STEP}.parquet must hold rows of this version's schema, "
                                                            r"got others: batch must have column reward"),
    (lambda folder: infinite(folder / f"{STEP}.parquet"), rf"{STEP}.parquet must hold finite rewards, got inf in the "
                                                          r"row of group 5, sample 1; judge"),
], ids=range(11))
def test_what_is_not_as_it_was_written_is_refused_by_file_rule_and_cure(folder, damage, told):
    damage(folder)
    with pytest.raises(UserError, match=told):
        stored = StoredRollouts(folder)
        groups = [group for step, group in stored.groups if step == 2]
        stored.rows(2, [*groups, 5] if "inf" in told else groups)


def test_a_copy_is_the_same_rollouts(folder, tmp_path_factory):
    copy = tmp_path_factory.mktemp("copy") / "rollouts"
    shutil.copytree(folder, copy)
    assert StoredRollouts(copy).digest == StoredRollouts(folder).digest
