"""The comparison as a task: settings, batches, and what trains them."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from pathlib import Path

from experiments.harness.cells import Cell, Run
from experiments.harness.recorder import Recorder
from experiments.harness.settings import Settings, flag, seeds_flag
from experiments.harness.study import Plan
from experiments.minatar.config import GAMES
from experiments.versus_purejaxql.layout import OURS, SIDES


@dataclasses.dataclass(frozen=True, kw_only=True)
class VersusSettings(Settings):
    """What is learnt by both sides, and for how long; checked when built.

    Raises:
        ValueError: as `Settings`, or there is no purejaxql in the folder.
    """

    purejaxql: str = flag("folder with a checkout of purejaxql; its training needs chex besides what is here")
    seeds: tuple[int, ...] = seeds_flag(5)
    games: tuple[str, ...] = flag("of MinAtar", nargs="+", choices=GAMES, default=("Breakout", "SpaceInvaders"))
    steps: int = flag("environment steps that each seed is trained for", int, default=1_000_000)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.each_once("games")
        self.at_least(10 * 4_096, "steps")
        if not (Path(self.purejaxql) / "purejaxql" / "pqn_minatar.py").is_file():
            raise ValueError(
                f"--purejaxql is {self.purejaxql!r}, which holds no purejaxql/pqn_minatar.py; give the folder of a"
                " checkout, e.g. of git clone https://github.com/mttga/purejaxql."
            )


def plan(settings: VersusSettings) -> Plan:
    """Each side trains all seeds of a game together, ours first."""
    cells = [Cell(game, side) for game, side in itertools.product(settings.games, SIDES)]
    text = f"{len(cells)} cells of {len(settings.seeds)} seeds, {settings.steps:,} environment steps each."
    together = [[Run(cell, seed) for seed in settings.seeds] for cell in cells]
    return Plan(settings, cells, functools.partial(train, settings), text, together=together)


def train(settings: VersusSettings, batch: Sequence[Recorder]) -> bool:
    """Trains the runs of a batch."""
    cell, seeds = batch[0].run.cell, [recorder.run.seed for recorder in batch]
    if cell.name == OURS:
        from experiments.versus_purejaxql import our_side

        returns, pace = our_side.run(cell.group, seeds, settings.steps)
    else:
        from experiments.versus_purejaxql import their_side

        returns, pace = their_side.run(Path(settings.purejaxql), cell.group, seeds, settings.steps)
    for recorder, mean in zip(batch, returns, strict=True):
        recorder.rewrite([recorder.row(settings.steps, evaluated_return=mean, steps_per_cpu_second=pace)])
    return True
