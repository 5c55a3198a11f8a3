"""The other side of function_process: finds one reward function, calls it with each batch, sends its answer.

    python -m actors.judging.function_child <file descriptor of the pipe> <file descriptor that ends with the parent>
"""

from __future__ import annotations

import copy
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any

from rlaif.rewards.functions import (
    Answer,
    Columns,
    Lost,
    described,
    find_function,
    read_answer,
    source_version,
    wanted_columns,
)


def main(pipe: Connection, life: int) -> None:
    """Answers requests until the pipe is closed."""
    threading.Thread(target=_end_with_parent, args=(life,), daemon=True).start()
    task = _receive(pipe)
    if task is None:
        return
    try:
        call, version = _prepare(**task)
    except Exception as error:      # of the user's module, of a pattern, of a schema
        said = str(error).splitlines()[0] if isinstance(error, ValueError) and str(error) else described(error)
        return _send(pipe, {"refused": said})
    _send(pipe, {"version": version})
    while (columns := _receive(pipe)) is not None:
        _send(pipe, _answer(call, columns))


def _prepare(function: str | None, kind: str, options: dict[str, Any]) -> tuple[Callable[[Columns], Any], str]:
    if function is None:
        from rlaif.rewards.rules import make_rule  # a user's function does without what rules import

        rule = make_rule(kind, options)
        return (lambda columns: rule(columns)[0]), ""
    found = find_function(function)
    names = wanted_columns(found, options)

    def call(columns: Columns) -> Any:
        # Copies of its own: what it does to a list must show in no other call. Columns are read anew for each.
        return found(**{name: columns[name] for name in names}, **copy.deepcopy(options))

    return call, source_version(found)


def _answer(call: Callable[[Columns], Any], columns: Columns) -> dict[str, Any]:
    num_rows = len(columns["group_ids"])    # before the call, which may change the lists
    try:
        answer: Answer = read_answer(call(columns), num_rows)
    except Lost as fault:
        return {"lost": str(fault)}
    except (Exception, SystemExit) as error:
        return {"raised": described(error)}
    return asdict(answer)


def _receive(pipe: Connection) -> Any:
    try:
        return json.loads(pipe.recv_bytes())
    except EOFError:
        return None


def _send(pipe: Connection, message: dict[str, Any]) -> None:
    pipe.send_bytes(json.dumps(message).encode())


def _end_with_parent(life: int) -> None:
    """Ends this process, and what the function may have started, when the parent is gone; even in a hanging call."""
    os.read(life, 1)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    descriptors = [int(argument) for argument in sys.argv[1:3]]
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)       # not for what the function may start
    main(Connection(descriptors[0]), descriptors[1])
