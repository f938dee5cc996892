"""A time after which a command stops by itself, as SIGTERM would stop it."""

import argparse
import contextlib
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from sparse_plugins.rl.stopping import handled

HELP = (
    "stop after so many minutes at the next checkpoint, or where it has none, at once; --resume goes on, and may stand"
    " beside it"
)


class Stopped(BaseException):  # a run that it goes through has not failed
    """SIGTERM came while nothing was under way that answers it itself."""


def add_budget(parser: argparse.ArgumentParser) -> None:
    """`--budget-minutes`."""
    parser.add_argument("--budget-minutes", type=float, metavar="FLOAT", help=HELP)


def split_budget(arguments: Sequence[str]) -> tuple[float | None, list[str]]:
    """The budget on a command line in minutes, and what else stands on it; explains a bad one and exits with 2.

    Example:
        >>> split_budget(["--seeds=2", "--budget-minutes", "30"])
        (30.0, ['--seeds=2'])
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_budget(parser)
    found, rest = parser.parse_known_args(arguments)
    if found.budget_minutes is not None and not 0 < found.budget_minutes <= threading.TIMEOUT_MAX / 60:
        parser.error(
            f"--budget-minutes must be above 0 and no more than can be waited for, got {found.budget_minutes}."
        )
    return found.budget_minutes, rest


@contextlib.contextmanager
def stopping_after(minutes: float | None) -> Iterator[None]:
    """Stops what runs inside by SIGTERM after a time, and has SIGTERM raise what can be told.

    Args:
        minutes: None for no end but what comes from outside.

    Raises:
        Stopped: In what runs inside, when SIGTERM comes.
    """

    def stop(number: int, frame: Any) -> None:
        raise Stopped

    with handled(signal.SIGTERM, stop):
        if minutes is None:
            yield
            return
        alarm = threading.Timer(60 * minutes, os.kill, (os.getpid(), signal.SIGTERM))
        alarm.daemon = True
        alarm.start()
        try:
            yield
        finally:
            alarm.cancel()
