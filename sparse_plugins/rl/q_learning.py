"""What values and return distributions are trained towards: one-step, n-step and double Q-learning, and C51.

Everything works on a batch along the first axis. Which n steps a reward sums up and what discount follows it is settled
where transitions are stored; here both are given.
"""

import jax
import jax.numpy as jnp
from jax import lax

__all__ = [
    "categorical_projection",
    "categorical_target",
    "cross_entropy",
    "epsilon_greedy",
    "expected_values",
    "lambda_returns",
    "q_learning_target",
    "td_error",
]


def q_learning_target(
    reward: jax.Array, discount: jax.Array, next_values: jax.Array, selector: jax.Array | None = None
) -> jax.Array:
    """What the value of the chosen action should be: reward + discount * value of the next state.

    Args:
        reward: float32[B], summed over the steps of the transition.
        discount: float32[B], of the state after them; 0 where the episode ended.
        next_values: float32[B, A], action values of that state, usually by the target network.
        selector: float32[B, A], values by which the next action is chosen: those of the online network for double
            Q-learning. By default `next_values`.

    Returns:
        float32[B]; no gradient flows through it.

    Raises:
        ValueError: If the shapes are not those.

    Example:
        >>> one, values = jnp.ones(1), jnp.array([[3.0, 5.0]])
        >>> q_learning_target(one, 0.5 * one, values).tolist()
        [3.5]
        >>> q_learning_target(one, 0.5 * one, values, selector=-values).tolist()
        [2.5]

    Source: Watkins (1989); van Hasselt et al., Deep Reinforcement Learning with Double Q-learning (2016).
    """
    selector = next_values if selector is None else selector
    _check("next_values", next_values, 2, reward=(reward, 1), discount=(discount, 1), selector=(selector, 2))
    return lax.stop_gradient(reward + discount * _of_action(next_values, jnp.argmax(selector, axis=1)))


def lambda_returns(reward: jax.Array, discount: jax.Array, next_values: jax.Array, trace: float) -> jax.Array:
    """Returns over all lengths, longer ones weighing less: Q(lambda) of Peng along a piece of experience.

    Args:
        reward: float32[T, B], of consecutive steps.
        discount: float32[T, B], of the state after each; 0 where the episode ended.
        next_values: float32[T, B], value of the best action in the state after each.
        trace: Weight of the next step's return against the value of its state, in [0, 1]; 0 is one-step Q-learning.

    Returns:
        float32[T, B]; no gradient flows through it.

    Raises:
        ValueError: If the shapes are not those.

    Example:
        >>> ones = jnp.ones((3, 1))
        >>> lambda_returns(ones, 0.5 * ones, 4.0 * ones, trace=0.0)[:, 0].tolist()
        [3.0, 3.0, 3.0]
        >>> lambda_returns(ones, 0.5 * ones, 4.0 * ones, trace=1.0)[:, 0].tolist()
        [2.25, 2.5, 3.0]

    Source: Peng and Williams, Incremental Multi-Step Q-Learning (1996); Gallici et al. (2024).
    """
    _check("next_values", next_values, 2, reward=(reward, 2), discount=(discount, 2))

    def step(following: jax.Array, at: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        reward, discount, value = at
        whole = reward + discount * ((1.0 - trace) * value + trace * following)
        return whole, whole

    return lax.stop_gradient(lax.scan(step, next_values[-1], (reward, discount, next_values), reverse=True)[1])


def epsilon_greedy(key: jax.Array, values: jax.Array, epsilon: jax.typing.ArrayLike) -> jax.Array:
    """The best action, or now and then any.

    Args:
        key: JAX key.
        values: float32[B, A], action values.
        epsilon: Probability of a random action, a number or one per row.

    Returns:
        int32[B].

    Example:
        >>> epsilon_greedy(jax.random.key(0), jnp.array([[0.0, 1.0], [1.0, 0.0]]), 0.0).tolist()
        [1, 0]
    """
    greedy = jnp.argmax(values, axis=1).astype(jnp.int32)
    coin_key, action_key = jax.random.split(key)
    explores = jax.random.uniform(coin_key, greedy.shape) < epsilon
    return jnp.where(explores, jax.random.randint(action_key, greedy.shape, 0, values.shape[1]), greedy)


def td_error(values: jax.Array, action: jax.Array, target: jax.Array) -> jax.Array:
    """How far the value of the chosen action lies below its target.

    Args:
        values: float32[B, A], action values.
        action: int32[B], the action of each transition.
        target: float32[B], see `q_learning_target`.

    Returns:
        float32[B]: target - value.

    Raises:
        ValueError: If the shapes are not those.

    Example:
        >>> td_error(jnp.array([[3.0, 5.0]]), jnp.array([1]), jnp.array([7.0])).tolist()
        [2.0]
    """
    _check("values", values, 2, action=(action, 1), target=(target, 1))
    return target - _of_action(values, action)


def expected_values(logits: jax.Array, support: jax.Array) -> jax.Array:
    """Action values of return distributions.

    Args:
        logits: float32[B, A, N], unnormalized log probabilities.
        support: float32[N], the return that each of them stands for.

    Returns:
        float32[B, A].

    Example:
        >>> expected_values(jnp.zeros((1, 1, 3)), jnp.array([0.0, 1.0, 5.0])).tolist()
        [[2.0]]
    """
    return jnp.sum(jax.nn.softmax(logits) * support[None, None], axis=-1)


def categorical_projection(returns: jax.Array, probabilities: jax.Array, support: jax.Array) -> jax.Array:
    """Moves distributions onto a fixed support: every return gives its probability to its two neighbours there.

    Between the ends of the support that keeps the mean; what lies beyond them goes to the end.

    Args:
        returns: float32[B, M], in any order.
        probabilities: float32[B, M], of each of them.
        support: float32[N], ascending, N >= 2.

    Returns:
        float32[B, N], probabilities on the support.

    Raises:
        ValueError: If the shapes are not those.

    Example:
        >>> categorical_projection(jnp.array([[0.25, 9.0]]), jnp.array([[0.5, 0.5]]), jnp.arange(3.0)).tolist()
        [[0.375, 0.125, 0.5]]

    Source: Bellemare et al., A Distributional Perspective on Reinforcement Learning (2017); Rowland et al. (2018).
    """
    if jnp.ndim(support) != 1 or jnp.size(support) < 2:
        raise ValueError(f"support has shape {jnp.shape(support)}; give two or more returns along one axis.")
    _check("returns", returns, 2, probabilities=(probabilities, 2))
    below, above = (
        jnp.pad(jnp.diff(support), side, constant_values=jnp.inf)[None, :, None] for side in ((1, 0), (0, 1))
    )
    offset = jnp.clip(returns, support[0], support[-1])[:, None, :] - support[None, :, None]
    share = jnp.clip(1.0 - jnp.maximum(-offset / below, offset / above), 0.0, 1.0)
    return jnp.sum(share * probabilities[:, None, :], axis=-1)


def categorical_target(
    reward: jax.Array,
    discount: jax.Array,
    next_logits: jax.Array,
    support: jax.Array,
    selector: jax.Array | None = None,
) -> jax.Array:
    """What the return distribution of the chosen action should be.

    Args:
        reward: float32[B], summed over the steps of the transition.
        discount: float32[B], of the state after them; 0 where the episode ended.
        next_logits: float32[B, A, N], return distributions of that state, usually by the target network.
        support: float32[N], ascending.
        selector: float32[B, A], values by which the next action is chosen: those of the online network for double
            Q-learning. By default the means of `next_logits`.

    Returns:
        float32[B, N], probabilities; no gradient flows through them.

    Raises:
        ValueError: If the shapes are not those.

    Example:
        >>> target = categorical_target(jnp.ones(1), jnp.ones(1), jnp.array([[[99.0, 0.0, 0.0]]]), jnp.arange(3.0))
        >>> target.tolist()
        [[0.0, 1.0, 0.0]]

    Source: Bellemare et al., A Distributional Perspective on Reinforcement Learning (2017).
    """
    selector = expected_values(next_logits, support) if selector is None else selector
    _check("next_logits", next_logits, 3, reward=(reward, 1), discount=(discount, 1), selector=(selector, 2))
    probabilities = jax.nn.softmax(_of_action(next_logits, jnp.argmax(selector, axis=1)))
    returns = reward[:, None] + discount[:, None] * support[None, :]
    return lax.stop_gradient(categorical_projection(returns, probabilities, support))


def cross_entropy(logits: jax.Array, action: jax.Array, target: jax.Array) -> jax.Array:
    """Cross-entropy between the target and the return distribution of the chosen action.

    Args:
        logits: float32[B, A, N], unnormalized log probabilities.
        action: int32[B], the action of each transition.
        target: float32[B, N], see `categorical_target`.

    Returns:
        float32[B], in nats.

    Raises:
        ValueError: If the shapes are not those.

    Example:
        >>> float(cross_entropy(jnp.zeros((1, 1, 2)), jnp.array([0]), jnp.array([[0.5, 0.5]]))[0])
        0.693...
    """
    _check("logits", logits, 3, action=(action, 1))
    chosen = jax.nn.log_softmax(_of_action(logits, action))
    _check("the logits of an action", chosen, 2, target=(target, 2))
    return -jnp.sum(target * chosen, axis=-1)


def _of_action(table: jax.Array, action: jax.Array) -> jax.Array:
    """[B, ...] out of [B, A, ...]."""
    index = action.reshape(-1, *[1] * (table.ndim - 1))
    return jnp.take_along_axis(table, index, axis=1)[:, 0]


def _check(name: str, table: jax.Array, axes: int, **others: tuple[jax.Array, int]) -> None:
    """A reward of shape [B, 1] would be spread to [B, B] in silence."""
    shape = jnp.shape(table)
    if len(shape) != axes:
        raise ValueError(f"{name} has shape {shape}; give {axes} axes, the batch first.")
    for other, (value, common) in others.items():
        if jnp.shape(value) != shape[:common]:
            raise ValueError(f"{other} has shape {jnp.shape(value)}; beside {name} {shape} give {shape[:common]}.")
