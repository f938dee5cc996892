"""DQN and its relatives with Haiku networks, as one sparse learner."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from sparse_plugins.core.checks import check_settled
from sparse_plugins.core.layers.channel_groups import ChannelGraph
from sparse_plugins.core.layers.roles import trace_layers
from sparse_plugins.core.layers.shrink import Shrunk
from sparse_plugins.core.trees import PyTree
from sparse_plugins.rl import q_learning
from sparse_plugins.rl.haiku.networks import XAVIER, Torso, q_network
from sparse_plugins.rl.learner import LearnerState, SparseLearner
from sparse_plugins.rl.shrinking import network_of, shrunk_state

__all__ = ["SparseDQN"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SparseDQN(SparseLearner):
    """A `SparseLearner` of action values (DQN) or return distributions (C51), double and dueling if asked for.

    n-step returns and priorities are no options of the agent: the replay sums rewards up, says which discount follows
    them, and weights transitions. `learn` reads a batch with the attributes observation [B, ...], action int32[B],
    reward float32[B], discount float32[B] (0 where the episode ended), next_observation [B, ...] and weight float32[B]
    (0 for a transition not to be learnt from), and gives back {'loss': float32[], 'priorities': float32[B]}.
    `act(state, observations, epsilon)` chooses a random action with probability epsilon, a number or one per
    observation.

    Attributes:
        num_actions: Actions the agent can take.
        torso: From observations to features, e.g. `nature_torso()`.
        double: Choose the next action by the online network.
        dueling: Build values from a state value and advantages.
        atoms: Points of the return distribution; None for action values.
        v_min: The smallest of them.
        v_max: The largest of them.
        loss: Loss of a temporal-difference error e: 'mse' is e^2, 'huber' e^2 / 2 up to 1 and linear beyond, both as in
            Dopamine; None is 'mse'. Return distributions are trained by cross-entropy alone.
        w_init: Initializer of the heads' weights.
        smaller_network: The network without pruned channels, (init, apply); `shrunk` sets it.

    Raises:
        ValueError: If a field has a value that is not allowed, or two exclude each other.

    Example:
        >>> from sparse_plugins.rl import haiku
        >>> agent = haiku.SparseDQN(
        ...     num_actions=2, torso=haiku.mlp_torso((16,)), optimizer=optax.adam(1e-3),
        ...     updater="rigl", sparsity=0.9, total_steps=10_000)
        >>> state = agent.init(jax.random.key(0), jnp.zeros((1, 4)))
        >>> actions, state = agent.act(state, jnp.zeros((3, 4)), 0.1)
        >>> actions.shape
        (3,)

    Source: Mnih et al. (2015); van Hasselt et al. (2016); Wang et al. (2016); Bellemare et al. (2017).
    """

    network: Any = dataclasses.field(init=False, repr=False)
    loss_fn: Callable[..., tuple[jax.Array, Any]] = dataclasses.field(init=False, repr=False)
    act_fn: Callable[..., Any] = dataclasses.field(init=False, repr=False)
    num_actions: int
    torso: Torso
    double: bool = False
    dueling: bool = False
    atoms: int | None = None
    v_min: float | None = None
    v_max: float | None = None
    loss: Literal["mse", "huber"] | None = None
    w_init: Callable[..., jax.Array] = XAVIER
    smaller_network: tuple[Callable[..., PyTree], Callable[..., Any]] | None = None

    def __post_init__(self) -> None:
        self._check_options()
        options = {"dueling": self.dueling, "atoms": self.atoms, "w_init": self.w_init}
        network = q_network(self.num_actions, self.torso, **options)  # type: ignore[arg-type]
        if self.smaller_network is not None:
            network = type(network)(*self.smaller_network)
        for name, value in (("network", network), ("loss_fn", self._loss), ("act_fn", self._act)):
            object.__setattr__(self, name, value)
        super().__post_init__()

    def shrunk(self, state: LearnerState, graph: ChannelGraph) -> tuple[Self, LearnerState]:
        """The agent without the channels that its masks have pruned, which goes on where this one is.

        Its parameters, target network, masks and optimizer state are smaller; masks stay as they are from now on.

        Args:
            state: Its state, after the last change of masks.
            graph: Groups of its channels, `core.channel_graph(agent.network.apply, state.params, observations)`.

        Returns:
            The agent and its state.

        Raises:
            ValueError: If masks are still going to change, no channels can leave, or values would differ.

        Example:
            >>> from sparse_plugins import core
            >>> from sparse_plugins.rl import haiku
            >>> agent = haiku.SparseDQN(
            ...     num_actions=2, torso=haiku.mlp_torso((16,)), optimizer=optax.adam(1e-3), updater=core.NoPruning())
            >>> x = jnp.ones((1, 4))
            >>> graph = core.channel_graph(agent.network.apply, agent.init(jax.random.key(0), x).params, x)
            >>> agent = dataclasses.replace(agent, updater=core.build_updater(
            ...     "static_sparse", sparsity=0.75, structure=core.ChannelGroups(graph)))
            >>> state = agent.init(jax.random.key(0), x)
            >>> small, smaller = agent.shrunk(state, graph)
            >>> sorted(leaf.shape for leaf in jax.tree.leaves(smaller.params))
            [(2,), (4,), (4, 2), (4, 4)]
        """
        check_settled(self.updater, int(state.steps))
        small, smaller = shrunk_state(graph, state)
        return self.with_channels(small), smaller

    def with_channels(self, small: Shrunk) -> Self:
        """The agent with the network that is left, whose masks stay as they are."""
        smaller = network_of(self.network.init, small)
        layers = trace_layers(small.apply, small.params, *small.graph.inputs)
        return dataclasses.replace(self, smaller_network=smaller, updater=small.updater.knowing(layers))

    def values(self, params: PyTree, observations: jax.Array) -> jax.Array:
        """Action values.

        Args:
            params: Parameters of the network, online or target.
            observations: [B, ...].

        Returns:
            float32[B, num_actions]; of return distributions their means.
        """
        out = self.network.apply(params, observations)
        return out if self.atoms is None else q_learning.expected_values(out, self._support)

    @property
    def _support(self) -> jax.Array:
        return jnp.asarray(np.linspace(self.v_min, self.v_max, self.atoms, dtype=np.float32))  # type: ignore[arg-type]

    def _check_options(self) -> None:
        if self.loss not in (None, "mse", "huber"):
            raise ValueError(f"loss is {self.loss!r}; allowed are 'mse' and 'huber'.")
        given = {name: getattr(self, name) for name in ("v_min", "v_max") if getattr(self, name) is not None}
        if self.atoms is None:
            if given:
                raise ValueError(f"{given} bound a return distribution, and there is none; give atoms, e.g. 51, too.")
            return
        if self.loss is not None:
            raise ValueError(f"loss is {self.loss!r} and atoms {self.atoms!r}; distributions have one loss, give none.")
        if len(given) < 2 or not given["v_min"] < given["v_max"]:
            raise ValueError(
                f"atoms is {self.atoms!r}, for returns bounded by {given}; give v_min and v_max, v_min below v_max."
            )

    def _act(self, params: PyTree, key: jax.Array, observations: jax.Array, epsilon: Any) -> jax.Array:
        return q_learning.epsilon_greedy(key, self.values(params, observations), epsilon)

    def _loss(self, params: PyTree, target_params: PyTree, key: jax.Array, batch: Any) -> tuple[jax.Array, Any]:
        out = self.network.apply(params, batch.observation)
        following = self.network.apply(target_params, batch.next_observation)
        selector = self.values(lax.stop_gradient(params), batch.next_observation) if self.double else None
        if self.atoms is None:
            target = q_learning.q_learning_target(batch.reward, batch.discount, following, selector)
            error = q_learning.td_error(out, batch.action, target)
            losses = optax.huber_loss(error) if self.loss == "huber" else jnp.square(error)
            priorities = jnp.abs(error)
        else:
            target = q_learning.categorical_target(batch.reward, batch.discount, following, self._support, selector)
            losses = priorities = q_learning.cross_entropy(out, batch.action, target)
        loss = jnp.mean(batch.weight * losses)
        return loss, {"loss": loss, "priorities": priorities}
