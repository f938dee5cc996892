"""What is derived from a study's rows, and may be written any number of times: its report and its figures."""

import io
import json
from pathlib import Path

from experiments.harness.csv_files import csv_text, joined_files
from experiments.harness.files import read_record, write_whole
from experiments.harness.tables import report
from experiments.harness.tables.stored import PARTS, Stored, check_complete, joint_record, read_study


def write(study: Stored) -> None:
    """Writes `results.md` and the figures of a study; rows and settings are only read.

    Raises:
        MissingRunsError: a run that the study promises has neither finished nor failed.
    """
    check_complete(study)
    (folder,) = study.folders
    _write(study, folder, f"{folder} --write")


def write_joint(study: Stored, folder: Path) -> None:
    """Stores several studies that are read as one as a study: rows, the record of each, `results.md` and the figures.

    Args:
        study: As `stored.joined` gives it.
        folder: Made if it is not there. It may hold one of the studies, or what was joined of them before.

    Raises:
        FileExistsError: it holds a study whose rows would be lost.
    """
    arguments = f"{' '.join(map(str, study.folders))} --into {folder}"
    is_a_part = folder.resolve() in [part.resolve() for part in study.folders]
    if (folder / "config.json").exists() and not is_a_part:
        before = read_study(folder, study.layouts)
        if PARTS not in read_record(folder) or not before.origins.keys() <= study.origins.keys():
            raise FileExistsError(
                f"{folder} holds a study of its own, whose rows would be lost: name it among those that are joined, or"
                " another folder after --into."
            )
    record = joint_record(study, f"python -m experiments.tables {arguments}")
    files = joined_files(study.folders) | {"results.csv": csv_text(list(study.layout.columns), map(vars, study.rows))}
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {**files, "config.json": json.dumps(record, indent=2) + "\n"}.items():
        write_whole(folder / name, text)
    _write(study, folder, arguments)


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
