"""Supervised training of any task with any updater: pure compiled functions around one loop on the host.

The gradient is compiled once for all cells of a study, what an updater does with it once for all seeds of a cell. The
loop stays outside, because XLA runs convolutions inside a loop about ten times slower on CPUs.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from experiments.common.supervised.data import Batch
from experiments.common.supervised.settings import SupervisedSettings
from sparse_plugins import core

PyTree = Any


class Task(NamedTuple):
    """A model and its data.

    Attributes:
        init: From a key to parameters and to statistics that training renews beside them (of batch norms).
        loss: From parameters, statistics and a batch to the loss, float32[], and the statistics renewed.
        evaluate: From parameters, statistics and a batch to sums over it, float32[]: `loss`, `right` and `count`.
        prunable: Which leaves may be pruned, called with the path as a tuple of names, and the leaf.
        train: From a seed to batches without end.
        test: All test batches.
        about: What model and data are, in a sentence for the report.
        apply: From variables, parameters under 'params' and statistics under 'batch_stats', and a batch to what the
            model gives; None if nobody asks which of its channels can leave.
    """

    init: Callable[[jax.Array], tuple[PyTree, PyTree]]
    loss: Callable[[PyTree, PyTree, Batch], tuple[jax.Array, PyTree]]
    evaluate: Callable[[PyTree, PyTree, Batch], dict[str, jax.Array]]
    prunable: Callable[[tuple[str, ...], Any], bool]
    train: Callable[[int], Iterator[Batch]]
    test: Callable[[], Iterable[Batch]]
    about: str
    apply: Callable[[PyTree, Batch], Any] | None = None

    def shapes(self) -> PyTree:
        """Shapes and dtypes of the parameters."""
        return jax.eval_shape(self.init, jax.random.key(0))[0]


class State(NamedTuple):
    """What a step changes.

    Attributes:
        params: Parameters in use, on their masks.
        optimizer: State of the wrapped optimizer.
        statistics: Statistics of batch norms; empty if the model has none.
    """

    params: PyTree
    optimizer: PyTree
    statistics: PyTree


class Programs(NamedTuple):
    """What a loop calls, compiled.

    Attributes:
        gradient: From parameters, statistics and a batch to the loss with the statistics renewed, and gradients.
        evaluate: As of `Task`.
        update: From parameters, optimizer state and gradients, the first two given away, to the first two.
    """

    gradient: Callable[..., Any]
    evaluate: Callable[..., Any]
    update: Callable[..., Any]

    def step(self, state: State, batch: Batch) -> tuple[State, jax.Array]:
        """The state after an optimizer step, and the loss before it."""
        (loss, statistics), grads = self.gradient(state.params, state.statistics, batch)
        params, optimizer = self.update(state.params, state.optimizer, grads)
        return State(params, optimizer, statistics), loss


class Turn(NamedTuple):
    """A step before which a run goes over to other programs, such as those of a smaller model.

    Attributes:
        step: Which.
        make: From the state to the programs and the state they go on from.
    """

    step: int
    make: Callable[[State], tuple[Programs, State]]


class Point(NamedTuple):
    """A run after so many steps.

    Attributes:
        step: Optimizer steps so far.
        training_loss: Mean over the steps since the point before; NaN at step 0.
        loss: Mean over the test examples.
        score: Fraction of them that is right.
        sparsity: Fraction of zeros in what is pruned.
        state: State of the run.
        programs: Programs that it goes on with.
    """

    step: int
    training_loss: float
    loss: float
    score: float
    sparsity: float
    state: State
    programs: Programs


# What a study measures of a trained model besides its score: triples of an item, a quantity and its value.
Probe = Callable[[Task, SupervisedSettings, core.BaseUpdater, State], Iterable[tuple[str, str, float]]]
TrainRun = Callable[[int], Iterator[Point]]


def initial_state(
    init: Callable[[jax.Array], tuple[PyTree, PyTree]],
    updater: core.BaseUpdater,
    transformation: optax.GradientTransformation,
    key: jax.Array,
) -> State:
    """Where a run starts: parameters and masks of a key; sparse from here on if the updater starts sparse."""
    params_key, masks_key = jax.random.split(key)
    params, statistics = init(params_key)
    seeded = updater.seeded(masks_key)
    optimizer = seeded.wrap_optax(transformation).init(params)
    return State(seeded.pre_forward_update(params, optimizer), optimizer, statistics)


def updating(tx: optax.GradientTransformation) -> Callable[..., Any]:
    """The `update` of `Programs`."""

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(params: PyTree, optimizer: PyTree, grads: PyTree) -> tuple[PyTree, PyTree]:
        updates, optimizer = tx.update(grads, optimizer, params)
        return optax.apply_updates(params, updates), optimizer

    return update


def make_train(task: Task, settings: SupervisedSettings) -> Callable[..., TrainRun]:
    """Compiles what all cells of a study share.

    Args:
        task: Model and data.
        settings: Settings of the study.

    Returns:
        A function from an updater, and a `Turn` if there is one, to a function from a seed to the points of that run.
        The seed decides parameters, batches and random masks; the same seed gives all cells the same parameters and
        batches. A loss that is not finite is a FloatingPointError.
    """
    init, transformation = jax.jit(task.init), settings.transformation()
    gradient = jax.jit(jax.value_and_grad(task.loss, has_aux=True))
    evaluate = jax.jit(task.evaluate)

    def of_cell(updater: core.BaseUpdater, turn: Turn | None = None) -> TrainRun:
        whole = Programs(gradient, evaluate, updating(updater.wrap_optax(transformation)))

        def run(seed: int) -> Iterator[Point]:
            state, programs = initial_state(init, updater, transformation, jax.random.key(seed)), whole
            batches = task.train(seed)
            losses: list[jax.Array] = []
            for step in range(settings.steps + 1):
                if turn is not None and step == turn.step:
                    programs, state = turn.make(state)
                if step % settings.evaluate_every == 0 or step == settings.steps:
                    yield _point(step, losses, programs, task, state)
                    losses = []
                if step < settings.steps:
                    state, loss = programs.step(state, next(batches))
                    losses.append(loss)

        return run

    return of_cell


def _point(step: int, losses: list[jax.Array], programs: Programs, task: Task, state: State) -> Point:
    """Evaluates a run; FloatingPointError if it has diverged."""
    training_loss = float(np.mean([float(loss) for loss in losses])) if losses else math.nan
    sums = [jax.device_get(programs.evaluate(state.params, state.statistics, batch)) for batch in task.test()]
    loss, right, count = (sum(float(of_batch[name]) for of_batch in sums) for name in ("loss", "right", "count"))
    if not math.isfinite(loss) or (losses and not math.isfinite(training_loss)):
        raise FloatingPointError(
            f"the loss after step {step} is {loss} in all on test data, {training_loss} in training"
        )
    zeros = measured_sparsity(state.params, state.optimizer)
    return Point(step, training_loss, loss / count, right / count, zeros, state, programs)


def measured_sparsity(params: PyTree, optimizer: PyTree) -> float:
    """Fraction of zeros in the parameters that have masks; 0 if none has.

    Args:
        params: Parameters in use.
        optimizer: Optimizer state that holds the sparse state.
    """
    masks = core.find_sparse_state(optimizer).masks
    return float(core.summarize_sparsity(params, only_total_sparsity=True, masks=masks)["_total_sparsity"])
