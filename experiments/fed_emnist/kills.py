"""`python -m experiments.fed_emnist.kills`: kills a study at random moments and compares what it leaves."""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
# Two runs with checkpoints, masks that move and growth signals, in a few seconds.
STUDY = (
    *("--dataset=digits", "--algorithms", "no_prune", "rigl", "--seed=0", "--clients-per-round=2", "--rounds=24"),
    *("--update-start=2", "--update-every=2", "--evaluate-every=3", "--checkpoint-every=2"),
)
NOT_COMPARED = {"config.json", "results.md", "timing.csv"}  # They tell when, of which commit and how long.


def survive(output: Path, kills: int, seed: int, study: Sequence[str] = STUDY) -> Iterator[str]:
    """Kills a study and goes on with it, until it is done; then compares its files, and begins anew.

    Args:
        output: Folder for the studies.
        kills: How many processes are killed.
        seed: Seed of the moments, which are uniform over the time that the study takes undisturbed.
        study: Flags of the study.

    Yields:
        What happened, a line for each kill and each comparison.

    Raises:
        AssertionError: If files differ from those of the study that was never killed.
        CalledProcessError: If the study fails by itself.
    """
    moments, cache = np.random.default_rng(seed), output / "compiled"
    _to_the_end(_process([*study, f"--output={output}", "--name=whole"], cache))
    started = time.perf_counter()
    _to_the_end(_process([*study, f"--output={output}", "--name=again"], cache))
    duration = time.perf_counter() - started
    _compare(output / "whole", output / "again")
    yield f"undisturbed, with all compiled before: {duration:.1f} s"
    killed, number = output / "killed", 0
    while True:
        resumes = killed.exists()
        begun = [f"--resume={killed}"] if resumes else [*study, f"--output={output}", "--name=killed"]
        process = _process(begun, cache)
        moment = moments.uniform(0, duration) if number < kills else None
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            number += 1
            yield f"kill {number} after {moment:.1f} s, {'resumed' if resumes else 'begun'}: {_standing(killed)}"
            continue
        _to_the_end(process)
        _compare(output / "whole", killed)
        yield f"done, and {len(_files(killed))} files as of the undisturbed study"
        if number == kills:
            return
        shutil.rmtree(killed)


def differences(folder: Path, other: Path) -> list[str]:
    """Files of two studies that are not in both or not the same in every byte."""
    ours, theirs = _files(folder), _files(other)
    return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))


def _compare(folder: Path, other: Path) -> None:
    if differing := differences(folder, other):
        raise AssertionError(f"{other} differs from {folder} in {', '.join(differing)}.")


def _files(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file() and file.name not in NOT_COMPARED)
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def _standing(folder: Path) -> str:
    if not folder.exists():
        return "nothing there yet"
    checkpoints = [int(path.stem) for path in folder.glob("runs/*/*/training/*.npz") if path.stem.isdecimal()]
    ended = len([*folder.glob("runs/*/*/params.npz")])
    return f"{ended} runs with parameters, newest checkpoint of round {max(checkpoints, default=0)}"


def _process(arguments: Sequence[str], cache: Path) -> subprocess.Popen[str]:
    """A study in a process of its own, which need not compile what one before it did."""
    command = [sys.executable, "-m", "experiments.fed_emnist", *arguments]
    caching = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **caching},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _to_the_end(process: subprocess.Popen[str]) -> None:
    _, told = process.communicate()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args, stderr=told)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.fed_emnist.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="how many processes are killed (default: 50)")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the moments at which processes are killed (default: 0)"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as output:
        for line in survive(Path(output), options.kills, options.seed):
            print(line, flush=True)


if __name__ == "__main__":
    main()
