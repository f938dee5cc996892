"""`python -m experiments.versus_dopamine`: trains one agent on both sides, with equal settings, and compares."""

import argparse
import datetime
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.files import create_folder, write_rows, write_whole
from experiments.surroundings import surroundings
from experiments.versus_dopamine.jobs import execute
from experiments.versus_dopamine.outcomes import TASKS, Run, table

PACKAGES = ("dm-haiku", "dopamine-rl", "flax", "gymnasium", "gymnax", "jax", "jaxlib", "minatar", "numpy", "optax")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs both sides.

    Returns:
        Exit status: 0, or 2 if there is nowhere to write.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(arguments)
    command = shlex.join(["python", "-m", "experiments.versus_dopamine", *arguments])
    try:
        folder = create_folder(Path(options.output) / options.name, surroundings(command, vars(options), PACKAGES))
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    runs = execute(options.tasks, options.seeds, options.scale, options.jobs, folder)
    write_rows(folder / "results.csv", Run, runs)
    write_whole(folder / "results.md", report(runs))
    print(f"\n{table(runs)}\n\nIn {folder}: {', '.join(sorted(file.name for file in folder.iterdir()))}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m experiments.versus_dopamine",
        description=__doc__.partition(": ")[2],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="what is learnt")
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="a run per side and seed")
    made.add_argument("--scale", type=float, default=1.0, help="factor on the agent steps of every run")
    made.add_argument("--jobs", type=int, default=2, help="runs of Dopamine side by side, each in a process")
    made.add_argument("--output", default="runs", help="where the folder goes")
    made.add_argument("--name", default=f"versus-dopamine-{datetime.datetime.now():%Y%m%d-%H%M%S}", help="its name")
    return made


def report(runs: Sequence[Run]) -> str:
    """The text of `results.md`."""
    return f"""# DQN by Dopamine and by `rl.FusedTrainer`, with equal settings

{table(runs)}

Return is the mean of the episodes that ended in the last fifth of training, exploration included; intervals are those
of a bootstrap over seeds. Agent steps per cpu-second include learning and leave compiling out; ours are those of all
seeds, which one process computes together. Dopamine plays Gymnasium's CartPole and MinAtar's Breakout, our side those
of gymnax. Dopamine's replay leaves out the transition that ends an episode; "last transitions kept" has it.
"""


if __name__ == "__main__":
    sys.exit(main())
