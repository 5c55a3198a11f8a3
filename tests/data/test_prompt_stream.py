import json
from collections import Counter

import numpy as np
import pytest

from rlaif.batch import PROMPT, check
from rlaif.config.checks import UserError
from rlaif.config.prompts import CurriculumConfig
from rlaif.data.prompt_stream import PromptStream, in_order

BOUNDS = CurriculumConfig(prefer="bounds", outside=0.0, decay=0.0)


def rows(num_rows=5):
    return [{"prompt": f"p{n}", "prompt_ids": [n], "reference": None, "source": "here", "sample_weight": 1.0}
            for n in range(num_rows)]


def stream(num_rows=5, seed=0, cursor=0, **options):
    return PromptStream(rows(num_rows), seed, cursor, **options)


def test_every_row_comes_once_an_epoch_also_across_batches():
    prompts = stream()
    taken = [row for size in (3, 3, 4) for row in prompts.next(size).to_pylist()]
    for epoch in (0, 1):
        found = [row for row in taken if row["epoch"] == epoch]
        assert sorted(row["prompt_id"] for row in found) == [0, 1, 2, 3, 4]
        assert all(row["prompt"] == f"p{row['prompt_id']}" for row in found)
    assert [row["group_id"] for row in taken] == list(range(10))


def order(seed, epoch, num_rows=20):
    prompts = stream(num_rows, seed, cursor=epoch * num_rows)
    return prompts.next(num_rows)["prompt_id"].to_pylist()


def test_the_order_follows_seed_and_epoch():
    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_how_the_prompts_are_asked_for_does_not_change_them():
    whole = stream(7).next(30)
    prompts = stream(7)
    parts = [row for size in (1, 9, 2, 18) for row in prompts.next(size).to_pylist()]
    assert parts == whole.to_pylist()


def test_a_stream_that_is_cut_goes_on_at_its_cursor_as_if_it_were_not():
    whole = stream().next(13).to_pylist()
    first = stream()
    head = first.next(6).to_pylist()
    assert first.cursor == 6
    assert head + stream(cursor=6).next(7).to_pylist() == whole


def test_sets_come_as_often_as_their_weights_say():
    prompts = stream(10, sizes=[4, 6], weights=[2.0, 0.5])
    counts = Counter(prompts.next(22)["prompt_id"].to_pylist())
    assert counts == {**dict.fromkeys(range(4), 4), **dict.fromkeys(range(4, 10), 1)}
    assert prompts.figures() == {"epoch": 2}


def test_groups_can_be_had_again_in_any_order_without_moving_the_cursor():
    prompts = stream(7, sizes=[3, 4], weights=[1.5, 1.0])
    whole = prompts.next(40).to_pylist()
    assert prompts.at([31, 2, 9]).to_pylist() == [whole[31], whole[2], whole[9]]
    assert prompts.cursor == 40 and prompts.next(1).to_pylist() == stream(
        7, sizes=[3, 4], weights=[1.5, 1.0], cursor=40).next(1).to_pylist()


def reward(prompt_id):
    """Prompts 0, 1, 2 are hopeless, 3 and 4 are solved, the others lie between."""
    return [0.0, 0.0, 0.0, 1.0, 1.0][prompt_id] if prompt_id < 5 else 0.5


def walk(prompts, num_steps, size=4):
    """Steps of a run: prompts out, rewards in, two rollouts a group in an order of their own."""
    taken = []
    for _ in range(num_steps):
        batch = prompts.next(size).to_pylist()
        taken += batch
        told = [(row["group_id"], reward(row["prompt_id"]) + shift) for shift in (-0.01, 0.01) for row in batch]
        told = [told[place] for place in np.random.default_rng(batch[0]["group_id"]).permutation(len(told))]
        prompts.observe(*map(list, zip(*told, strict=True)))
    return taken


def test_a_curriculum_tries_every_prompt_and_then_leaves_out_the_hard_and_the_easy():
    prompts = stream(12, curriculum=BOUNDS)
    taken = walk(prompts, 10)
    first = [row["prompt_id"] for row in taken if row["epoch"] == 0]
    assert sorted(first) == list(range(12))
    later = [Counter(row["prompt_id"] for row in taken if row["epoch"] == epoch) for epoch in (1, 2, 3)]
    assert later == [Counter(range(5, 12))] * 3
    figures = prompts.figures()
    skipped = 5 * 4         # in epochs 1 to 3 and, up to the fortieth prompt, 4
    assert {name: figures[name] for name in figures if name != "prompts_skipped"} == {
        "epoch": 4, "prompts_tried": 12, "prompts_hard": 3, "prompts_easy": 2}
    assert 15 <= figures["prompts_skipped"] <= skipped
    assert prompts.cursor == 40 + figures["prompts_skipped"]


def test_prompts_outside_the_bounds_are_taken_in_the_share_that_is_asked_for():
    prompts = stream(400, curriculum=CurriculumConfig(prefer="bounds", outside=0.25))
    prompts.observe(range(400), [0.0] * 400)
    prompts.cursor = 400
    prompts.next(1000)
    share = 1000 / (1000 + prompts.figures()["prompts_skipped"])
    assert share == pytest.approx(0.25, abs=0.04)       # three deviations of 4000 draws are 0.02


def test_where_nothing_is_left_to_prefer_the_run_goes_on():
    prompts = stream(3, curriculum=BOUNDS)
    prompts.observe(prompts.next(3)["group_id"].to_pylist(), [0.0, 0.0, 0.0])
    assert prompts.next(2)["group_id"].to_pylist() == [6, 10]
    assert prompts.figures()["prompts_skipped"] == 6


def test_the_order_of_rollouts_does_not_change_what_is_learnt_of_a_prompt():
    values = [0.1, 0.2, 0.3, 1e16, -1e16, 0.7]
    states = []
    for turn in (values, values[::-1], sorted(values)):
        prompts = stream(curriculum=BOUNDS)
        prompts.observe([3] * 6, turn)
        states.append(prompts.state())
    assert states[0] == states[1] == states[2]


@pytest.mark.parametrize("curriculum", [None, CurriculumConfig(prefer="middle", outside=0.3)])
@pytest.mark.parametrize("cut", [1, 3, 8])
def test_a_restored_stream_goes_on_as_the_unbroken_one(curriculum, cut):
    options = {"sizes": [9, 3], "weights": [1.0, 1.5], "curriculum": curriculum}
    whole = stream(12, **options)
    expected = walk(whole, 12)
    first = stream(12, **options)
    head = walk(first, cut)
    state = json.loads(json.dumps(first.state()))
    second = stream(12, **options)
    second.next(5)
    second.restore(state)
    tail = walk(second, 12 - cut)
    assert head + tail == expected
    assert second.state() == whole.state() and second.figures() == whole.figures()


def test_a_state_of_other_prompts_or_of_another_seed_is_refused():
    state = stream().state()
    with pytest.raises(UserError, match=r"^prompts must be those of the run that is resumed \(\w{16}\), got others "):
        stream(6).restore(state)
    with pytest.raises(UserError, match=r"^prompts must be those"):
        stream(weights=[2.0]).restore(state)
    with pytest.raises(UserError, match=r"^seed must be 0 as in the run that is resumed, got 1$"):
        stream(seed=1).restore(state)


def test_evaluation_takes_the_rows_in_file_order():
    table = check(in_order(rows()), PROMPT)
    assert table["prompt"].to_pylist() == ["p0", "p1", "p2", "p3", "p4"]
    assert table["group_id"].to_pylist() == table["prompt_id"].to_pylist() == [0, 1, 2, 3, 4]
