"""A study from its first cell to its report; whatever stops it, it goes on where it was."""

import io
import itertools
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.files import csv_text, join_timings, write_whole
from experiments.rl_study.cells import Cell
from experiments.rl_study.outcomes import Outcome, outcomes
from experiments.rl_study.progress import Progress
from experiments.rl_study.record import Row, read_rows, write_rows
from experiments.rl_study.report import aggregate_table, failures, game_table, report
from experiments.rl_study.settings import StudySettings
from sparse_plugins.rl.environments import EnvironmentFailure
from sparse_plugins.rl.loops.checkpoints import CheckpointMismatchError
from sparse_plugins.rl.loops.runs import SettingsMismatchError

CELLS = "cells"
TRAINING = "training"
STOPPED = 143  # exit status of a process that SIGTERM ended

# Trains the cells of a batch together, in a folder of its own from where it was, telling the environment steps that
# each run has reached. Returns all rows, the last one of each run with its end; None if it was told to stop.
TrainBatch = Callable[[Sequence[Cell], Path, Callable[[int], None]], list[Row] | None]
Sections = Callable[[Sequence[Outcome]], Sequence[str]]


def run(
    settings: StudySettings,
    folder: Path,
    title: str,
    about: str,
    train: TrainBatch,
    sections: Sections = lambda found: (),
) -> int:
    """Trains what is left of a study and writes its files, the report last.

    Args:
        settings: Of the study.
        folder: Its folder.
        title: Of the report.
        about: What was trained, in a sentence or more, for the report.
        train: Trains a batch.
        sections: What else the report has to say about the outcomes.

    Returns:
        Exit status: 0 if every run finished, 1 if one failed, `STOPPED` if it was told to stop.
    """
    left = [batch for batch in settings.batches() if not has_ended(settings, folder, batch)]
    if not left and (folder / "results.md").exists():
        rows = read_rows(folder)
        draw(settings, folder, outcomes(rows))
        print(f"{folder} is finished and left alone.\n\n{_summary(outcomes(rows))}")
        return int(any(row.failure for row in rows))
    progress = Progress(left, settings.steps, len(settings.seeds))
    for batch in left:
        lines = _execute(settings, folder, batch, train, progress)
        if lines is None:
            print(f"Stopped in time; go on with --resume {folder}")
            return STOPPED
        print(*lines, sep="\n", flush=True)
        collect(settings, folder)
    rows = collect(settings, folder)
    found = outcomes(rows)
    draw(settings, folder, found)
    write_whole(folder / "results.md", report(title, about, rows, sections(found)))
    print(f"\n{_summary(found)}\n\nIn {folder}: {', '.join(sorted(file.name for file in folder.iterdir()))}")
    return int(any(row.failure for row in rows))


def draw(settings: StudySettings, folder: Path, found: Sequence[Outcome]) -> None:
    """Draws the figures that are missing; without Matplotlib a line says how to come by them."""
    pictures = [*(f"curves-{game}.png" for game in settings.games), "sparsity.png"]
    if all((folder / name).exists() for name in pictures):
        return
    try:
        from experiments.rl_study.plot import curves_figure, sparsity_figure
    except ModuleNotFoundError as error:
        print(f"No figures: {error.name} is not installed here. Where it is, --resume {folder} draws them.")
        return
    figures = (curves_figure(game, found, settings.mask_changes) for game in settings.games)
    for name, figure in zip(pictures, itertools.chain(figures, [sparsity_figure(found)]), strict=True):
        figure.savefig(picture := io.BytesIO(), format="png")
        write_whole(folder / name, picture.getvalue())


def has_ended(settings: StudySettings, folder: Path, batch: Sequence[Cell]) -> bool:
    """Whether all seeds of all cells are finished or failed: their rows are the last thing that is written."""
    ended = ({row.seed for row in read_rows(folder / CELLS / cell.folder) if row.is_last} for cell in batch)
    return all(seeds == set(settings.seeds) for seeds in ended)


def collect(settings: StudySettings, folder: Path) -> list[Row]:
    """Puts the files of the cells together as those of the study.

    Returns:
        All rows, in the order of the cells.
    """
    folders = [folder / CELLS / cell.folder for cell in settings.cells()]
    rows = [row for own in folders for row in read_rows(own)]
    write_rows(folder, rows)
    join_timings(folder, folders)
    return rows


def _execute(
    settings: StudySettings, folder: Path, batch: Sequence[Cell], train: TrainBatch, progress: Progress
) -> list[str] | None:
    """Trains a batch and records it, whatever happens to it: a bad one must not cost the others.

    Returns:
        How each cell ended, in a line; None if it was told to stop.
    """
    owns, reached, started = [folder / CELLS / cell.folder for cell in batch], [0], time.perf_counter()
    for own in owns:
        own.mkdir(parents=True, exist_ok=True)

    def reach(step: int) -> None:
        reached.append(step)
        progress.reach(step)

    progress.begin(batch)
    try:
        rows = train(batch, owns[0] / TRAINING, reach)
    except (CheckpointMismatchError, SettingsMismatchError, EnvironmentFailure):
        raise  # what was trained so far is still there
    except Exception as error:
        failure = " ".join(f"{type(error).__name__}: {error}".split())
        rows = [
            Row(**cell._asdict(), seed=seed, step=reached[-1], failure=failure)
            for cell in batch
            for seed in settings.seeds
        ]
    finally:
        progress.end()
    if rows is None:
        return None
    seconds = round(time.perf_counter() - started, 1)  # of a batch that was resumed, since then
    for cell, own in zip(batch, owns, strict=True):
        line = {**cell._asdict(), "together": len(batch), "seconds": seconds}
        write_whole(own / "timing.csv", csv_text([*line], [line]))
        write_rows(own, [row for row in rows if row.cell == cell])
    shutil.rmtree(owns[0] / TRAINING, ignore_errors=True)
    return [_line(outcome, seconds) for outcome in outcomes(rows)]


def _line(outcome: Outcome, seconds: float) -> str:
    ends = [f"mean return {sum(outcome.scores) / len(outcome.scores):.2f}"] if outcome.finished else []
    ends += [f"{len(outcome.failed)} seeds failed"] if outcome.failed else []
    return f"{outcome.cell}: {', '.join(ends)}, {seconds:.0f} s"


def _summary(found: Sequence[Outcome]) -> str:
    """All tables, and what failed."""
    games = dict.fromkeys(outcome.cell.game for outcome in found)
    tables = [f"{game}\n\n{game_table([o for o in found if o.cell.game == game])}" for game in games]
    return "\n\n".join([*tables, f"Relative to dense\n\n{aggregate_table(found)}", *failures(found)])
