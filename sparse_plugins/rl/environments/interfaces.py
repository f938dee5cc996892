"""What an environment is to the training loops: pure functions of JAX, or many games stepped together on the host."""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "EnvironmentFailure",
    "JaxEnvironment",
    "JaxStep",
    "VectorEnvironment",
    "VectorStep",
    "check_network",
]


class EnvironmentFailure(RuntimeError):  # noqa: N818
    """An environment broke in mid-run; the object is of no further use, the run goes on from its last checkpoint."""


class JaxStep(NamedTuple):
    """What one step of a `JaxEnvironment` gives.

    Attributes:
        observation: Array of the environment's `observation_shape` and `observation_dtype`; where the episode has ended
            it is the first of the next one.
        reward: float32[].
        terminated: bool[], whether the game ended the episode.
        truncated: bool[], whether a time limit alone did.
    """

    observation: Any
    reward: Any
    terminated: Any
    truncated: Any


class JaxEnvironment(Protocol):
    """One game as pure functions, for loops that run inside jit: `vmap` them for more.

    Attributes:
        name: For messages and tables.
        num_actions: Actions are 0 to `num_actions - 1`.
        observation_shape: Shape of an observation.
        observation_dtype: Its dtype, as it is stored.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def num_actions(self) -> int: ...  # noqa: D102
    @property
    def observation_shape(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def observation_dtype(self) -> Any: ...  # noqa: D102

    def reset(self, key: jax.Array) -> tuple[Any, jax.Array]:
        """State and observation at the start of an episode."""

    def step(self, key: jax.Array, state: Any, action: jax.Array) -> tuple[Any, JaxStep]:
        """The next state and what it shows; an episode that ends is followed by the next one in the same step."""


class VectorStep(NamedTuple):
    """What one step of a `VectorEnvironment` gives, for each of E environments.

    Attributes:
        frames: [E, ...], the newest piece of each observation.
        rewards: float32[E], as the game pays them.
        terminated: bool[E], whether the game ended the episode.
        truncated: bool[E], whether a time limit alone did.
        first: bool[E], whether the frame opens an episode.
    """

    frames: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    first: np.ndarray


class VectorEnvironment(Protocol):
    """Several copies of a game on the host, stepped together.

    An episode that has ended is followed by the next one at the next step: the action sent then is ignored, and the
    frame that comes back has `first` and no reward.

    Attributes:
        name: For messages and tables.
        num_envs: Copies of the game.
        num_actions: Actions are 0 to `num_actions - 1`.
        frame_shape: Shape of a frame of one environment.
        frame_dtype: Its dtype.
        resumes_exactly: Whether `restore` goes on in mid-episode; otherwise it starts new episodes, so that rows
            stored before it have no successor.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def num_envs(self) -> int: ...  # noqa: D102
    @property
    def num_actions(self) -> int: ...  # noqa: D102
    @property
    def frame_shape(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def frame_dtype(self) -> Any: ...  # noqa: D102
    @property
    def resumes_exactly(self) -> bool: ...  # noqa: D102

    def reset(self) -> VectorStep:
        """Starts new episodes everywhere; needed once before the first step."""

    def send(self, actions: np.ndarray) -> None:
        """Hands over int[E] actions and returns while the environments work on them."""

    def recv(self) -> VectorStep:
        """Waits for the step that `send` began.

        Raises:
            EnvironmentFailure: If an environment broke.
        """

    def save(self) -> dict[str, np.ndarray]:
        """All that `restore` needs, between two steps."""

    def restore(self, saved: dict[str, np.ndarray]) -> VectorStep:
        """Goes on from what `save` gave, also in a new object; returns the step after which it was saved."""

    def close(self) -> None:
        """Lets go of threads and processes."""


def check_network(
    environment: JaxEnvironment | VectorEnvironment,
    learner: Any,
    *,
    stack: int | None = None,
    num_actions: int | None = None,
) -> None:
    """Checks, without computing anything, that an agent's network fits an environment.

    Args:
        environment: A `JaxEnvironment` or `VectorEnvironment`.
        learner: Has `init(key, observations)` and `act(state, observations, epsilon) -> (actions, state)`, such as
            `rl.SparseLearner`.
        stack: Frames of an observation, on a new last axis; None if a frame is the observation.
        num_actions: Actions that the network has values for; by default the learner's `num_actions`, if it has one.

    Raises:
        ValueError: If the network can't read the observations, or the actions don't fit.

    Example:
        >>> import types
        >>> environment = types.SimpleNamespace(
        ...     name="game", num_envs=2, num_actions=3, frame_shape=(4,), frame_dtype=jnp.float32)
        >>> learner = types.SimpleNamespace(
        ...     init=lambda key, x: jnp.ones((4, 3)),
        ...     act=lambda weights, x, epsilon: (jnp.argmax(x @ weights, axis=-1), weights))
        >>> check_network(environment, learner, num_actions=3)
        >>> check_network(environment, learner, num_actions=6)
        Traceback (most recent call last):
        ...
        ValueError: game has 3 actions, the network gives values for 6; build it for 3.
    """
    prefix = "frame" if hasattr(environment, "frame_shape") else "observation"
    shape, dtype = (getattr(environment, f"{prefix}_{what}") for what in ("shape", "dtype"))
    batch = getattr(environment, "num_envs", 1)
    observations = jax.ShapeDtypeStruct((batch, *shape, *(() if stack is None else (stack,))), jnp.result_type(dtype))
    gives = f"{environment.name} gives observations {jnp.dtype(dtype)}{list(observations.shape)}"
    takes = getattr(learner, "num_actions", None) if num_actions is None else num_actions
    if takes is not None and takes != environment.num_actions:
        raise ValueError(
            f"{environment.name} has {environment.num_actions} actions, the network gives values for {takes}; "
            f"build it for {environment.num_actions}."
        )
    try:
        key = jax.eval_shape(lambda: jax.random.key(0))
        state = jax.eval_shape(learner.init, key, observations)
        actions, _ = jax.eval_shape(learner.act, state, observations, jax.ShapeDtypeStruct((), jnp.float32))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{gives}, which the network can't take: {error}") from error
    if actions.shape != (batch,) or not jnp.issubdtype(actions.dtype, jnp.integer):
        raise ValueError(
            f"{gives}, for which the network chooses actions {actions.dtype}{list(actions.shape)}; "
            f"it should choose one integer for each, int32[{batch}]."
        )
