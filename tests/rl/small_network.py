"""A small network whose units are recycled, trained for two steps so that no moment in use is 0."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparse_plugins import core
from sparse_plugins.rl.plasticity.redo import recycle_inside_mask, recycle_into_growth

OPTIMIZERS = {
    "adam": optax.adam(0.1),
    "clip and adam": optax.chain(optax.clip(1.0), optax.adam(0.1)),
    "adamw": optax.adamw(0.1),
    "rmsprop": optax.rmsprop(0.1, momentum=0.9),
    "sgd": optax.sgd(0.1, momentum=0.9),
}
HALF = functools.partial(core.uniform, sparsity=0.5)
STATIC = core.StaticRandomSparse(sparsity_distribution_fn=HALF)
GRAPH = {"conv": ["first"], "first": ["second"], "second": ["out"]}


def network(seed: int, scale: float = 1.0) -> dict:
    """One convolution of 2x2 over 3x3 pictures of 2 channels, its maps laid out flat, two hidden layers, one output."""
    shapes = {"conv": (2, 2, 2, 3), "first": (12, 5), "second": (5, 4), "out": (4, 2)}
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return {
        name: {"kernel": scale * jax.random.normal(key, shape), "bias": jnp.full(shape[-1], 0.1 * scale)}
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


@jax.jit
def forward(params: dict, pictures: jax.Array) -> tuple[dict, jax.Array]:
    layer = lambda name, x: jax.nn.relu(x @ params[name]["kernel"] + params[name]["bias"][None])  # noqa: E731
    maps = jax.lax.conv_general_dilated(
        pictures, params["conv"]["kernel"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    hidden = {"conv": jax.nn.relu(maps + params["conv"]["bias"][None, None, None])}
    hidden["first"] = layer("first", hidden["conv"].reshape(len(pictures), -1))
    hidden["second"] = layer("second", hidden["first"])
    return hidden, hidden["second"] @ params["out"]["kernel"] + params["out"]["bias"][None]


PICTURES = jax.random.normal(jax.random.key(9), (6, 3, 3, 2))


def trained(optimizer: optax.GradientTransformation, seed: int = 0, updater=STATIC) -> tuple[dict, optax.OptState]:
    """A network after two steps, none of whose moments is 0 within the mask."""
    params = network(seed)
    state = optimizer.init(params)
    params = updater.pre_forward_update(params, state)
    for step in range(2):
        grads = jax.tree.map(lambda p, s=step: jnp.ones_like(p) * (1.0 + s), params)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def kept_counts(params: dict, state: optax.OptState) -> dict[str, int]:
    masks = core.unpack_masks(params, core.find_sparse_state(state).masks)
    return {name: int(masks[name]["kernel"].sum()) for name in params}


def same_bits(tree, expected) -> bool:
    return jax.tree.structure(tree) == jax.tree.structure(expected) and all(
        np.array_equal(a, b) for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True)
    )


def units(**dead: list[int]) -> dict[str, jax.Array]:
    sizes = {"conv": 3, "first": 5, "second": 4}
    return {name: jnp.zeros(sizes[name], bool).at[jnp.array(which, int)].set(True) for name, which in dead.items()}


def silence(params: dict, dead: dict[str, jax.Array]) -> dict:
    """The network with units that never fire: the inputs of their layer can't outweigh the bias."""
    for name, which in dead.items():
        params = {**params, name: {**params[name], "bias": jnp.where(which, -1e6, params[name]["bias"])}}
    return params


def recycle(into: str, params: dict, state: optax.OptState, dead: dict, optimizer, updater=STATIC, grads=None):
    if into == "mask":
        return recycle_inside_mask(params, state, dead, GRAPH, fresh_params=network(1), optimizer=optimizer)
    return recycle_into_growth(
        params, state, dead, GRAPH, fresh_params=network(1), optimizer=optimizer, updater=updater, key=3, grads=grads
    )


ADAM = STATIC.wrap_optax(optax.adam(0.1))
