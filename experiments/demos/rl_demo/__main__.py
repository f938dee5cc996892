"""`python -m experiments.demos.rl_demo`: solves CartPole dense and sparse, plays some Pong, and reports on both."""

import argparse
import csv
import datetime
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.demos.rl_demo.jobs import execute
from experiments.demos.rl_demo.outcomes import DENSE, Frames, Outcome, Point
from experiments.demos.rl_demo.report import figure, pong_table, report, summary, table
from experiments.harness.surroundings import surroundings
from sparse_plugins import core

PACKAGES = ("ale-py", "dopamine-rl", "flax", "gymnasium", "jax", "jaxlib", "numpy", "optax", "sparse-plugins")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demonstration.

    Args:
        arguments: Command line; None for the process's own.

    Returns:
        Exit status: 0 if every policy is solved, 1 if one is not, 2 if there is nowhere to write.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(arguments)
    folder = Path(options.output) / options.name
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        print(f"error: {folder} exists and is never overwritten; choose another --name.", file=sys.stderr)
        return 2
    command = shlex.join(["python", "-m", "experiments.demos.rl_demo", *arguments])
    (folder / "config.json").write_text(json.dumps(surroundings(command, vars(options), PACKAGES), indent=2) + "\n")
    outcomes, pong = execute(
        options.pruner,
        options.seeds,
        options.max_steps,
        options.gin_bindings,
        options.pong_steps,
        folder,
        options.jobs,
    )
    write(outcomes, pong, folder)
    print(f"\n{table(outcomes)}\n\n{summary(outcomes)}\n\n{pong_table(pong)}")
    print(f"\nIn {folder}: {', '.join(sorted(file.name for file in folder.iterdir()))}")
    return int(not all(outcome.is_solved for outcome in outcomes))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m experiments.demos.rl_demo",
        description=__doc__.partition(": ")[2],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("--seeds", type=int, nargs="+", default=[1], help="one run of each policy per seed")
    sparse = [name for name in core.all_algorithm_names() if name != DENSE]
    made.add_argument("--pruner", default="magnitude", choices=sparse, help="algorithm of the sparse policy")
    made.add_argument("--max-steps", type=int, default=60_000, help="agent steps after which a run gives up")
    made.add_argument("--pong-steps", type=int, default=400, help="agent steps on Pong")
    made.add_argument(
        "--gin-bindings", action="append", default=[], help="further bindings of cartpole_dqn.gin; may be repeated"
    )
    made.add_argument("--jobs", type=int, default=2, help="runs side by side, each in a process")
    made.add_argument("--output", default="runs", help="where the folder of the demonstration goes")
    made.add_argument("--name", default=f"rl-demo-{datetime.datetime.now():%Y%m%d-%H%M%S}", help="name of that folder")
    return made


def write(outcomes: Sequence[Outcome], pong: Frames, folder: Path) -> None:
    """Writes `results.csv`, `results.md` and `return.png`."""
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("pruner", "seed", *Point._fields))
        writer.writerows((outcome.pruner, outcome.seed, *point) for outcome in outcomes for point in outcome.curve)
    (folder / "results.md").write_text(report(outcomes, pong))
    figure(outcomes).savefig(folder / "return.png")


if __name__ == "__main__":
    sys.exit(main())
