"""Weights of learners and servers of this library: DQN, one like PQN, and federated averaging."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.benchmarks.fed_round import ADAM, MODELS, random_clients
from sparse_plugins import core, fed, rl
from sparse_plugins.rl import haiku

fedjax = fed.import_fedjax()

DQN = rl.FusedConfig(num_envs=8, updates=4, batch_size=64, n_step=5, warm_up=1_000, epsilon_decay=10_000)
# Many environments, no target network, and no memory beyond the last steps.
LIKE_PQN = rl.FusedConfig(num_envs=128, capacity=512, updates=4, batch_size=128, warm_up=1_024, epsilon_decay=10_000)


def sparse(sparsity: float) -> core.BaseUpdater:
    """Static masks, by an ERK budget."""
    return core.StaticRandomSparse(sparsity_distribution_fn=functools.partial(core.erk, sparsity=sparsity))


def agent_weights(
    config: rl.FusedConfig, updater: core.BaseUpdater, target_period: int, dtype: Any, steps: int, learning_rate: float
) -> Iterator[Any]:
    """CartPole's weights after each iteration of a few optimizer steps."""
    game = rl.jax_environments.gymnax_environment("CartPole-v1")
    agent = haiku.SparseDQN(
        num_actions=game.num_actions,
        torso=haiku.mlp_torso((256, 256)),
        optimizer=optax.adam(learning_rate, eps=3.125e-4),
        updater=updater,
        target_period=target_period,
    )
    trainer = rl.FusedTrainer(game, agent, config)
    state = trainer.init(jax.random.split(jax.random.key(0), 1))
    for number in range(steps + 1):
        yield jax.device_get(jax.tree.map(lambda leaf: leaf[0].astype(dtype), state.learner.params))
        state, _ = trainer.run(state, 50 if number == 0 else 1)


def server_weights(sparsity: float | None, rounds: int, dtype: Any) -> Iterator[Any]:
    """A federated server's weights after each round of ten clients."""
    server = fedjax.optimizers.create_optimizer_from_optax(ADAM)
    if sparsity is not None:
        server = fed.sparse_server_optimizer(ADAM, sparse(sparsity))
    model = MODELS["dense"](only_digits=False)
    algorithm = fedjax.algorithms.fed_avg.federated_averaging(
        fedjax.model_grad(model),
        client_optimizer=fedjax.optimizers.sgd(10**-1.5),
        server_optimizer=server,
        client_batch_hparams=fedjax.ShuffleRepeatBatchHParams(batch_size=20, num_epochs=1, seed=0),
    )
    clients, state = random_clients(10, 100), algorithm.init(model.init(jax.random.PRNGKey(0)))
    for _ in range(rounds + 1):
        state, _ = algorithm.apply(state, clients)
        yield jax.device_get(jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), state.params))
