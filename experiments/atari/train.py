"""A batch of cells: all of their runs at once, from their first step to their evaluation."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.atari.config import PERIOD, TARGET_STEPS, AtariSettings
from experiments.common.agents.dqn import dqn
from experiments.common.agents.layout import NUMBERS
from experiments.common.agents.watched import Watched, ends
from experiments.harness.cells import Cell
from experiments.harness.layout import Row
from experiments.harness.recorder import Recorder
from sparse_plugins.rl.environments.atari import AtariVector
from sparse_plugins.rl.haiku import SparseDQN, impala_torso, nature_torso
from sparse_plugins.rl.loops.vector import Episode, Group, VectorTrainer
from sparse_plugins.rl.loops.vector_evaluation import evaluate
from sparse_plugins.rl.loops.vector_runs import train

EPSILON = 0.001  # in the evaluation, as in Dopamine


@functools.cache
def num_actions(game: str) -> int:
    """Actions that matter in a game."""
    environment = AtariVector(game, 1, seed=0)
    environment.close()
    return environment.num_actions


def environments(config: AtariSettings, game: str, skipped: int = 0) -> Callable[[int, int, int], AtariVector]:
    """What makes the environments of a run.

    Args:
        config: Settings of the study.
        game: Which.
        skipped: First slots of the run that are left to others.
    """
    return lambda seed, first, size: AtariVector(
        game, size, seed=seed, first_slot=skipped + first, reseed_after=config.reseed_after
    )


def agent(config: AtariSettings, cell: Cell) -> SparseDQN:
    """DQN with the numbers of `sparse_plugins/rl/dopamine/configs/mspacman_dqn.gin` and `impala_dqn.gin`."""
    as_matmuls = {"yes": True, "no": False, "auto": jax.default_backend() == "cpu" and len(config.seeds) > 1}
    torso = nature_torso if config.network == "nature" else functools.partial(impala_torso, cell.width)
    network = torso(as_matmuls=as_matmuls[config.as_matmuls])
    return dqn(num_actions(cell.group), network, 6.25e-5, 1.5e-4, config.updater(cell), TARGET_STEPS // PERIOD)


def groups(config: AtariSettings, batch: Sequence[Cell]) -> list[Group]:
    """A group of runs for every cell."""
    return [Group(str(cell), agent(config, cell), config.seeds) for cell in batch]


def train_batch(
    config: AtariSettings, batch: Sequence[Cell], recorders: Sequence[Recorder], reach: Callable[[int], None]
) -> bool:
    """Trains all seeds of some cells of a game, from their newest checkpoint on, and evaluates them.

    Returns:
        False if SIGTERM came first.
    """
    game = batch[0].group
    trainer = VectorTrainer(environments(config, game), groups(config, batch), config.loop)
    try:
        per_stretch, broken = stretch(config), Broken()

        def report(step: int, episodes: object) -> None:
            reach(step)
            broken.look(step, {str(cell): state.loss for cell, state in zip(batch, trainer.states, strict=True)})

        watched: Any = Watched(trainer, recorders)
        run = train(
            watched,
            config.steps,
            recorders[0].scratch,
            chunk_iterations=per_stretch // _steps_per_iteration(config),
            checkpoint_chunks=config.checkpoint_every,
            settings={"network": config.network, "reseed_after": config.reseed_after},
            report=report,
        )
        if not run.is_finished:
            return False
        scores = evaluate(
            trainer, environments(config, game, skipped=config.envs), config.evaluation_episodes, epsilon=EPSILON
        )
        left = iter(recorders)
        for cell, state in zip(batch, trainer.states, strict=True):
            for place, end in enumerate(ends(state.learner, scores[str(cell)])):
                recorder = next(left)
                played_by = (str(cell), recorder.run.seed)
                played = [episode for episode in run.episodes if (episode.group, episode.seed) == played_by]
                rows = rows_of(recorder, played, per_stretch, trainer.environment_steps, end)
                recorder.rewrite(broken.cut(list(rows), str(cell), place))
        return True
    finally:
        trainer.close()


def stretch(config: AtariSettings) -> int:
    """Environment steps of a stretch of training."""
    size = _steps_per_iteration(config)
    return math.ceil(math.ceil(config.steps / size) / config.curve_points) * size


def _steps_per_iteration(config: AtariSettings) -> int:
    return config.loop.num_envs * config.loop.vector_steps


class Broken:
    """At which step, and with what loss, runs were found broken: a loss that is not finite stays so."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, int], tuple[int, float]] = {}

    def look(self, step: int, losses: Mapping[str, Any]) -> None:
        """Remembers new ones.

        Args:
            step: Environment steps so far.
            losses: float32[seeds] of each group.

        Raises:
            FloatingPointError: all are broken, so that there is nothing to train.
        """
        every = [
            (name, i, loss) for name, by_seed in losses.items() for i, loss in enumerate(np.asarray(by_seed).tolist())
        ]
        for name, i, loss in every:
            if not math.isfinite(loss):
                self._found.setdefault((name, i), (step, loss))
        if len(self._found) == len(every):
            raise FloatingPointError(f"no run is left whose loss is finite; here it is {every[0][2]}")

    def cut(self, rows: Sequence[Row], group: str, number: int) -> list[Row]:
        """The rows of a run, which end where it was found broken."""
        if (group, number) not in self._found:
            return list(rows)
        step, loss = self._found[group, number]
        before = [row for row in rows if row.step < step]
        lost = dict.fromkeys(NUMBERS)
        return [*before, Row(**{**vars(rows[0]), **lost, "step": step, "failure": f"the loss is {loss}"})]


def rows_of(
    recorder: Recorder, episodes: Sequence[Episode], per_stretch: int, last: int, end: dict[str, Any]
) -> Iterator[Row]:
    """A row per stretch of training, the last one with its end."""
    scores: dict[int, list[float]] = {step: [] for step in [*range(per_stretch, last, per_stretch), last]}
    for episode in episodes:
        scores[min((episode.step // per_stretch + 1) * per_stretch, last)].append(episode.score)
    for step, stretch in scores.items():
        mean = sum(stretch) / len(stretch) if stretch else None
        yield recorder.row(step, episodes=len(stretch), training_return=mean, **(end if step == last else {}))
