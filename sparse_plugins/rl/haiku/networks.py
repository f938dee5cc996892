"""Networks that give action values or return distributions, from the torsos of published agents.

Parameters start as in Dopamine's networks of the same name, so that returns can be compared; layers have names such as
'conv_1', so that rules by path read 'conv_1/w'.
"""

import functools
from collections.abc import Callable, Sequence

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from sparse_plugins.core.schedules import whole_number
from sparse_plugins.rl.haiku.convolution import Convolution, Init

__all__ = [
    "HE",
    "LECUN",
    "RAINBOW_INIT",
    "XAVIER",
    "Torso",
    "impala_torso",
    "minatar_torso",
    "mlp_torso",
    "nature_torso",
    "q_network",
]

Torso = Callable[[jax.Array], jax.Array]

# Dopamine starts Rainbow on Atari with the one, all other networks with the other.
RAINBOW_INIT = hk.initializers.VarianceScaling(1 / np.sqrt(3.0), "fan_in", "uniform")
XAVIER = hk.initializers.VarianceScaling(1.0, "fan_avg", "uniform")
LECUN = hk.initializers.VarianceScaling(1.0, "fan_in", "truncated_normal")
HE = hk.initializers.VarianceScaling(2.0, "fan_in", "truncated_normal")  # Flax's, and so PQN's


def nature_torso(*, w_init: Init = XAVIER, as_matmuls: bool = False) -> Torso:
    """Three convolutions and a dense layer of 512.

    Args:
        w_init: Initializer of weights; `RAINBOW_INIT` for Rainbow as in Dopamine.
        as_matmuls: Compute convolutions as matrix products: slower one by one, several times faster on a CPU inside
            `lax.scan`, and under `vmap` over seeds.

    Returns:
        A function of pictures [B, H, W, C], uint8 or scaled, to features [B, 512], to be called inside `hk.transform`.

    Example:
        >>> network = q_network(4, nature_torso())
        >>> params = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 84, 84, 4), jnp.uint8))
        >>> {name: layer["w"].shape for name, layer in params.items()}
        {'conv_1': (8, 8, 4, 32), 'conv_2': (4, 4, 32, 64), 'conv_3': (3, 3, 64, 64), 'hidden': (7744, 512),
         'values': (512, 4)}

    Source: Mnih et al., Human-level control through deep reinforcement learning (2015).
    """

    def torso(x: jax.Array) -> jax.Array:
        x = _pictures(x)
        for i, (channels, size, stride) in enumerate(((32, 8, 4), (64, 4, 2), (64, 3, 1)), start=1):
            x = jax.nn.relu(Convolution(channels, size, stride, w_init, as_matmuls, name=f"conv_{i}")(x))
        return jax.nn.relu(hk.Linear(512, w_init=w_init, name="hidden")(hk.Flatten()(x)))

    return torso


def impala_torso(width: int = 1, *, w_init: Init = XAVIER, as_matmuls: bool = False) -> Torso:
    """Fifteen convolutions, most of them in residual blocks, and a dense layer of 512.

    Args:
        width: Factor on the channels of all convolutions.
        w_init: Initializer of weights outside the residual blocks, which start with LeCun's as in Dopamine.
        as_matmuls: See `nature_torso`.

    Returns:
        A function of pictures [B, H, W, C], uint8 or scaled, to features [B, 512], to be called inside `hk.transform`.

    Raises:
        ValueError: If width is below 1.

    Example:
        >>> network = q_network(4, impala_torso(width=2))
        >>> params = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 84, 84, 4), jnp.uint8))
        >>> params["stack_3_block_2_conv_2"]["w"].shape
        (3, 3, 64, 64)

    Source: Espeholt et al., IMPALA (2018); widened as in Obando-Ceron et al. (2024).
    """
    factor = whole_number("width", width, 1)
    convolution = functools.partial(Convolution, size=3, stride=1, as_matmuls=as_matmuls)

    def torso(x: jax.Array) -> jax.Array:
        x = _pictures(x)
        for i, channels in enumerate((16 * factor, 32 * factor, 32 * factor), start=1):
            x = convolution(channels, w_init=w_init, name=f"stack_{i}_conv")(x)
            x = hk.max_pool(x, window_shape=(3, 3, 1), strides=(2, 2, 1), padding="SAME")
            for block in (1, 2):
                inner = x
                for layer in (1, 2):
                    name = f"stack_{i}_block_{block}_conv_{layer}"
                    inner = convolution(channels, w_init=LECUN, name=name)(jax.nn.relu(inner))
                x = x + inner
        return jax.nn.relu(hk.Linear(512, w_init=w_init, name="hidden")(hk.Flatten()(jax.nn.relu(x))))

    return torso


def minatar_torso(
    *,
    hidden: int | None = 128,
    padding: str = "VALID",
    width: int = 1,
    layer_norm: bool = False,
    w_init: Init = XAVIER,
    as_matmuls: bool = True,
) -> Torso:
    """One convolution of 16 channels, and a dense layer.

    Args:
        hidden: Units of the dense layer; None for none, as in Dopamine, together with padding 'SAME'.
        padding: 'VALID' as in MinAtar's own agents, or 'SAME'.
        width: Factor on the channels and the units.
        layer_norm: Normalize both before they are rectified, as PQN does, over channels and over units.
        w_init: Initializer of weights; `HE` for PQN.
        as_matmuls: See `nature_torso`; here it is worth it everywhere.

    Returns:
        A function of grids [B, H, W, C], bool, to features [B, F], to be called inside `hk.transform`.

    Raises:
        ValueError: If hidden or width is below 1, or the padding unknown.

    Example:
        >>> network = q_network(3, minatar_torso())
        >>> params = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 10, 10, 4), bool))
        >>> {name: layer["w"].shape for name, layer in params.items()}
        {'conv_1': (3, 3, 4, 16), 'hidden': (1024, 128), 'values': (128, 3)}

    Source: Young and Tian, MinAtar (2019).
    """
    factor = whole_number("width", width, 1)
    units = None if hidden is None else whole_number("hidden", hidden, 1) * factor
    if padding not in ("VALID", "SAME"):
        raise ValueError(f"padding is {padding!r}; allowed are 'VALID', as in MinAtar, and 'SAME', as in Dopamine.")

    def torso(x: jax.Array) -> jax.Array:
        x = Convolution(16 * factor, 3, 1, w_init, as_matmuls, padding, name="conv_1")(_pictures(x))
        x = hk.Flatten()(_rectified(x, layer_norm, "conv_1_norm"))
        return (
            x
            if units is None
            else _rectified(hk.Linear(units, w_init=w_init, name="hidden")(x), layer_norm, "hidden_norm")
        )

    return torso


def mlp_torso(
    widths: Sequence[int] = (512, 512),
    low: Sequence[float] | None = None,
    high: Sequence[float] | None = None,
    *,
    layer_norm: bool = False,
) -> Torso:
    """Dense layers.

    Args:
        widths: Units of each of them.
        low: Smallest value of each entry of an observation; with `high` it scales observations to [-1, 1].
        high: Largest value of each entry.
        layer_norm: Normalize each layer before it is rectified.

    Returns:
        A function of observations [B, ...] to features [B, widths[-1]], to be called inside `hk.transform`.

    Raises:
        ValueError: If a width is below 1, or only one of low and high is given, or they don't fit each other.

    Example:
        >>> network = q_network(2, mlp_torso((32,), low=[-1.0, 0.0], high=[1.0, 4.0]))
        >>> network.init(jax.random.key(0), jnp.zeros((1, 2)))["hidden_1"]["w"].shape
        (2, 32)
    """
    units = [whole_number("a width", width, 1) for width in widths]
    bounds = None if low is None and high is None else _bounds(low, high)

    def torso(x: jax.Array) -> jax.Array:
        if bounds is None:
            x = hk.Flatten()(_as_float(x))
        else:
            x = hk.Flatten()(x.astype(jnp.float32))
            x = 2.0 * (x - bounds[0]) / (bounds[1] - bounds[0]) - 1.0
        for i, width in enumerate(units, start=1):
            x = _rectified(hk.Linear(width, w_init=XAVIER, name=f"hidden_{i}")(x), layer_norm, f"hidden_{i}_norm")
        return x

    return torso


def q_network(
    num_actions: int, torso: Torso, *, dueling: bool = False, atoms: int | None = None, w_init: Init = XAVIER
) -> hk.Transformed:
    """A torso with a head for every action.

    Args:
        num_actions: Actions the agent can take.
        torso: See `nature_torso` and its like; any function of observations [B, ...] to features [B, F].
        dueling: Build values from a state value and advantages; both read the torso, as in Dopamine.
        atoms: Points of a return distribution per action; None for action values.
        w_init: Initializer of the heads' weights.

    Returns:
        `hk.Transformed` without random key: apply(params, observations [B, ...]) gives float32[B, num_actions], or
        logits float32[B, num_actions, atoms].

    Raises:
        ValueError: If there are no actions, or fewer than two atoms.

    Example:
        >>> network = q_network(3, mlp_torso((8,)), dueling=True, atoms=51)
        >>> params = network.init(jax.random.key(0), jnp.zeros((1, 4)))
        >>> sorted(params), network.apply(params, jnp.zeros((5, 4))).shape
        (['advantages', 'hidden_1', 'value'], (5, 3, 51))

    Source: Wang et al., Dueling Network Architectures (2016); Bellemare et al. (2017).
    """
    actions = whole_number("num_actions", num_actions, 1)
    points = 1 if atoms is None else whole_number("atoms", atoms, 2)

    def network(observations: jax.Array) -> jax.Array:
        features = torso(observations)

        def head(rows: int, name: str) -> jax.Array:
            flat = hk.Linear(rows * points, w_init=w_init, name=name)(features)
            return flat.reshape(len(flat), rows, points)

        out = head(actions, "advantages" if dueling else "values")
        if dueling:
            out = head(1, "value") + out - jnp.mean(out, axis=1, keepdims=True)
        return out[..., 0] if atoms is None else out

    return hk.without_apply_rng(hk.transform(network))


def _rectified(x: jax.Array, layer_norm: bool, name: str) -> jax.Array:
    if layer_norm:  # with Flax's epsilon
        x = hk.LayerNorm(axis=-1, create_scale=True, create_offset=True, eps=1e-6, name=name)(x)
    return jax.nn.relu(x)


def _as_float(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32) / 255.0 if x.dtype == jnp.uint8 else x.astype(jnp.float32)


def _pictures(x: jax.Array) -> jax.Array:
    if x.ndim != 4:
        raise ValueError(
            f"observations have shape {x.shape}; this torso reads pictures [batch, height, width, channels], frames "
            "stacked on the last axis. For vectors use mlp_torso."
        )
    return _as_float(x)


def _bounds(low: Sequence[float] | None, high: Sequence[float] | None) -> tuple[np.ndarray, np.ndarray]:
    if low is None or high is None or np.shape(low) != np.shape(high) or not np.all(np.less(low, high)):
        raise ValueError(f"low is {low} and high is {high}; give both, of the same length, low below high, or neither.")
    return np.asarray(low, np.float32)[None], np.asarray(high, np.float32)[None]
