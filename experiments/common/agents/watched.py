"""Trainers that show the masks of all seeds before and after every stretch of training, and how sparse networks are."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from experiments.harness.layers import Masks, masks_of_seeds
from experiments.harness.recorder import Recorder
from sparse_plugins.rl.learner import LearnerState

Show = Callable[[int, Sequence[Masks], Sequence[Masks]], None]


class WatchedFused:
    """A `FusedTrainer` that shows masks.

    Args:
        trainer: What trains; everything else is its own.
        show: Called with the environment steps, and the masks of each seed before and after a stretch.
    """

    def __init__(self, trainer: Any, show: Show) -> None:
        self._trainer, self._show = trainer, show

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)

    def run(self, state: Any, iterations: int) -> Any:
        """A stretch of training."""
        before = _masks(state.learner)
        state, metrics = self._trainer.run(state, iterations)
        self._show(self._trainer.environment_steps(state), before, _masks(state.learner))
        return state, metrics


class WatchedVector:
    """A `VectorTrainer` that shows masks, of all groups one after the other.

    Args:
        trainer: What trains; everything else is its own.
        show: As of `WatchedFused`.
    """

    def __init__(self, trainer: Any, show: Show) -> None:
        self._trainer, self._show = trainer, show

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)

    def advance(self, iterations: int) -> Any:
        """A stretch of training."""
        before = self._all_masks()
        episodes = self._trainer.advance(iterations)
        self._show(self._trainer.environment_steps, before, self._all_masks())
        return episodes

    def _all_masks(self) -> list[Masks]:
        return [masks for state in self._trainer.states for masks in _masks(state.learner)]


def layers_to(recorders: Sequence[Recorder]) -> Show:
    """Shows masks to the recorders of the same runs, in the same order."""

    def show(step: int, before: Sequence[Masks], after: Sequence[Masks]) -> None:
        for recorder, old, new in zip(recorders, before, after, strict=True):
            recorder.add_layers(step, new, old)

    return show


def zeros(params: Any) -> list[float]:
    """By seed, which is the first axis, the fraction of zeros in the weight matrices."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
    matrices = [leaf.reshape(len(leaf), -1) for leaf in leaves if leaf.ndim > 2]
    weights = np.concatenate(matrices, axis=1)
    return [1 - np.count_nonzero(own) / own.size for own in weights]


def _masks(learner: LearnerState) -> list[Masks]:
    return list(masks_of_seeds(learner.params, learner.optimizer_state))
