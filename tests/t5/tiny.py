"""A model of the shapes and axis names of T5X, small, and the train state that T5X makes of it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import unflatten_dict
from jax.sharding import PartitionSpec

from sparse_plugins import t5
from tests.quick import quick_jit
from tests.t5 import t5x_stand_in

LAYERS: dict[str, tuple[tuple[int, ...], PartitionSpec]] = {
    "encoder/attention/query/kernel": ((16, 24), PartitionSpec("embed", "joined_kv")),
    "encoder/attention/out/kernel": ((24, 16), PartitionSpec("joined_kv", "embed")),
    "encoder/norm/scale": ((16,), PartitionSpec("embed")),
    "encoder/relpos_bias/rel_embedding": ((4, 32), PartitionSpec("heads", "relpos_buckets")),
    "token_embedder/embedding": ((64, 16), PartitionSpec("vocab", "embed")),
}
AXES = unflatten_dict({name: axes for name, (_, axes) in LAYERS.items()}, sep="/")
RULES = {"vocab": "model", "joined_kv": "model", "heads": "model", "embed": None, "relpos_buckets": None}
WINDOW = {"update_freq": 2, "update_start_step": 1, "update_end_step": 3}


def parameters(seed: int = 0) -> Any:
    generator = np.random.default_rng(seed)
    draw = {name: generator.normal(size=shape).astype(np.float32) for name, (shape, _) in LAYERS.items()}
    return unflatten_dict(draw, sep="/")


def updater(pruner: str, **settings: Any) -> Any:
    return t5.create_updater_from_config(pruner, **{"sparsity": 0.75, "drop_fraction": 0.5, **settings})


def optimizer(pruner: str, dense: Any, **settings: Any) -> t5.SparseOptimizer:
    return t5.SparseOptimizer(dense, updater(pruner, **settings))


def create(optimizer_def: Any, params: Any = None) -> Any:
    variables = {"params": parameters() if params is None else params, "params_axes": AXES}
    return t5x_stand_in.FlaxOptimTrainState.create(optimizer_def, variables)


def train_state(optimizer_def: Any, params: Any = None) -> Any:
    """As T5X makes it: under jit, from the model's variables."""
    return quick_jit(functools.partial(create, optimizer_def, params))()


def train_state_shape(optimizer_def: Any) -> Any:
    """What T5X partitions."""
    return jax.eval_shape(functools.partial(create, optimizer_def))


def gradients(params: Any) -> Any:
    """Of a loss that pulls every weight to a place of its own; what is pruned has one, too."""
    return jax.tree.map(lambda p: p - jnp.sin(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), params)


@quick_jit
def train_step(state: Any) -> Any:
    return state.apply_gradient(gradients(state.params), learning_rate=0.1)


CASES: dict[str, Any] = {
    "magnitude, adam": lambda: optimizer("magnitude", optax.adam(0.1), **WINDOW),
    "rigl, Adafactor": lambda: optimizer("rigl", t5x_stand_in.Adafactor(), **WINDOW),
    "magnitude_ste, momentum": lambda: optimizer("magnitude_ste", optax.sgd(0.1, momentum=0.9), dist_type="uniform"),
    "static_sparse, sgd, unpacked": lambda: optimizer("static_sparse", optax.sgd(0.1), use_packed_masks=False),
    "magnitude, sgd, masks in zeros": lambda: optimizer(
        "magnitude", optax.sgd(0.1), use_packed_masks="zeros", **WINDOW
    ),
}


@functools.cache
def run(case: str) -> list[Any]:
    """Train states of five steps; compiled once for all tests."""
    states = [train_state(CASES[case]())]
    for _ in range(4):
        states.append(train_step(states[-1]))
    return states


def definition(state: Any) -> Any:
    return state._optimizer.optimizer_def
