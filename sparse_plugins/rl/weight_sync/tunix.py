"""Tunix's weight sync over a pipe of bytes: trainers hand new parameters to a rollout's `update_params`, and so here.

That method of `tunix.rl.rollout.base_rollout.BaseRollout` is all that is asked of Tunix, and nothing of it is imported;
`python -m experiments.demos.tunix_sync` runs it with Tunix's own rollouts.
The transports of its experimental orchestrator (`WeightSyncHandler`) move addresses of devices, not weights, and are
another matter.
"""

from typing import Any

import jax
import jax.numpy as jnp

from sparse_plugins.core.trees import PyTree
from sparse_plugins.rl.weight_sync.receiver import WeightReceiver
from sparse_plugins.rl.weight_sync.sender import WeightSender

__all__ = ["PublishedRollout", "follow"]


class PublishedRollout:
    """A rollout of the trainer's process whose new parameters also go to rollouts elsewhere.

    Put it in the place of `RLCluster.rollout`, or of any other rollout that `sync_weights` updates. Everything but
    `update_params` is the rollout's.

    Args:
        rollout: What has `update_params(params, filter_types)`.
        sender: Publishes what came, and answers the others.

    Example:
        >>> import numpy as np
        >>> class Rollout:
        ...     def update_params(self, params, filter_types=None):
        ...         self.params = params
        >>> sender = WeightSender()
        >>> rollout = PublishedRollout(Rollout(), sender)
        >>> rollout.update_params({"w": np.ones(2, np.float32)})
        >>> sender.version, rollout.params["w"].tolist()
        (0, [1.0, 1.0])
    """

    def __init__(self, rollout: Any, sender: WeightSender) -> None:
        self._rollout, self._sender = rollout, sender

    def update_params(self, params: PyTree, filter_types: tuple[Any, ...] | None = None) -> None:
        """Updates the rollout here, and publishes.

        Args:
            params: What the trainer hands over, such as `nnx.state(model)`: the same tree each time.
            filter_types: Passed on.

        Raises:
            ValueError: If the tree is another than before; the rollout here is updated then.
        """
        self._rollout.update_params(params, filter_types)
        self._sender.publish(params)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rollout, name)


def follow(
    rollout: Any, receiver: WeightReceiver, filter_types: tuple[Any, ...] | None = None, timeout: float | None = 0
) -> bool:
    """Brings a rollout elsewhere to the newest parameters; call it between two generations.

    Args:
        rollout: What has `update_params(params, filter_types)`.
        receiver: Made with a tree `like` the one that the trainer hands over.
        filter_types: Passed on.
        timeout: See `WeightReceiver.update`.

    Returns:
        Whether there were newer ones.

    Raises:
        CodecError: If what came was refused, and a snapshot, too.
        EOFError: If the trainer has hung up.
    """
    is_newer = receiver.update(timeout)
    if is_newer:
        # Tunix asks arrays for their sharding; copies, because the next delta builds on the receiver's.
        rollout.update_params(jax.tree.map(jnp.array, receiver.weights), filter_types)
    return is_newer
