"""Networks of published agents that Dopamine has no class for, or one that reads its input wrongly."""

import gin
import jax
from dopamine.discrete_domains import atari_lib
from dopamine.jax import networks
from flax import linen as nn

__all__ = ["GridDQNNetwork", "ImpalaRainbowNetwork"]


@gin.configurable(module="sparse_plugins.rl")
class GridDQNNetwork(nn.Module):
    """MinAtar's own network: a convolution over the grid, whose channels are the game's, and a dense layer.

    Dopamine's `MinatarDQNNetwork` takes the axis of stacked frames for that of the channels: it convolves each row of
    the grid by itself, over columns and channels.

    Attributes:
        num_actions: Actions the agent can take.
        hidden_units: Units of the dense layer.

    Example:
        >>> network = GridDQNNetwork(num_actions=6)
        >>> params = jax.eval_shape(network.init, jax.random.key(0), jax.numpy.zeros((10, 10, 4, 1), bool))
        >>> params["params"]["Conv_0"]["kernel"].shape
        (3, 3, 4, 16)

    Source: Young and Tian, MinAtar (2019).
    """

    num_actions: int
    hidden_units: int = 128

    @nn.compact
    def __call__(self, x: jax.Array) -> atari_lib.DQNNetworkType:
        """Values of one state.

        Args:
            x: bool[10, 10, channels, 1], one frame.
        """
        initializer = nn.initializers.xavier_uniform()
        x = x[..., 0].astype("float32")
        x = nn.relu(nn.Conv(16, (3, 3), padding="VALID", kernel_init=initializer)(x)).reshape(-1)
        x = nn.relu(nn.Dense(self.hidden_units, kernel_init=initializer)(x))
        return atari_lib.DQNNetworkType(nn.Dense(self.num_actions, kernel_init=initializer)(x))


@gin.configurable(module="sparse_plugins.rl")
class ImpalaRainbowNetwork(nn.Module):
    """Dopamine's `ImpalaDQNNetwork` with return distributions in place of values.

    Attributes:
        num_actions: Actions the agent can take.
        num_atoms: Points of the distribution's support.
        inputs_preprocessed: False scales uint8 frames to [0, 1] first.
        nn_scale: Width: factor on the channels of all convolutions.

    Example:
        >>> network = ImpalaRainbowNetwork(num_actions=6, num_atoms=51)
        >>> frames, support = jax.numpy.zeros((84, 84, 4), "uint8"), jax.numpy.linspace(-10, 10, 51)
        >>> output, _ = jax.eval_shape(network.init_with_output, jax.random.key(0), frames, support)
        >>> output.logits.shape
        (6, 51)

    Source: Espeholt et al., IMPALA (2018); widened as in Obando-Ceron et al. (2024).
    """

    num_actions: int
    num_atoms: int
    inputs_preprocessed: bool = False
    nn_scale: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, support: jax.Array) -> atari_lib.RainbowNetworkType:
        """Values, logits and probabilities of one state.

        Args:
            x: [84, 84, 4] frames, uint8 or scaled.
            support: [num_atoms] returns.
        """
        initializer = nn.initializers.xavier_uniform()
        if not self.inputs_preprocessed:
            x = networks.preprocess_atari_inputs(x)
        x = networks.ImpalaEncoder(nn_scale=self.nn_scale)(x).reshape(-1)
        x = nn.relu(nn.Dense(features=512, kernel_init=initializer)(x))
        x = nn.Dense(features=self.num_actions * self.num_atoms, kernel_init=initializer)(x)
        logits = x.reshape((self.num_actions, self.num_atoms))
        probabilities = nn.softmax(logits)
        return atari_lib.RainbowNetworkType(probabilities @ support, logits, probabilities)
