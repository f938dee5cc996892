"""What is derived from a study's rows, and may be written any number of times: its report and its figures."""

import io
from pathlib import Path

from experiments.harness.files import write_whole
from experiments.harness.tables import report
from experiments.harness.tables.stored import Stored, check_complete


def write(study: Stored) -> None:
    """Writes `results.md` and the figures of a study; rows and settings are only read.

    Raises:
        MissingRunsError: a run that the study promises has neither finished nor failed.
    """
    check_complete(study)
    (folder,) = study.folders
    _write(study, folder, f"{folder} --write")


def write_joint(study: Stored, folder: Path) -> None:
    """Writes `results.md` and the figures of several studies that are read as one.

    Args:
        study: As `stored.joined` gives it.
        folder: Made if it is not there; a study of its own has no place in it.

    Raises:
        FileExistsError: it holds a study, whose report would be lost.
    """
    if (folder / "config.json").exists():
        raise FileExistsError(
            f"{folder} holds a study of its own, and its results.md would be lost: name another folder after --into."
        )
    folder.mkdir(parents=True, exist_ok=True)
    _write(study, folder, f"{' '.join(map(str, study.folders))} --into {folder}")


def _write(study: Stored, folder: Path, arguments: str) -> None:
    """Without Matplotlib there are no figures, and a line says how to come by them."""
    try:
        from matplotlib import rc_context

        from experiments.harness.tables.colours_and_labels import LOOK
        from experiments.harness.tables.figures import figures
    except ModuleNotFoundError as error:
        print(
            f"No figures: {error.name} is not installed here. Where it is, this draws them:"
            f" python -m experiments.tables {arguments}"
        )
    else:
        with rc_context(LOOK):
            for name, figure in figures(study).items():
                figure.savefig(picture := io.BytesIO(), format="png")
                write_whole(folder / name, picture.getvalue())
    write_whole(folder / "results.md", report.report(study))
