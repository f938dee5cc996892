"""Studies of sparse agents in the loop of all studies: all seeds of a cell in one program."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.record.runs import Recorder, Run, has_ended
from experiments.rl_study.cells import Cell
from experiments.rl_study.layout import Row
from experiments.rl_study.progress import Progress
from experiments.rl_study.settings import StudySettings
from experiments.rl_study.watched import cells_of
from experiments.study import Study
from sparse_plugins.checkpoints import CheckpointMismatchError
from sparse_plugins.rl.environments.interfaces import EnvironmentFailure
from sparse_plugins.rl.loops.runs import SettingsMismatchError

# Trains the cells of a batch together, from where it was, telling the environment steps that each run has reached.
# Masks go to the recorders meanwhile; all rows come back at the end, or None if it was told to stop.
TrainBatch = Callable[[Sequence[Cell], Sequence[Recorder], Callable[[int], None]], list[Row] | None]


def study_of(
    domain: str,
    settings: StudySettings,
    folder: Path | None,
    train: TrainBatch,
    *,
    plan: str,
    packages: Sequence[str],
    record: Mapping[str, Any],
) -> Study:
    """The study of some settings.

    Args:
        domain: Its module.
        settings: Of the study.
        folder: Where it goes on; None if it is new.
        train: Trains a batch.
        plan: To print before.
        packages: Whose versions matter.
        record: What else `config.json` says.
    """
    batches = [[Run(tuple(cell), seed) for cell in batch for seed in settings.seeds] for batch in settings.batches()]
    is_left = lambda batch: folder is None or not all(has_ended(folder, one) for one in batch)  # noqa: E731
    left = [batch for batch, runs in zip(settings.batches(), batches, strict=True) if is_left(runs)]
    progress = Progress(left, settings.steps, len(settings.seeds))

    def train_batch(recorders: Sequence[Recorder]) -> bool:
        cells = cells_of(recorders)

        def reach(step: int) -> None:
            progress.reach(step)
            for recorder in recorders:
                recorder.reached = step

        progress.begin(cells)
        try:
            rows = train(cells, recorders, reach)
        finally:
            progress.end()
        return rows is not None and _hand_over(rows, recorders)

    return Study(
        domain=domain,
        settings=dataclasses.asdict(settings),
        cells=[tuple(cell) for cell in settings.cells()],
        batches=batches,
        train=train_batch,
        plan=plan,
        packages=packages,
        record=record,
        passes=(CheckpointMismatchError, SettingsMismatchError, EnvironmentFailure),
    )


def _hand_over(rows: Sequence[Row], recorders: Sequence[Recorder]) -> bool:
    """Each row to its run."""
    for recorder in recorders:
        recorder.rewrite([row for row in rows if (tuple(row.cell), row.seed) == recorder.run])
    return True
