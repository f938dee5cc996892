"""A learner of toy size on random transitions, run as one compiled loop that reports every step."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparse_plugins import core
from sparse_plugins.core.masks import map_pruned
from sparse_plugins.rl import LearnerState, SparseLearner
from tests.quick import quick_jit

STEPS, ROWS = 20, 8
RAMP = {"update_start_step": 4, "update_end_step": 16, "update_freq": 4}
OPTIMIZER = optax.adam(0.02)


class Transitions(NamedTuple):
    observation: Any
    action: Any
    reward: Any
    discount: Any
    next_observation: Any
    weight: Any


def transitions(shape: tuple[int, ...], num_actions: int = 3, steps: tuple[int, ...] = (STEPS,)) -> Transitions:
    """Random ones, [steps, ROWS, ...]."""
    random, size = np.random.default_rng(0), (*steps, ROWS)
    normal = lambda: random.normal(size=(*size, *shape)).astype(np.float32)  # noqa: E731
    return Transitions(
        normal(),
        random.integers(0, num_actions, size).astype(np.int32),
        random.normal(size=size).astype(np.float32),
        np.full(size, 0.9, np.float32),
        normal(),
        np.ones(size, np.float32),
    )


BATCHES = transitions((6,))


def init(key: jax.Array, x: jax.Array) -> dict:
    shapes = {"hidden": (x.shape[-1], 8), "out": (8, 3)}
    keys = jax.random.split(key, len(shapes))
    return {
        name: {"w": jax.random.normal(key_of_layer, shape) / 2, "b": jnp.zeros(shape[1])}
        for key_of_layer, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def apply(params: dict, x: jax.Array) -> jax.Array:
    hidden = jax.nn.relu(x @ params["hidden"]["w"] + params["hidden"]["b"][None])
    return hidden @ params["out"]["w"] + params["out"]["b"][None]


def loss(params: dict, target: dict, key: jax.Array, batch: Transitions) -> tuple[jax.Array, dict]:
    following = batch.reward + batch.discount * jnp.max(apply(target, batch.next_observation), axis=1)
    chosen = jnp.take_along_axis(apply(params, batch.observation), batch.action[:, None], axis=1)[:, 0]
    value = jnp.mean((chosen - following) ** 2)
    return value, {"loss": value}


def greedy(params: dict, key: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.argmax(apply(params, x), axis=-1)


def updater_of(pruner: str, sparsity: float = 0.5, **options: Any) -> core.BaseUpdater:
    return core.create_updater_from_config(algorithm=pruner, sparsity=sparsity, **{**RAMP, **options})


def learner_of(updater: core.BaseUpdater, **options: Any) -> SparseLearner:
    settings = {"network": (init, apply), "loss_fn": loss, "act_fn": greedy, "optimizer": OPTIMIZER}
    return SparseLearner(**{**settings, "updater": updater, "target_period": 5, **options})


def outside(params: Any, masks: Any) -> jax.Array:
    """How many pruned weights are not exactly 0."""
    kept = core.unpack_masks(params, masks)
    count = lambda param, mask: jnp.count_nonzero(jnp.where(mask, 0, param))  # noqa: E731
    return sum(jax.tree.leaves(map_pruned(count, params, kept, otherwise=lambda param: 0)))


class Report(NamedTuple):
    """One entry per state, the first included.

    Attributes:
        online: Pruned weights that are not 0.
        target: The same of the target network.
        masks: The masks as they are stored.
    """

    online: Any
    target: Any
    masks: Any


def report(state: LearnerState) -> Report:
    masks = state.sparse_state.masks
    return Report(outside(state.params, masks), outside(state.target_params, masks), masks)


def run(learner: SparseLearner, key: jax.Array, batches: Any = BATCHES) -> tuple[LearnerState, Report, Any]:
    """The last state, what was reported of each state, and what each step returned."""
    first = learner.init(key, jax.tree.leaves(batches)[0][0])

    def step(state: LearnerState, batch: Any) -> tuple[LearnerState, tuple[Report, Any]]:
        state, extra = learner.learn(state, batch)
        return state, (report(state), extra)

    last, (reports, extra) = jax.lax.scan(step, first, batches)
    joined = jax.tree.map(lambda start, rest: jnp.concatenate([jnp.asarray(start)[None], rest]), report(first), reports)
    return last, joined, extra


# Compiling is what takes the time here.


def compiled(learner: SparseLearner) -> Any:
    return quick_jit(functools.partial(run, learner))


def mask_changes(reports: Report) -> int:
    """Steps after which a mask differs from the one before."""
    leaves = [np.asarray(leaf).reshape(len(leaf), -1) for leaf in jax.tree.leaves(reports.masks)]
    flat = np.concatenate(leaves, axis=1)
    return int(np.count_nonzero((flat[1:] != flat[:-1]).any(axis=1)))


def assert_same_bits(left: Any, right: Any) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)
