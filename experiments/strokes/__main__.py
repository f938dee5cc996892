"""`python -m experiments.strokes {build,sheet,speed,central}`: everything about the embedded handwriting."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.harness.settings import SEEDS, add_seeds
from experiments.strokes.build import build
from experiments.strokes.central import central
from experiments.strokes.sheet import save_sheet
from experiments.strokes.speed import speed

ROOT = Path(__file__).parents[2]
COMMANDS: dict[str, Callable[..., str]] = {"build": build, "sheet": save_sheet, "speed": speed, "central": central}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command of a command line, the process's own when None, and prints what it returns."""
    parser = argparse.ArgumentParser(prog="python -m experiments.strokes", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("build", help="write the embedded vector file again; needs `pip install hershey-fonts`")
    add.add_argument("--path", type=Path, default=ROOT / "sparse_plugins" / "fed" / "strokes" / "strokes.npz")
    add = commands.add_parser("sheet", help="draw the contact sheet")
    add.add_argument("--path", type=Path, default=ROOT / "docs" / "strokes.png")
    add = commands.add_parser("speed", help="images per second, against reading the same from FedJAX's SQLite format")
    add.add_argument("--num-writers", type=int, default=30)
    add.add_argument("--rounds", type=int, default=7)
    add = commands.add_parser("central", help="accuracy of FedJAX's convolutional network, trained centrally")
    add.add_argument("--num-writers", type=int, default=300, help="writers to train on (default: 300)")
    add.add_argument("--num-unseen", type=int, default=50, help="other writers to test on (default: 50)")
    add.add_argument("--epochs", type=int, default=3)
    add_seeds(add, default=(0, 1), help=f"{SEEDS} (default: 2)")
    add.add_argument("--difficulty", type=float, default=0.7)
    add.add_argument("--batch-size", type=int, default=64)
    options = vars(parser.parse_args(arguments))
    print(COMMANDS[options.pop("command")](**options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
