"""Parallelised Q-learning with Haiku networks, as one sparse learner."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sparse_plugins.core.trees import PyTree
from sparse_plugins.rl import q_learning
from sparse_plugins.rl.haiku.networks import LECUN, Torso, q_network
from sparse_plugins.rl.learner import SparseLearner

__all__ = ["SparsePQN"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SparsePQN(SparseLearner):
    """A `SparseLearner` of action values without a target network, for `rl.FusedTrainer` with an `rl.PQNConfig`.

    `learn` reads a `TargetBatch` and gives back {'loss': float32[]}; `act(state, observations, epsilon)` chooses a
    random action with probability epsilon. What keeps such learning stable is a torso with `layer_norm=True`.

    Attributes:
        num_actions: Actions the agent can take.
        torso: From observations to features, e.g. `minatar_torso(layer_norm=True)`.
        w_init: Initializer of the head's weights.

    Example:
        >>> import optax
        >>> from sparse_plugins import core, rl
        >>> from sparse_plugins.rl import haiku
        >>> learner = haiku.SparsePQN(
        ...     num_actions=2,
        ...     torso=haiku.mlp_torso((16,), layer_norm=True),
        ...     optimizer=optax.radam(5e-4),
        ...     updater=core.build_updater("static_sparse", sparsity=0.9))
        >>> config = rl.PQNConfig(num_envs=4, vector_steps=8, minibatches=4, epsilon_decay=100)
        >>> trainer = rl.FusedTrainer(rl.jax_environments.gymnax_environment("CartPole-v1"), learner, config)
        >>> state, metrics = trainer.run(trainer.init(jax.random.split(jax.random.key(0), 3)), iterations=4)
        >>> trainer.environment_steps(state), metrics.loss.shape
        (128, (3,))

    Source: Gallici et al., Simplifying Deep Temporal Difference Learning (2024).
    """

    network: Any = dataclasses.field(init=False, repr=False)
    loss_fn: Callable[..., tuple[jax.Array, Any]] = dataclasses.field(init=False, repr=False)
    act_fn: Callable[..., Any] = dataclasses.field(init=False, repr=False)
    num_actions: int
    torso: Torso
    target_period: int | None = None
    w_init: Callable[..., jax.Array] = LECUN

    def __post_init__(self) -> None:
        network = q_network(self.num_actions, self.torso, w_init=self.w_init)
        for name, value in (("network", network), ("loss_fn", self._loss), ("act_fn", self._act)):
            object.__setattr__(self, name, value)
        super().__post_init__()

    def values(self, params: PyTree, observations: jax.Array) -> jax.Array:
        """Action values.

        Args:
            params: Parameters of the network.
            observations: [B, ...].

        Returns:
            float32[B, num_actions].
        """
        return self.network.apply(params, observations)

    def _act(self, params: PyTree, key: jax.Array, observations: jax.Array, epsilon: Any) -> jax.Array:
        return q_learning.epsilon_greedy(key, self.values(params, observations), epsilon)

    def _loss(self, params: PyTree, target_params: PyTree, key: jax.Array, batch: Any) -> tuple[jax.Array, Any]:
        error = q_learning.td_error(self.values(params, batch.observation), batch.action, batch.target)
        loss = jnp.mean(batch.weight * 0.5 * jnp.square(error))
        return loss, {"loss": loss}
