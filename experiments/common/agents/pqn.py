"""The PQN of all studies: parallelised Q-learning at the settings of purejaxql (Gallici et al., 2024)."""

import optax

from sparse_plugins import core
from sparse_plugins.rl.haiku import SparsePQN, minatar_torso
from sparse_plugins.rl.haiku.networks import HE, Torso
from sparse_plugins.rl.loops.pace import Pace

RATE = 5e-4
LARGEST_NORM = 10.0  # of the gradients of an optimizer step


def pqn(
    num_actions: int,
    torso: Torso,
    loop: Pace,
    steps: int,
    updater: core.BaseUpdater,
    agent_class: type[SparsePQN] = SparsePQN,
) -> SparsePQN:
    """PQN with rectified Adam, whose rate falls to zero over the training.

    Args:
        num_actions: Actions of the game.
        torso: Network before the layer of values.
        loop: How it plays and learns.
        steps: Environment steps of the training.
        updater: Which weights to keep; its steps are optimizer steps.
        agent_class: Class of the agent.
    """
    rate = optax.linear_schedule(RATE, 0.0, loop.iterations(steps) * loop.updates)
    optimizer = optax.chain(optax.clip_by_global_norm(LARGEST_NORM), optax.radam(rate))
    return agent_class(num_actions=num_actions, torso=torso, optimizer=optimizer, updater=updater)


def pqn_torso(width: int = 1) -> Torso:
    """MinAtar's network with the normalization and the initial weights of purejaxql's."""
    return minatar_torso(layer_norm=True, w_init=HE, width=width)
