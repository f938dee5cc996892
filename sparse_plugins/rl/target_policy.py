"""Which networks of an agent are sparse, and which of their parameters."""

import enum
from collections.abc import Callable
from typing import Any

from sparse_plugins.core.distributions import not_dim_one

__all__ = ["TargetPolicy", "is_noise_scale", "without_noise_scales"]


class TargetPolicy(enum.StrEnum):
    """When the target network gets the masks of the online network.

    Attributes:
        AT_MASK_UPDATE: The moment masks change: the target is never denser than the online network.
        AT_SYNC: Sparse from step 0, then whenever the agent copies the online network. Under Polyak averaging a weight
            that is pruned later only fades away.
        AFTER_POLYAK: Whenever the agent writes the target network, so that an average of old and new masks does not
            leave small weights behind.
        DENSE: Never by us: the target is what the agent makes of dense initial weights.

    Example:
        >>> TargetPolicy.of("at_sync")
        <TargetPolicy.AT_SYNC: 'at_sync'>
    """

    AT_MASK_UPDATE = "at_mask_update"
    AT_SYNC = "at_sync"
    AFTER_POLYAK = "after_polyak"
    DENSE = "dense"

    @classmethod
    def of(cls, name: "str | TargetPolicy") -> "TargetPolicy":
        """The policy of a name, as it stands in a configuration.

        Raises:
            ValueError: For an unknown name.
        """
        try:
            return cls(name)
        except ValueError:
            raise ValueError(f"target_policy is {name!r}; allowed are {', '.join(cls)}.") from None


def is_noise_scale(path: tuple[str, ...]) -> bool:
    """Whether a parameter scales the noise of a noisy layer.

    Args:
        path: Keys from the root to the parameter.

    Example:
        >>> is_noise_scale(("params", "feature_layer", "kernel_sigma"))
        True

    Source: Fortunato et al., Noisy Networks for Exploration (2018).
    """
    return path[-1].endswith("sigma")


def without_noise_scales(
    filter_fn: Callable[[tuple[str, ...], Any], bool] = not_dim_one,
) -> Callable[[tuple[str, ...], Any], bool]:
    """A filter of prunable leaves that leaves out the scales of noisy layers.

    A pruned scale would stop exploring where its mean weight goes on to act, so that scales are dense by default.

    Args:
        filter_fn: Which of the other leaves are pruned; see `core.uniform`.

    Returns:
        A filter for `core.uniform` and `core.erk`.

    Example:
        >>> import numpy as np
        >>> keep = without_noise_scales()
        >>> [keep((name,), np.ones((2, 2))) for name in ("kernel_mu", "kernel_sigma")]
        [True, False]
    """
    return lambda path, leaf: not is_noise_scale(path) and filter_fn(path, leaf)
