"""The command line that all launchers share: `<launcher>.py config.yaml [config.yaml ...] [key=value ...]`."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import TypeVar

from huggingface_hub.utils import logging as hub_logging
from transformers.utils import logging as transformers_logging

from rlaif.config.checks import UserError
from rlaif.config.files import load
from rlaif.running.disk import disk_line
from rlaif.running.run_folder import refuse_other_run

Config = TypeVar("Config")


def main(kind: type[Config], description: str, body: Callable[[Config], None],
         plan: Callable[[Config, str, str | None], None] | None = None) -> int:
    """Loads the configuration named on the command line and runs `body`; returns the exit code.

    plan: called in its place with --plan, with the configuration, what it is called and the file of a described cluster
    or None; a launcher without one has no --plan.

    2 with one line on standard error for a mistake of the user's and for a disk that is full or read-only, 0 otherwise.
    A mistake is a UserError, or any ValueError of the checks; what raises inside `working` is a bug and keeps its
    traceback.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("config", help="a YAML file, see configs/")
    parser.add_argument("more", nargs="*", metavar="config|key=value",
                        help="further YAML files, merged in their order, and single values over them, such as seed=1")
    parser.add_argument("--check", action="store_true", help="check configuration and output_dir, then stop")
    if plan is not None:
        parser.add_argument("--plan", nargs="?", const="", metavar="cluster.yaml",
                            help="print what each role would take of this machine or of the running Ray cluster, or of "
                                 "one that a file describes, then stop; exit code 2 if it does not fit")
    arguments = parser.parse_intermixed_args()
    asked = getattr(arguments, "plan", None)
    if asked and not _is_file(asked):       # an override that came after --plan
        arguments.more, asked = [*arguments.more, asked], ""
    _quiet_libraries()
    try:
        files = [arguments.config, *filter(_is_file, arguments.more)]
        config = load(kind, files, [text for text in arguments.more if not _is_file(text)])
        if plan is not None and asked is not None:
            plan(config, " ".join(files), asked or None)
        elif arguments.check:
            refuse_other_run(config.output_dir, config)
        else:
            body(config)
    except ValueError as error:
        # Raised in an actor, it arrives with the actor's traceback around it; Ray's log files keep that.
        error = getattr(error, "cause", None) or error
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except Exception as error:
        line = disk_line(error)
        if line is None:
            raise
        print("error:", line, file=sys.stderr)
        return 2
    return 0


def _is_file(argument: str) -> bool:
    return "=" not in argument and argument.endswith((".yaml", ".yml"))


@contextlib.contextmanager
def working() -> Iterator[None]:
    """The part of a run behind its checks: a ValueError in here that is no UserError is a bug of ours."""
    try:
        yield
    except ValueError as error:
        if isinstance(error, UserError) or isinstance(getattr(error, "cause", None), UserError):
            raise
        raise RuntimeError("the run broke off in the code above; this is a bug, please report it") from error


def _quiet_libraries() -> None:
    """Other libraries' warnings go to Ray's logs or nowhere: the console shows the run."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    warnings.filterwarnings("ignore")
    # These two have read the environment already: they were imported by now.
    transformers_logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
