"""From the training of a batch of cells to the plan of a study: all seeds of a cell in one program."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.common.agents.progress import Progress
from experiments.common.agents.settings import AgentSettings
from experiments.harness.cells import Cell, Run
from experiments.harness.recorder import Recorder
from experiments.harness.study import Plan
from sparse_plugins.checkpoints import CheckpointMismatchError, SettingsMismatchError
from sparse_plugins.rl.environments.interfaces import EnvironmentFailure

# Trains the cells of a batch together, from where it was, telling the environment steps that each run has reached.
# Masks go to the recorders meanwhile, all rows at the end; False if it was told to stop.
TrainBatch = Callable[[Sequence[Cell], Sequence[Recorder], Callable[[int], None]], bool]


def plan_of(settings: AgentSettings, train: TrainBatch, text: str, record: Mapping[str, Any]) -> Plan:
    """The plan of a study.

    Args:
        settings: Settings of the study.
        train: Trains a batch.
        text: To print before.
        record: What else `config.json` says.
    """
    progress = Progress(list(settings.batches()), settings.steps, len(settings.seeds))

    def train_batch(recorders: Sequence[Recorder]) -> bool:
        cells = list(dict.fromkeys(recorder.run.cell for recorder in recorders))

        def reach(step: int) -> None:
            progress.reach(step)
            for recorder in recorders:
                recorder.reached = step

        progress.begin(cells)
        try:
            return train(cells, recorders, reach)
        finally:
            progress.end()

    together = [[Run(cell, seed) for cell in batch for seed in settings.seeds] for batch in settings.batches()]
    passes = (CheckpointMismatchError, SettingsMismatchError, EnvironmentFailure)
    return Plan(settings, list(settings.cells()), train_batch, text, record, together, passes)
