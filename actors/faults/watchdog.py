"""Who looks at the board: tells what a run waits for, and ends the run rather than let it hang.

    await Watchdog(fleet.board, config.faults, config.output_dir, report.say, lambda: fleet.handles).over(train(...))
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

from actors.faults.restarts import answered
from rlaif.config.checks import UserError
from rlaif.config.faults import FaultsConfig
from rlaif.pipeline.board import Board
from rlaif.pipeline.health import Event

Result = TypeVar("Result")
LOOK_S = 5.0        # seconds between looks at the board, at most
END_S = 120.0       # in which the process ends once it is to


class Stuck(UserError):
    """The run makes no progress any more; the stacks of its processes are in output_dir."""


class Backstop:
    """Ends this process, its stacks written into `path`, unless it is put off in time: by a thread of faulthandler's,
    which runs when nothing of Python does any more."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, None

    def put_off(self, seconds: float) -> None:
        self._file = self._file or self._path.open("w", encoding="utf-8")
        faulthandler.dump_traceback_later(seconds, exit=True, file=self._file)

    def lift(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        if self._file is not None:
            self._file.close()
            self._path.unlink(missing_ok=True)


class Watchdog:
    """Looks at `board` while work is done. Where even that stands still, `backstop` ends the process.

    actors: names and handles of everybody whose stacks are to be told; asked for when they are. sleep: what waits
    between looks.
    """

    def __init__(self, board: Board, faults: FaultsConfig, output_dir: str, say: Callable[[str], None],
                 actors: Callable[[], Mapping[str, Any]] = dict, *,
                 sleep: Callable[[float], Awaitable[None]] = asyncio.sleep, backstop: Backstop | None = None) -> None:
        self._board, self._faults, self._folder = board, faults, Path(output_dir)
        self._say, self._actors, self._sleep = say, actors, sleep
        self._backstop = backstop or Backstop(self._folder / "stacks-driver.txt")

    async def over(self, work: Coroutine[Any, Any, Result]) -> Result:
        """What `work` gives. Raises Stuck, after it was cancelled, where for faults.stuck_s it makes no progress, or
        has nothing under way."""
        working, looking = asyncio.ensure_future(work), asyncio.ensure_future(self._look())
        try:
            await asyncio.wait({working, looking}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            raise looking.exception() or AssertionError("the watchdog must not end by itself")
        finally:
            if looking.done():
                self._backstop.put_off(END_S)       # whatever hangs, the process ends
            else:
                self._backstop.lift()
            for task in (working, looking):
                task.cancel()
            with contextlib.suppress(TimeoutError):     # what hangs may not let itself be cancelled
                await asyncio.wait_for(asyncio.gather(working, looking, return_exceptions=True), LOOK_S)

    async def _look(self) -> None:
        faults = self._faults
        self._board.watched()
        while True:
            self._backstop.put_off(faults.stuck_s + END_S)
            await self._sleep(min(LOOK_S, faults.warn_s / 4))
            for line in self._board.warnings(faults.warn_s):
                self._say(line)
            line = self._board.stuck(faults.stuck_s)
            if line is not None:
                path = await self.write_stacks(line)
                raise Stuck(f"the run must make progress within faults.stuck_s = {faults.stuck_s:g} s, got none: "
                            f"{line}; stacks are in {path}; raise faults.stuck_s for work that takes longer")

    async def write_stacks(self, why: str) -> Path:
        """Writes where this process and every actor is into a file of output_dir, and what it was waiting for."""
        path = self._folder / f"stacks-{time.strftime('%Y%m%d-%H%M%S')}.txt"
        actors = dict(self._actors())
        found = await asyncio.gather(*(answered(actor, self._faults.ping_s, True) for actor in actors.values()))
        with path.open("w", encoding="utf-8") as file:
            file.write(f"{why}\n\nunder way:\n" + "".join(
                f"  {entry.stage}: {entry.who} waits for {entry.what}\n" for entry in self._board.entries))
            silent = [name for name, answer in zip(actors, found, strict=True) if isinstance(answer, Event)]
            file.write(f"\ndo not answer: {', '.join(silent) or 'none'}\n\ndriver\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
            for task in asyncio.all_tasks():
                file.write(f"\ntask {task.get_name()}\n")
                file.flush()
                task.print_stack(file=file)
            for name, answer in zip(actors, found, strict=True):
                if not isinstance(answer, Event):
                    file.write(f"\n{name}\n{answer.stacks}")
        return path
