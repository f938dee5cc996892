"""What studies measure of a trained model besides its score: bytes, and spectra of its kernels."""

import functools
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.common.supervised.settings import SupervisedSettings
from experiments.common.supervised.train import State, Task, initial_state
from sparse_plugins import core
from sparse_plugins.core.trees import leaf_names

Probed = Iterator[tuple[str, str, float]]
Array = np.ndarray[Any, Any]


def memory(task: Task, settings: SupervisedSettings, updater: core.BaseUpdater, state: State) -> Probed:
    """Sizes of a run while it trains, and of what it leaves.

    Training: arrays of the state, and the peak of one whole compiled step (arguments, results that do not reuse them,
    and temporaries, as XLA planned them). After: the trained parameters as arrays and as files.
    """
    sparse = core.find_sparse_state(state.optimizer)
    while_training = {
        "parameters": core.export.nbytes(state.params),
        "optimizer": core.export.nbytes(sparse.inner_state),
        "masks": core.export.nbytes(sparse.masks),
        "dense weights behind": core.export.nbytes(sparse.dense_params),
    }
    yield from ((item, "state, kB", value / 1000) for item, value in while_training.items())
    yield "one step", "peak, kB", step_peak(task, settings, updater) / 1000
    yield from ((item, "after training, kB", value / 1000) for item, value in _exported(state).items())


@functools.lru_cache(maxsize=1)
def step_peak(task: Task, settings: SupervisedSettings, updater: core.BaseUpdater) -> int:
    """Bytes that XLA plans for one whole step of training, compiled as one program that reuses its arguments.

    Args:
        task: Model and data.
        settings: Settings of the study.
        updater: Updater of the cell.
    """
    transformation = settings.transformation()
    tx = updater.wrap_optax(transformation)

    def step(state: State, batch: Any) -> State:
        (_, statistics), grads = jax.value_and_grad(task.loss, has_aux=True)(state.params, state.statistics, batch)
        updates, optimizer = tx.update(grads, state.optimizer, state.params)
        return State(optax.apply_updates(state.params, updates), optimizer, statistics)

    first = functools.partial(initial_state, task.init, updater, transformation)
    shapes = jax.eval_shape(lambda: (first(jax.random.key(0)), next(task.train(0))))
    plan: Any = jax.jit(step, donate_argnums=0).lower(*shapes).compile().memory_analysis()
    fresh = plan.output_size_in_bytes - plan.alias_size_in_bytes
    return int(plan.argument_size_in_bytes + fresh + plan.temp_size_in_bytes)


def _exported(state: State) -> dict[str, int]:
    masks = core.find_sparse_state(state.optimizer).masks
    masks = core.pack_masks(state.params, masks)
    with tempfile.TemporaryDirectory() as folder:
        dense, deflated = Path(folder, "dense.npz"), Path(folder, "deflated.npz")
        arrays: dict[str, Any] = dict(
            zip(leaf_names(state.params), map(np.asarray, jax.tree.leaves(state.params)), strict=True)
        )
        np.savez(dense, **arrays)
        np.savez_compressed(deflated, **arrays)
        save = lambda name, **how: core.export.save_sparse(Path(folder, name), state.params, masks, **how)  # noqa: E731
        return {
            "arrays, dense": core.export.nbytes(state.params),
            "arrays, BCOO": core.export.nbytes(core.export.to_bcoo(state.params, masks)),
            "file, dense": dense.stat().st_size,
            "file, dense deflated": deflated.stat().st_size,
            "file, sparse": save("sparse.npz"),
            "file, sparse deflated": save("small.npz", compress=True),
        }


def spectra(task: Task, settings: SupervisedSettings, updater: core.BaseUpdater, state: State) -> Probed:
    """Stable and effective rank of every kernel that may be pruned, as a matrix [inputs, outputs]."""
    for name, leaf in zip(leaf_names(state.params), jax.tree.leaves(state.params), strict=True):
        if task.prunable(tuple(name.split("/")), leaf):
            values = np.linalg.svd(np.asarray(leaf, np.float64).reshape(-1, leaf.shape[-1]), compute_uv=False)
            item = name.removesuffix("/kernel")
            yield item, "stable rank", stable_rank(values)
            yield item, "effective rank", effective_rank(values)
            yield item, "kept", float(jnp.mean(leaf != 0))


def stable_rank(values: Array) -> float:
    """Sum of the squares of singular values, divided by the largest square; 0 of a matrix of zeros.

    Args:
        values: float [n], the largest first.

    Example:
        >>> stable_rank(np.array([2.0, 2.0, 0.0]))
        2.0

    Source: Rudelson and Vershynin, Sampling from Large Matrices (2007).
    """
    return float(np.sum(np.square(values)) / np.square(values[0])) if values[0] > 0 else 0.0


def effective_rank(values: Array) -> float:
    """The exponential of the entropy of the singular values, taken as shares of their sum; 0 of a matrix of zeros.

    Args:
        values: float [n], 0 or more.

    Example:
        >>> round(effective_rank(np.array([3.0, 3.0, 3.0, 0.0])), 6)
        3.0

    Source: Roy and Vetterli, The Effective Rank (2007).
    """
    shares = values[values > 0] / np.sum(values[values > 0])
    return math.exp(-float(np.sum(shares * np.log(shares)))) if len(shares) else 0.0
