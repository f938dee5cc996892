"""The comparison as a task: settings, batches, and what trains them in a process of its own."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

from experiments.harness.cells import Cell, Run
from experiments.harness.recorder import Recorder
from experiments.harness.settings import Settings, flag, seeds_flag
from experiments.harness.study import Plan
from experiments.versus_dopamine.outcomes import OURS, SIDES, TASKS

SHORTEST = 2_000  # agent steps of a run; of these, 1,000 only fill the memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class VersusSettings(Settings):
    """What is learnt by both sides, and for how long; checked when built.

    Raises:
        ValueError: as `Settings`.
    """

    seeds: tuple[int, ...] = seeds_flag(5)
    tasks: tuple[str, ...] = flag("what is learnt", nargs="+", choices=tuple(TASKS), default=tuple(TASKS))
    scale: float = flag("factor on the agent steps of every run", float, default=1.0)
    jobs: int = flag("runs side by side, each in a process of its own", int, default=2)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.each_once("tasks")
        self.positive("scale")
        if (shortest := min(TASKS[name].steps for name in self.tasks)) * self.scale < SHORTEST:
            raise ValueError(
                f"--scale must be {SHORTEST / shortest:g} at least, got {self.scale}: agents warm up first."
            )
        self.at_least(1, "jobs")


def plan(settings: VersusSettings) -> Plan:
    """Our side trains all seeds of a task together, and Dopamine one in each process."""
    names = {TASKS[name].game: name for name in settings.tasks}
    cells = [Cell(game, side) for game, side in itertools.product(names, SIDES)]
    batches: list[list[Run]] = []
    for cell in cells:
        runs = [Run(cell, seed) for seed in settings.seeds]
        batches += [runs] if cell.name == OURS else [[run] for run in runs]
    text = f"{len(cells)} cells of {len(settings.seeds)} seeds; only those of Dopamine load it, with TensorFlow."
    batches.sort(key=lambda batch: batch[0].cell.name != OURS)  # our side first: it takes all cores
    train_batch = functools.partial(train, names, settings.scale)
    return Plan(settings, cells, train_batch, text, together=batches, jobs=settings.jobs)


def train(names: dict[str, str], scale: float, batch: Sequence[Recorder]) -> bool:
    """Trains the runs of a batch, in a process that loads what it needs."""
    cell = batch[0].run.cell
    task, seeds = names[cell.group], [recorder.run.seed for recorder in batch]
    steps = round(TASKS[task].steps * scale)
    if cell.name == OURS:
        from experiments.versus_dopamine import our_side

        ends = our_side.run(task, seeds, steps)
    else:
        from experiments.versus_dopamine import dopamine_side

        ends = [dopamine_side.run(task, cell.name, seed, steps) for seed in seeds]
    for recorder, end in zip(batch, ends, strict=True):
        found = end._asdict()
        recorder.rewrite([recorder.row(found.pop("episodes"), **found)])
    return True
