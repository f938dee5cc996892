"""`python -m experiments.tables`: stored studies as Markdown tables with the papers' numbers, and as pictures."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.harness.tables import refresh
from experiments.harness.tables.report import report
from experiments.harness.tables.stored import Stored, check_complete, joined, read_study
from experiments.registry import LAYOUTS


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the tables of the study folders of a command line, the process's own when None.

    Returns:
        Exit status: 0, or 1 if a folder can't be read or misses seeds that it promises.
    """
    options = parser().parse_args(arguments)
    try:
        studies = [read_study(folder, LAYOUTS) for folder in options.folders]
        for study in studies:
            check_complete(study)
        together = joined(studies)
        if options.into:
            refresh.write_joint(joined_study(together), options.into)
        for study in studies if options.write else ():
            refresh.write(study)
        print("\n".join(report(study) for study in together), end="")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def joined_study(together: Sequence[Stored]) -> Stored:
    """The study that all folders make together.

    Raises:
        ValueError: they make several.
    """
    if len(together) > 1:
        groups = "; ".join(" ".join(map(str, study.folders)) for study in together)
        raise ValueError(
            "--into takes folders that make one table, which differ in nothing but seeds, games, algorithms and"
            f" sparsities and share no run; these make {len(together)}: {groups}."
        )
    return together[0]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m experiments.tables",
        description="Prints a table for each study: mean ± sample standard deviation, number of seeds, commit, and the"
        " paper's number where there is one. Studies of one kind that differ in nothing but seeds, games, algorithms"
        " and sparsities share a table. Failed seeds are shown; a study of which seeds are missing gets no table.",
        allow_abbrev=False,
    )
    made.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="folder of a finished study")
    made.add_argument(
        "--write", action="store_true", help="also write results.md and the pictures in each folder again"
    )
    made.add_argument(
        "--into",
        type=Path,
        metavar="FOLDER",
        help="also store all as one study, with rows, table and pictures, in a folder",
    )
    return made


if __name__ == "__main__":
    sys.exit(main())
