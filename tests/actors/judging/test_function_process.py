"""Real child processes: what a user's function may do in one, and that it ends."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from actors.judging.function_process import FunctionProcess
from rlaif.config.checks import UserError
from rlaif.config.reward_parts import RewardPartConfig
from rlaif.rewards.functions import Answer, Lost, Raised, Skips, ask

ROOT = Path(__file__).parents[3]
START_S = 60.0
ROWS = {"prompts": ["p"] * 4, "completions": ["1", "zero", "2", "4"], "references": [None, "r", None, None],
        "sources": ["s"] * 4, "finish_reasons": ["stop"] * 4, "num_tokens": [1, 1, 1, 1], "group_ids": [7, 7, 9, 9],
        "samples": [0, 1, 0, 1]}
MODULE = '''
import os, pathlib, subprocess, sys, time

def lengths(completions, *, unit=1.0):
    print("a function may print")
    return [unit * len(text) for text in completions]

def seen(**columns):
    return [float(columns["prompts"] == ["p"] * 4), columns["num_tokens"][0], None, columns["references"].count(None)]

def strings(completions):
    return completions

def inverses(completions):
    return [1 / float(text) for text in completions]

def hangs(completions, *, note):
    pathlib.Path(note).write_text(str(os.getpid()))
    while True:
        pass

def hangs_once(completions, *, note):
    if not pathlib.Path(note).exists():
        pathlib.Path(note).touch()
        time.sleep(1000)
    return [1.0] * len(completions)

def starts_others(completions, *, note):
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    pathlib.Path(note).write_text(str(other.pid))
    time.sleep(1000)

def ends(completions, *, code=3):
    os._exit(code)

def leaves(completions):
    sys.exit("as a script would")

def crashes(completions):
    os.kill(os.getpid(), 11)

def empties(completions, group_ids, samples):
    found = [float(len(completions.pop(0))) for _ in list(completions)]
    group_ids.clear()
    samples.append(99)
    return found

def grows(completions, group_ids):
    group_ids += [0, 0]
    return [1.0] * len(group_ids)

def remembers(completions, *, seen):
    seen["texts"].extend(completions)
    return [float(len(seen["texts"]))] * len(completions)
'''


@pytest.fixture(scope="module", autouse=True)
def users_module(tmp_path_factory):
    folder = tmp_path_factory.mktemp("users")
    (folder / "users_rewards.py").write_text(MODULE)
    (folder / "ends_at_import.py").write_text("import os\nos._exit(5)\n")
    (folder / "hangs_at_import.py").write_text("while True: pass\n")
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture
def process():
    """Makes processes and ends them."""
    made = []

    def make(function, timeout_s=30.0, start_timeout_s=START_S, kind="function", **options):
        path = None if kind != "function" else function if ":" in function else f"users_rewards:{function}"
        part = RewardPartConfig(kind=kind, name="mine", function=path, options=options, timeout_s=timeout_s)
        made.append(FunctionProcess(part, start_timeout_s))
        return made[-1]

    yield make
    for one in made:
        one.close()


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid, within_s=10.0):
    end = time.monotonic() + within_s
    while is_alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not is_alive(pid)


def test_a_function_answers_whole_batches_in_one_process(process):
    mine = process("lengths", unit=0.5)
    version = mine.start()
    assert len(version) == 16
    assert mine.call(ROWS) == Answer([0.5, 2.0, 0.5, 0.5]) == mine.call(ROWS)


def test_every_column_arrives_as_it_was_sent(process):
    assert process("seen").call(ROWS) == Answer([1.0, 1.0, None, 3.0])


def test_odd_texts_arrive_too(process):
    odd = ["\x00", "\ud800", "a\u2028b", "😀" * 100_000]
    assert process("lengths").call(ROWS | {"completions": odd}) == Answer([1.0, 1.0, 3.0, 100_000.0])


def test_faults_of_rows_come_back_by_row(process):
    answer = process("strings").call(ROWS)
    assert answer.values == [None] * 4
    assert answer.faults[1] == "must return finite numbers or None, got 'zero' (str)"


def test_a_function_may_change_the_lists_that_it_is_given(process):
    assert ask(process("empties").call, ROWS, "mine", Skips(0)) == ([1.0, 4.0, 1.0, 1.0], 0)
    assert ROWS["completions"] == ["1", "zero", "2", "4"]


def test_an_answer_is_counted_against_the_rows_that_were_asked(process):
    with pytest.raises(Lost, match=r"must return a number or None for each of 4 rows, got 6$"):
        process("grows").call(ROWS)


def test_what_a_function_does_to_an_option_is_gone_with_the_call(process):
    mine = process("remembers", seen={"texts": ["of the config"]})
    assert [mine.call(ROWS) for _ in range(2)] == [Answer([5.0] * 4)] * 2


def test_an_answer_of_another_length_than_the_rows_is_refused_here_too(process, monkeypatch):
    mine = process("lengths")
    mine.start()
    monkeypatch.setattr(mine._child, "exchange", lambda *_: {"values": [1.0], "faults": {}})
    with pytest.raises(Lost, match=r"must return a number or None for each of 4 rows, got 1$"):
        mine.call(ROWS)


def test_what_the_function_raises_comes_back_in_one_line_and_it_can_be_called_again(process):
    mine = process("inverses")
    for _ in range(2):
        with pytest.raises(Raised, match=r"must not raise, got ValueError: could not convert string to float: 'zero' "
                                         r"\(users_rewards.py, line 15\)$"):
            mine.call(ROWS)
    with pytest.raises(UserError, match=r"reward part mine must not raise, .* in row 1 \(group_id 7, sample 1\)"):
        ask(mine.call, ROWS, "mine", Skips(0))
    assert ask(mine.call, ROWS, "mine", Skips(1)) == ([1.0, None, 0.5, 0.25], 1)


def test_a_function_that_hangs_is_ended_in_time(process, tmp_path):
    mine = process("hangs", timeout_s=0.5, note=str(tmp_path / "pid"))
    mine.start()
    began = time.monotonic()
    with pytest.raises(Lost, match=r"must answer within timeout_s = 0.5 s, got nothing"):
        mine.call(ROWS)
    assert 0.5 <= time.monotonic() - began < 5
    assert gone(int((tmp_path / "pid").read_text()))


def test_after_a_hang_the_next_call_has_a_process_of_its_own(process, tmp_path):
    mine = process("hangs_once", timeout_s=1.0, note=str(tmp_path / "note"))
    skips = Skips(4)
    assert ask(mine.call, ROWS, "mine", skips) == ([None] * 4, 4)
    assert ask(mine.call, ROWS, "mine", skips) == ([1.0] * 4, 0)


def test_what_a_function_started_is_ended_with_it(process, tmp_path):
    mine = process("starts_others", timeout_s=1.0, note=str(tmp_path / "pid"))
    mine.start()
    with pytest.raises(Lost):
        mine.call(ROWS)
    assert gone(int((tmp_path / "pid").read_text()))


def test_a_pattern_that_never_ends_is_ended_in_time(process):
    mine = process(None, timeout_s=0.5, kind="regex", pattern="(a+)+$")
    mine.start()
    assert mine.call(ROWS) == Answer([0.0] * 4)
    with pytest.raises(Lost, match="got nothing"):
        mine.call(ROWS | {"completions": ["a" * 60 + "!"] * 4})
    assert mine.call(ROWS | {"completions": ["aa"] * 4}) == Answer([1.0] * 4)


@pytest.mark.parametrize(
    ("function", "how"), [("ends", "exit code 3"), ("crashes", "signal SIGSEGV")])
def test_a_function_that_ends_its_process_is_named_with_how_it_ended(process, function, how):
    mine = process(function)
    for _ in range(2):
        with pytest.raises(Lost, match=f"must not end its process, got {how}$"):
            mine.call(ROWS)


def test_leaving_is_raising(process):
    with pytest.raises(Raised, match="must not raise, got SystemExit: as a script would"):
        process("leaves").call(ROWS)


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        ("absent_module:f", {}, "reward part mine: function must be importable, got 'absent_module:f': ModuleNotFound"),
        ("absent", {}, "reward part mine: function must be importable, got 'users_rewards:absent': AttributeError"),
        ("lengths", {"units": 2}, "reward part mine: options must be arguments of the function other than columns"),
        ("ends_at_import:f", {}, "reward part mine must not end its process when it is imported, got exit code 5"),
    ],
)
def test_a_function_that_cannot_be_called_is_refused_at_the_start(process, function, options, message):
    with pytest.raises(UserError, match=message):
        process(function, **options).start()


def test_a_module_that_hangs_is_refused_in_time(process):
    with pytest.raises(UserError, match=r"reward part mine must be importable within 1 s, got nothing"):
        process("hangs_at_import:f", start_timeout_s=1.0).start()


def test_the_process_ends_with_its_parent_even_in_a_hanging_call(users_module, tmp_path):
    note = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", f"""
import sys
sys.path[:0] = [{str(users_module)!r}]
from actors.judging.function_process import FunctionProcess
from rlaif.config.reward_parts import RewardPartConfig
part = RewardPartConfig(kind="function", name="mine", function="users_rewards:hangs", options={{"note": {str(note)!r}}})
FunctionProcess(part, 60.0).call({{"completions": ["a"], "group_ids": [1], "samples": [0]}})
"""], cwd=ROOT, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    end = time.monotonic() + 60
    while not (note.exists() and note.read_text()) and time.monotonic() < end:
        time.sleep(0.02)
    child = int(note.read_text())
    assert is_alive(child)
    parent.kill()
    parent.wait()
    assert gone(child)
