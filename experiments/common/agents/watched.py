"""A trainer whose recorders see all masks before and after every stretch, and how runs of several seeds ended."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from experiments.harness.layers import Masks, masks_of_seeds
from experiments.harness.recorder import Recorder
from sparse_plugins.rl.learner import LearnerState


class Watched:
    """A `FusedTrainer` or a `VectorTrainer` that shows masks; everything else is its own.

    Args:
        trainer: What trains.
        recorders: Recorders of its runs, in the order of groups and seeds.
    """

    def __init__(self, trainer: Any, recorders: Sequence[Recorder]) -> None:
        self._trainer, self._recorders = trainer, recorders

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)

    def run(self, state: Any, iterations: int) -> Any:
        """A stretch of training by a `FusedTrainer`."""
        before = _masks([state])
        state, metrics = self._trainer.run(state, iterations)
        self._show(self._trainer.environment_steps(state), before, _masks([state]))
        return state, metrics

    def advance(self, iterations: int) -> Any:
        """A stretch of training by a `VectorTrainer`."""
        before = _masks(self._trainer.states)
        episodes = self._trainer.advance(iterations)
        self._show(self._trainer.environment_steps, before, _masks(self._trainer.states))
        return episodes

    def _show(self, step: int, before: Sequence[Masks], after: Sequence[Masks]) -> None:
        for recorder, old, new in zip(self._recorders, before, after, strict=True):
            recorder.add_layers(step, new, old)


def _masks(states: Sequence[Any]) -> list[Masks]:
    learners = [state.learner for state in states]
    return [masks for learner in learners for masks in masks_of_seeds(learner.params, learner.optimizer_state)]


def ends(learner: LearnerState, returns: np.ndarray[Any, Any]) -> Iterator[dict[str, Any]]:
    """What the last row of each seed says beside its stretch.

    Args:
        learner: State of all seeds, which are the first axis.
        returns: float[seeds, evaluation episodes].
    """
    online = zeros(learner.params)
    target = [None] * len(returns) if learner.target_params is None else zeros(learner.target_params)
    for i, episodes in enumerate(returns):
        yield {"final_return": float(episodes.mean()), "online_sparsity": online[i], "target_sparsity": target[i]}


def zeros(params: Any) -> list[float]:
    """By seed, which is the first axis, the fraction of zeros in the weight matrices."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
    matrices = [leaf.reshape(len(leaf), -1) for leaf in leaves if leaf.ndim > 2]
    weights = np.concatenate(matrices, axis=1)
    return [1 - np.count_nonzero(of_seed) / of_seed.size for of_seed in weights]
