"""A training on vector environments from its folder's newest checkpoint to its end, or to the signal to stop."""

import dataclasses
import functools
import itertools
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sparse_plugins.core.identity import identity
from sparse_plugins.rl.loops import progress
from sparse_plugins.rl.loops.runs import to_the_end
from sparse_plugins.rl.loops.vector import Episode, VectorTrainer

__all__ = ["VectorRun", "train"]


class VectorRun(NamedTuple):
    """What `train` gives back; the trainer holds the networks.

    Attributes:
        episodes: All that ended, those before an interruption included.
        is_finished: Whether all steps are made; False if Ctrl-C or SIGTERM came, in the last chunk, too.
    """

    episodes: list[Episode]
    is_finished: bool

    def __repr__(self) -> str:
        """Its end in a line, with the last hundred episodes of each run."""
        of_runs = itertools.groupby(sorted(self.episodes, key=_run_of), _run_of)
        scores = {f"{group} {seed}": [episode.score for episode in played][-100:] for (group, seed), played in of_runs}
        end = "finished" if self.is_finished else "unfinished"
        return f"VectorRun {end}: {len(self.episodes):,} episodes; {progress.of_scores(scores, 'last ')}"


def train(
    trainer: VectorTrainer,
    total_steps: int,
    folder: str | Path,
    *,
    chunk_iterations: int = 1_000,
    checkpoint_chunks: int = 10,
    settings: Mapping[str, Any] | None = None,
    report: Callable[[int, list[Episode]], None] | None = None,
) -> VectorRun:
    """Trains to the end, going on where the folder's run stopped: replay, masks and emulators as they were.

    On Ctrl-C or SIGTERM the current chunk is finished and saved, and the run returns unfinished; call it again, with a
    new trainer, to go on. So it is after an `EnvironmentFailure` or Ctrl-C again, which cost the steps since the last
    checkpoint.

    Args:
        trainer: What to train, new.
        total_steps: Environment steps of each run; a finished run can be prolonged. A schedule
            that changes no mask in them, or does not end in them, is warned of.
        folder: Folder of this training alone; it is made if it is missing.
        chunk_iterations: Iterations between two reports.
        checkpoint_chunks: Chunks between two checkpoints; there is one at the end, too. Each holds the whole replay.
        settings: What else makes the training what it is and JSON takes, such as names of algorithms. Recorded and
            compared, like `trainer.config`, the game, names and seeds.
        report: Called after every chunk with the environment steps so far and the episodes that ended in it; None
            writes a line to standard error, `lambda steps, episodes: None` nothing.

    Returns:
        The episodes, and whether the run is finished.

    Raises:
        ValueError: If these are more steps than an optimizer can count.
        EnvironmentFailure: If an environment broke.
        SettingsMismatchError: If the folder belongs to another run, which is left alone.
        CheckpointMismatchError: If its checkpoint belongs to other agents.
    """
    config = trainer.config
    for concern in (c for group in trainer.groups for c in config.concerns(group.learner.updater, total_steps)):
        warnings.warn(concern, stacklevel=2)
    described = {
        **{f"config.{name}": value for name, value in dataclasses.asdict(config).items()},
        "environment": trainer.name,
        **{f"updater.{group.name}": identity(group.learner.updater) for group in trainer.groups},
        **{f"seeds.{group.name}": group.seeds for group in trainer.groups},
        **{f"settings.{name}": value for name, value in (settings or {}).items()},
    }
    told = report or functools.partial(_show, total_steps)
    points, is_finished = to_the_end(
        _Run(trainer),
        config.check_iterations(math.ceil(total_steps / (config.vector_steps * config.num_envs))),
        folder,
        described,
        chunk_iterations=chunk_iterations,
        checkpoint_chunks=checkpoint_chunks,
        report=lambda point: told(trainer.environment_steps, point),
    )
    return VectorRun([Episode(*episode) for episode in itertools.chain(*points)], is_finished)


def _run_of(episode: Episode) -> tuple[str, int]:
    return episode.group, episode.seed


def _show(total_steps: int, steps: int, episodes: list[Episode]) -> None:
    groups = dict.fromkeys(episode.group for episode in episodes)
    scores = {group: [episode.score for episode in episodes if episode.group == group] for group in groups}
    progress.show(f"{steps:,} of {total_steps:,} environment steps; {progress.of_scores(scores)}")


class _Run:
    """A training as `to_the_end` goes on with it."""

    def __init__(self, trainer: VectorTrainer) -> None:
        self.template, self.advance = trainer.template, trainer.advance
        self.save, self.restore = trainer.save, trainer.restore

    def begin(self) -> None:
        """A trainer is made ready to begin."""
