"""A reward function in a process of its own, with a time limit that ends it: no Ray in here.

The process is a plain child that reads columns and sends numbers as JSON. Whatever the function does there (hang, eat
memory, end the process, start others), this side gets an answer or a fault in time, and the next call a new process.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from multiprocessing import Pipe
from typing import Any

from rlaif.config.checks import UserError
from rlaif.config.reward_parts import RewardPartConfig
from rlaif.rewards.functions import Answer, Columns, Lost, Raised

__all__ = ["FunctionProcess"]

CHILD = "actors.judging.function_child"
GRACE_S = 1.0   # from the end of the pipe to the end of the process


class FunctionProcess:
    """The process of one reward part; started by `start` or the first `call`. One call at a time."""

    def __init__(self, part: RewardPartConfig, start_timeout_s: float) -> None:
        self._name, self._timeout_s, self._start_timeout_s = part.name, part.timeout_s, start_timeout_s
        self._task = {"function": part.function, "kind": part.kind, "options": part.options}
        self._child: _Child | None = None

    def start(self) -> str:
        """Returns once the function can be called: 16 hex digits that follow its source, "" for a built-in rule.

        Raises UserError where it cannot be: not importable, wrong arguments, no answer in start_timeout_s.
        """
        self.close()
        child = self._child = _Child()
        try:
            reply = child.exchange(self._task, self._start_timeout_s)
        except TimeoutError as late:
            raise UserError(f"reward part {self._name} must be importable within {self._start_timeout_s:g} s, got "
                            "nothing") from late
        except ChildProcessError as ended:
            raise UserError(f"reward part {self._name} must not end its process when it is imported, got {ended}"
                            ) from ended
        if "refused" in reply:
            self.close()
            raise UserError(f"reward part {self._name}: {reply['refused']}")
        return reply["version"]

    def call(self, columns: Columns) -> Answer:
        """What the function says of N rows. Raises Raised where it raises, Lost where there is no answer that fits."""
        if self._child is None or self._child.is_ended:
            self.start()
        assert self._child is not None
        try:
            reply = self._child.exchange(columns, self._timeout_s)
        except TimeoutError as late:
            raise Lost(f"must answer within timeout_s = {self._timeout_s:g} s, got nothing") from late
        except ChildProcessError as ended:
            raise Lost(f"must not end its process, got {ended}") from ended
        if "raised" in reply:
            raise Raised(f"must not raise, got {reply['raised']}")
        if "lost" in reply:
            raise Lost(reply["lost"])
        num_rows, num_values = len(columns["group_ids"]), len(reply["values"])
        if num_values != num_rows:
            raise Lost(f"must return a number or None for each of {num_rows} rows, got {num_values}")
        return Answer(reply["values"], {int(row): text for row, text in reply["faults"].items()})

    def close(self) -> None:
        """Ends the process, whatever it is doing."""
        if self._child is not None and not self._child.is_ended:
            self._child.end()
        self._child = None


class _Child:
    """A running child and the pipe to it."""

    def __init__(self) -> None:
        self.is_ended = False
        self._pipe, theirs = Pipe()
        their_life, self._life = os.pipe()      # the child reads it: it ends when this process does
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        try:
            # A session of its own: what the function starts is ended with it.
            self._process = subprocess.Popen(
                [sys.executable, "-m", CHILD, str(theirs.fileno()), str(their_life)], stdin=subprocess.DEVNULL,
                stdout=2, env=os.environ | {"PYTHONPATH": path}, pass_fds=(theirs.fileno(), their_life),
                start_new_session=True)
        finally:
            theirs.close()
            os.close(their_life)

    def exchange(self, message: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
        """The child's reply. Where there is none the child is ended: TimeoutError after `limit_s`, ChildProcessError
        that says how it ended by itself."""
        is_late = threading.Event()

        def expire() -> None:
            is_late.set()
            self._kill()

        timer = threading.Timer(limit_s, expire)
        timer.daemon = True
        timer.start()
        reply = None
        # A killed child closes its side; where something it started holds that open, poll ends all the same.
        with contextlib.suppress(EOFError, OSError):
            self._pipe.send_bytes(json.dumps(message).encode())
            if self._pipe.poll(limit_s):
                reply = json.loads(self._pipe.recv_bytes())
            else:
                is_late.set()
        timer.cancel()
        timer.join()
        if is_late.is_set():
            self.end()
            raise TimeoutError
        if reply is None:
            raise ChildProcessError(self.end(GRACE_S))
        return reply

    def end(self, grace_s: float = 0.0) -> str:
        """Ends the child, if it does not end by itself in `grace_s`; says how it ended."""
        assert not self.is_ended
        self.is_ended = True
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(grace_s)
        self._kill()
        code = self._process.wait()
        self._pipe.close()
        os.close(self._life)
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
