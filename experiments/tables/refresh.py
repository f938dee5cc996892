"""What is derived from a study's rows, and may be written any number of times: its report and its figures."""

import io
from pathlib import Path

from experiments.record.files import write_whole
from experiments.tables import report
from experiments.tables.stored import check_complete, read_study


def table(folder: Path) -> str:
    """The tables of a study, to print."""
    return report.tables(read_study(folder))


def write(folder: Path) -> None:
    """Writes `results.md` and the figures of a study; rows and settings are only read.

    Without Matplotlib there are no figures, and a line says how to come by them.

    Raises:
        MissingRunsError: a run that the study promises has neither finished nor failed.
    """
    study = read_study(folder)
    check_complete(study)
    try:
        from experiments.tables.figures import figures
    except ModuleNotFoundError as error:
        print(
            f"No figures: {error.name} is not installed here. Where it is, this draws them:"
            f" python -m experiments.tables {folder} --write"
        )
    else:
        for name, figure in figures(study).items():
            figure.savefig(picture := io.BytesIO(), format="png")
            write_whole(folder / name, picture.getvalue())
    write_whole(folder / "results.md", report.report(study))
