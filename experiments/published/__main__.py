"""`python -m experiments.published`: rows of papers that need an accelerator, each a command with a budget.

    python -m experiments.published                                 # what there is, what it takes, what is missing here
    python -m experiments.published correct costs --budget-minutes 25
    python -m experiments.published mspacman --budget-minutes 9     # and again, until it is finished

What a budget stops goes on with the same command: studies have their folder in `--output`, named after the row, and go
on from their last checkpoint. Where nothing can be installed, carry the missing wheels unpacked (see
`experiments/atari/__main__.py`); Matplotlib may be missing:
`python -m experiments.tables FOLDER --write` draws elsewhere.
"""

import argparse
import importlib.util
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax

from experiments.harness.loop import INTERRUPTED, STOPPED
from experiments.published.rows import ROWS, Row
from experiments.registry import STUDIES

GRACE_SECONDS = 300  # for the stretch under way and its checkpoint


def main(arguments: Sequence[str] | None = None) -> int:
    """Lists rows, or runs some.

    Args:
        arguments: Command line; None for the process's own.

    Returns:
        Exit status: 0 if all is finished, 143 if the budget was spent before, else that of the command that failed.
    """
    parser = argparse.ArgumentParser(
        prog="python -m experiments.published",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of: {', '.join(ROWS)}; none for a list")
    parser.add_argument("--budget-minutes", type=float, default=60.0, help="for all of them together")
    parser.add_argument("--output", type=Path, default=Path("runs"), help="folder of the studies' folders")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.rows if name not in ROWS]:
        parser.error(f"there is no row {', '.join(unknown)}; there are {', '.join(ROWS)}.")
    if not options.rows:
        print("\n\n".join(described(name, options.output) for name in ROWS))
        return 0
    if missing := {name: absent for name in options.rows if (absent := missing_packages(ROWS[name]))}:
        told = [f"{', '.join(absent)} for {name}" for name, absent in missing.items()]
        parser.error(f"not installed here: {'; '.join(told)}.")
    end = time.monotonic() + 60 * options.budget_minutes
    print(f"On {jax.devices()[0].device_kind}, {len(jax.devices())} of them.", flush=True)
    for name in options.rows:
        for command in commands(name, options.output):
            if (status := run(command, end - time.monotonic())) != 0:
                return status
    return 0


def missing_packages(row: Row) -> list[str]:
    """Modules that a row needs and that are not here."""
    return [name for name in row.needs if importlib.util.find_spec(name) is None]


def commands(name: str, output: Path) -> list[list[str]]:
    """What is run for a row, behind `python -m`; a study that was begun goes on.

    Args:
        name: Name of the row.
        output: Folder of the studies' folders.
    """
    found = []
    for module, *flags in ROWS[name].commands:
        is_study = module.removeprefix("experiments.") in STUDIES and "--measure" not in flags
        if is_study and (folder := output / f"published-{name}").exists():
            flags = [f"--resume={folder}"]
        elif is_study:
            flags += [f"--output={output}", f"--name=published-{name}"]
        found.append([module, *flags])
    return found


def run(command: Sequence[str], seconds: float) -> int:
    """Runs a module in a process of its own, and stops it by SIGTERM if the time is over.

    Args:
        command: What stands behind `python -m`.
        seconds: Seconds that it may take.

    Returns:
        Its exit status; 143 if it was stopped, 130 after Ctrl-C.
    """
    if seconds <= 0:
        print(f"The budget is spent before: python -m {shlex.join(command)}", flush=True)
        return STOPPED
    print(f"\npython -m {shlex.join(command)}", flush=True)
    process = subprocess.Popen([sys.executable, "-m", *command])
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.terminate()
        _wait_for_its_end(process)
        return STOPPED
    except KeyboardInterrupt:  # the process has it from the terminal, too, and ends at its next checkpoint
        _wait_for_its_end(process)
        return INTERRUPTED
    except BaseException:
        process.kill()
        raise


def _wait_for_its_end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


def described(name: str, output: Path) -> str:
    """A row as text: what it answers, what is typed, what it is expected to take, and what is missing."""
    row = ROWS[name]
    typed = [f"    python -m {shlex.join(command)}" for command in commands(name, output)]
    missing = ", ".join(missing_packages(row)) or "nothing"
    return "\n".join([f"{name}: {row.about}", *typed, f"  expected: {row.expected}", f"  missing here: {missing}"])


if __name__ == "__main__":
    sys.exit(main())
