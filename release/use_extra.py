"""Uses what an extra is for, in an environment that holds nothing else: `python use_extra.py EXTRA`."""

import functools
import importlib.metadata
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparse_plugins
from sparse_plugins import core

PARAMS = {"kernel": np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32), "bias": np.zeros(4, np.float32)}


def updater() -> core.BaseUpdater:
    return core.SteMagnitudePruning(sparsity_distribution_fn=functools.partial(core.uniform, sparsity=0.75))


def use_core() -> None:
    tx = updater().wrap_optax(optax.adam(1e-3))
    params = jax.tree.map(jnp.asarray, PARAMS)
    updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
    assert int(jnp.count_nonzero(optax.apply_updates(params, updates)["kernel"])) == 8


def use_keras() -> None:
    # In `all` before Dopamine, with which Keras comes too, and on TensorFlow.
    from sparse_plugins.keras import SparseOptimizer  # isort: split
    import keras

    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="head")], name="net")
    model.compile(optimizer=SparseOptimizer(updater(), optax.adam(1e-3)), loss="mse")
    model.fit(np.ones((4, 8)), np.ones((4, 4)), verbose=0)
    assert int(np.count_nonzero(model.get_layer("head").kernel)) == 8


def use_fed() -> None:
    from sparse_plugins import fed
    from sparse_plugins.fed.fedjax import datasets

    fed.sparse_server_optimizer(optax.adam(1e-3), updater()).init(PARAMS)
    datasets.load("digits")
    with tempfile.TemporaryDirectory() as folder:
        fed.Checkpoints(folder).save(1, PARAMS)


def use_flower() -> None:
    from flwr.clientapp import ClientApp
    from flwr.serverapp.strategy import FedAvg

    from sparse_plugins.fed import flower

    flower.SparseStrategy(FedAvg(), updater())
    ClientApp(mods=[flower.sparse_mod])


def use_dopamine() -> None:
    from sparse_plugins.rl import dopamine as sparse  # isort: split
    from dopamine.discrete_domains import gym_lib

    sparse.create_minatar_environment("breakout", seed=0).reset()
    gym_lib.create_gym_environment("CartPole")


def use_haiku() -> None:
    from sparse_plugins.rl import haiku

    agent = haiku.SparseDQN(num_actions=2, torso=haiku.mlp_torso((16,)), optimizer=optax.adam(1e-3), updater=updater())
    agent.init(jax.random.key(0), jnp.zeros((1, 4)))


def use_atari() -> None:
    from sparse_plugins.rl.environments import atari

    atari.AtariVector("Pong", 2, seed=0)


def use_gymnax() -> None:
    from sparse_plugins.rl.environments.gymnax_games import gymnax_environment

    game = gymnax_environment("CartPole-v1")
    state, _ = game.reset(jax.random.key(0))
    game.step(jax.random.key(1), state, 0)


def use_vision() -> None:
    from flax import nnx

    from sparse_plugins import vision

    vision.TrainState.create(apply_fn=None, params=PARAMS, tx=optax.adam(1e-3), updater=updater())
    vision.Optimizer(nnx.Linear(8, 4, rngs=nnx.Rngs(0)), optax.adam(1e-3), updater())


def use_t5() -> None:
    from sparse_plugins import t5

    t5.create_updater_from_config(sparsity=0.5)


def use_zstd() -> None:
    from sparse_plugins import fed

    masks = {"kernel": (PARAMS["kernel"] > 0).astype(np.uint8)}
    values = {"kernel": PARAMS["kernel"] * masks["kernel"]}
    payload = fed.encode(masks, values, zstd=True)
    np.testing.assert_array_equal(fed.decode(payload, values).values["kernel"], values["kernel"])


def use_all() -> None:
    for extra, use in USES.items():
        if extra != "all":
            use()


USES = {name.removeprefix("use_"): use for name, use in list(globals().items()) if name.startswith("use_")}

if __name__ == "__main__":
    place = Path(sparse_plugins.__file__)
    assert Path(sys.prefix) in place.parents, f"{place} is not the wheel"
    USES[sys.argv[1]]()
    releases = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "numpy", "optax"))
    print(f"{sys.argv[1]}: {sparse_plugins.__version__} works from the wheel with {releases}")
