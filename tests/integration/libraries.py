"""The libraries a user may bring, one row each: the same convolutional network with a norm layer and dropout.

Keras stands in a module of its own, `keras_library`: its backend is chosen when it is imported.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import equinox
import haiku
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

from tests.quick import quick_jit

IMAGES = np.random.default_rng(0).normal(size=(8, 6, 6, 4)).astype(np.float32)
LABELS = np.arange(8) % 6


@dataclasses.dataclass(frozen=True, eq=False)
class Library:
    """A model taken apart as that library does it.

    Attributes:
        params: What the optimizer sees.
        rest: Other state, which it never sees: statistics of the norm layer, random keys, counters.
        apply: (params, rest, images) -> logits and the new rest.
        kernels: Path and shape of what is pruned.
        inputs: Axis of the inputs of every kernel, dense and convolutional.
        outputs: Axis of its outputs.
    """

    params: Any
    rest: Any
    apply: Callable[[Any, Any, Any], tuple[Any, Any]]
    kernels: dict[str, tuple[int, ...]]
    inputs: int = -2
    outputs: int = -1


@functools.cache
def flax_linen() -> Library:
    class Network(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            x = linen.relu(
                linen.BatchNorm(use_running_average=False, name="norm")(linen.Conv(8, (3, 3), name="conv")(x))
            )
            x = linen.Dropout(0.1, deterministic=False)(x.mean((1, 2)))
            return linen.Dense(6, name="head")(x)

    network = Network()
    variables = quick_jit(network.init)({"params": jax.random.key(0), "dropout": jax.random.key(1)}, IMAGES)

    def apply(params: Any, rest: Any, images: Any) -> tuple[Any, Any]:
        key, now = jax.random.split(rest["key"])
        variables = {"params": params, "batch_stats": rest["batch_stats"]}
        logits, changed = network.apply(variables, images, rngs={"dropout": now}, mutable=["batch_stats"])
        return logits, {**changed, "key": key}

    return Library(
        params=variables["params"],
        rest={"batch_stats": variables["batch_stats"], "key": jax.random.key(2)},
        apply=apply,
        kernels={"conv/kernel": (3, 3, 4, 8), "head/kernel": (8, 6)},
    )


@functools.cache
def flax_nnx() -> Library:
    class Network(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.conv = nnx.Conv(4, 8, (3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(8, rngs=rngs)
            self.dropout = nnx.Dropout(0.1, rngs=rngs)
            self.head = nnx.Linear(8, 6, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.head(self.dropout(nnx.relu(self.norm(self.conv(x))).mean((1, 2))))

    graph, params, rest = quick_jit(lambda: nnx.split(Network(nnx.Rngs(0)), nnx.Param, ...))()

    def apply(params: Any, rest: Any, images: Any) -> tuple[Any, Any]:
        network = nnx.merge(graph, params, rest, copy=True)
        return network(images), nnx.split(network, nnx.Param, ...)[2]

    kernels = {"conv/kernel": (3, 3, 4, 8), "head/kernel": (8, 6)}
    return Library(params, rest, apply, kernels)


@functools.cache
def dm_haiku() -> Library:
    def network(x: Any) -> Any:
        x = haiku.Conv2D(8, 3, name="conv")(x)
        x = jax.nn.relu(haiku.BatchNorm(True, True, 0.9, name="norm")(x, is_training=True))
        return haiku.Linear(6, name="head")(haiku.dropout(haiku.next_rng_key(), 0.1, x.mean((1, 2))))

    transformed = haiku.transform_with_state(network)
    params, state = quick_jit(transformed.init)(jax.random.key(0), IMAGES)

    def apply(params: Any, rest: Any, images: Any) -> tuple[Any, Any]:
        key, now = jax.random.split(rest["key"])
        logits, state = transformed.apply(params, rest["state"], now, images)
        return logits, {"state": state, "key": key}

    kernels = {"conv/w": (3, 3, 4, 8), "head/w": (8, 6)}
    return Library(params, {"state": state, "key": jax.random.key(2)}, apply, kernels)


class EquinoxNetwork(equinox.Module):
    """With leaves of every kind: functions, integers, a key, a static field."""

    conv: equinox.nn.Conv2d
    norm: equinox.nn.BatchNorm
    dropout: equinox.nn.Dropout
    head: equinox.nn.Linear
    activation: Callable
    version: jax.Array
    key: jax.Array
    name: str = equinox.field(static=True)

    def __init__(self, key: jax.Array) -> None:
        first, second = jax.random.split(key)
        self.conv = equinox.nn.Conv2d(4, 8, 3, padding=1, key=first)
        self.norm = equinox.nn.BatchNorm(8, axis_name="batch", mode="batch")
        self.dropout = equinox.nn.Dropout(0.1)
        self.head = equinox.nn.Linear(8, 6, key=second)
        self.activation, self.name = jax.nn.relu, "network"
        self.version, self.key = jnp.arange(3), jax.random.key(3)

    def __call__(self, x: Any, state: Any, key: jax.Array) -> tuple[Any, Any]:
        x, state = self.norm(self.conv(x), state)
        return self.head(self.dropout(self.activation(x).mean((1, 2)), key=key)), state


@functools.cache
def equinox_network() -> tuple[EquinoxNetwork, Any]:
    return equinox.filter_jit(equinox.nn.make_with_state(EquinoxNetwork))(jax.random.key(0))


@functools.cache
def equinox_() -> Library:
    network, state = equinox_network()
    params, static = equinox.partition(network, equinox.is_inexact_array)
    state = jax.tree.map(lambda leaf: jnp.asarray(leaf, leaf.dtype), state)  # one is weakly typed, but not if restored

    def apply(params: Any, rest: Any, images: Any) -> tuple[Any, Any]:
        key, now = jax.random.split(rest["key"])
        batched = jax.vmap(equinox.combine(params, static), (0, None, 0), (0, None), axis_name="batch")
        channels_first = jnp.moveaxis(images, -1, 1)
        logits, state = batched(channels_first, rest["state"], jax.random.split(now, len(images)))
        return logits, {"state": state, "key": key}

    return Library(
        params=params,
        rest={"state": state, "key": jax.random.key(2)},
        apply=apply,
        kernels={"conv/weight": (8, 4, 3, 3), "head/weight": (6, 8)},
        inputs=1,
        outputs=0,
    )


LIBRARIES: dict[str, Callable[[], Library]] = {
    "Flax Linen": flax_linen,
    "Flax NNX": flax_nnx,
    "Haiku": dm_haiku,
    "Equinox": equinox_,
}
