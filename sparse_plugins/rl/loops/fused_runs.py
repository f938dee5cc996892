"""A fused training from its folder's newest checkpoint to its end, or to the signal to stop."""

import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from sparse_plugins.core.identity import identity
from sparse_plugins.core.sparse_checks import FirstCheck
from sparse_plugins.core.trees import PyTree, leaf_names
from sparse_plugins.rl.learner import SparseLearner
from sparse_plugins.rl.loops import progress
from sparse_plugins.rl.loops.fused import FusedState, FusedTrainer
from sparse_plugins.rl.loops.runs import to_the_end

__all__ = ["Chunk", "FusedRun", "train"]


class Chunk(NamedTuple):
    """One point of the learning curves; S seeds.

    Attributes:
        environment_steps: Environment steps of each seed, at the end of the chunk.
        episodes: int[S], episodes that ended in it.
        mean_return: float[S], their mean return; NaN where none ended.
        loss: float[S], mean loss.
    """

    environment_steps: int
    episodes: list[int]
    mean_return: list[float]
    loss: list[float]

    def in_words(self) -> str:
        """A line, averaged over the seeds in which an episode ended."""
        returns = [value for value in self.mean_return if not math.isnan(value)]
        scored = f"mean return {sum(returns) / len(returns):.4g}" if returns else "no episode has ended"
        loss = sum(self.loss) / len(self.loss)
        return f"{self.environment_steps:,} environment steps; {scored}, loss {loss:.3g} over {len(self.loss)} seeds"


class FusedRun(NamedTuple):
    """What `train` gives back.

    Attributes:
        state: The state it ended with.
        curve: All chunks, those before an interruption included.
        is_finished: Whether all steps are made; False if Ctrl-C or SIGTERM came, in the last chunk, too.
    """

    state: FusedState
    curve: list[Chunk]
    is_finished: bool

    def __repr__(self) -> str:
        """Its end in a line."""
        end = f": {self.curve[-1].in_words()}" if self.curve else ""
        return f"FusedRun {'finished' if self.is_finished else 'unfinished'}{end}"


def train(
    trainer: FusedTrainer,
    keys: jax.Array,
    total_steps: int,
    folder: str | Path,
    *,
    hyper: PyTree = None,
    chunk_iterations: int = 1_000,
    checkpoint_chunks: int = 10,
    settings: Mapping[str, Any] | None = None,
    report: Callable[[Chunk], None] | None = None,
) -> FusedRun:
    """Trains to the end, going on where the folder's run stopped.

    On Ctrl-C or SIGTERM the current chunk is finished and saved, and the run returns unfinished; call it again to go
    on. Ctrl-C again is a KeyboardInterrupt, which costs the steps since the last checkpoint.

    Args:
        trainer: What to train.
        keys: One JAX key per seed.
        total_steps: Environment steps per seed, warm-up included; a finished run can be prolonged. A schedule
            that changes no mask in them, or does not end in them, is warned of.
        folder: Folder of this run alone; it is made if it is missing.
        hyper: Hyper-parameters per seed, if the trainer's learner is a function of them.
        chunk_iterations: Iterations between two points of the curve.
        checkpoint_chunks: Chunks between two checkpoints; there is one at the end, too.
        settings: What else makes the run what it is and JSON can take, such as the name of its algorithm. Recorded
            and compared, like `trainer.config`, the game, keys and hyper-parameters.
        report: Called after every chunk; None writes a line to standard error, `lambda chunk: None` nothing.

    Returns:
        The state, the curve and whether the run is finished.

    Raises:
        ValueError: If these are more steps than an optimizer can count.
        SettingsMismatchError: If the folder belongs to another run, which is left alone.
        CheckpointMismatchError: If its checkpoint belongs to another learner.
    """
    if isinstance(trainer.learner_of, SparseLearner):  # else each seed may have another updater
        for concern in trainer.config.concerns(trainer.learner_of.updater, total_steps):
            warnings.warn(concern, stacklevel=2)
    told = report or (lambda chunk: progress.show(f"{chunk.in_words()}; {total_steps:,} to make"))
    run = _Run(trainer, keys, hyper)
    curve, is_finished = to_the_end(
        run,
        trainer.config.check_iterations(trainer.config.iterations(total_steps)),
        folder,
        _described(trainer, keys, hyper, settings or {}),
        chunk_iterations=chunk_iterations,
        checkpoint_chunks=checkpoint_chunks,
        report=lambda point: told(Chunk(*point)),
    )
    return FusedRun(run.state, [Chunk(*point) for point in curve], is_finished)


class _Run:
    """A fused training as `to_the_end` goes on with it."""

    state: FusedState

    def __init__(self, trainer: FusedTrainer, keys: jax.Array, hyper: PyTree) -> None:
        self._trainer, self._keys, self._hyper = trainer, keys, hyper
        learner = trainer.learner_of
        self._first_check = FirstCheck(learner.updater) if isinstance(learner, SparseLearner) else None

    def template(self) -> FusedState:
        return self._trainer.template(self._keys, self._hyper)

    def begin(self) -> None:
        self.state = self._trainer.init(self._keys, self._hyper)
        self._steps = self._trainer.environment_steps(self.state)

    def restore(self, tree: FusedState, extra: int | None) -> None:
        self.state = tree
        # Older checkpoints have no count of their own.
        self._steps = self._trainer.environment_steps(tree) if extra is None else extra

    def advance(self, iterations: int) -> Chunk:
        self.state, metrics = self._trainer.run(self.state, iterations)
        episodes, _, loss = map(np.asarray, metrics)
        self._steps += iterations * self._trainer.config.vector_steps * self._trainer.config.num_envs
        if self._first_check is not None:
            learner = self.state.learner
            steps = self._trainer.config.learnt_steps(self._steps)
            self._first_check.of_first_seed(steps, learner.params, learner.optimizer_state)
        return Chunk(self._steps, episodes.tolist(), metrics.mean_return.tolist(), loss.tolist())

    def save(self) -> tuple[FusedState, int]:
        return self.state, self._steps


def _described(trainer: FusedTrainer, keys: jax.Array, hyper: PyTree, settings: Mapping[str, Any]) -> dict[str, Any]:
    is_typed = jax.numpy.issubdtype(keys.dtype, jax.dtypes.prng_key)
    return {
        **{f"config.{name}": value for name, value in dataclasses.asdict(trainer.config).items()},
        "environment": trainer.environment.name,
        **({"updater": identity(learner.updater)} if isinstance(learner := trainer.learner_of, SparseLearner) else {}),
        "keys": np.asarray(jax.random.key_data(keys) if is_typed else keys).tolist(),
        **{
            f"hyper.{name}": np.asarray(leaf).tolist()
            for name, leaf in zip(leaf_names(hyper), jax.tree.leaves(hyper), strict=True)
        },
        **{f"settings.{name}": value for name, value in settings.items()},
    }
