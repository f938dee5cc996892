"""Which parameters scale the noise of noisy layers, and a filter that leaves them dense."""

from collections.abc import Callable
from typing import Any

from sparse_plugins.core.distributions import not_dim_one

__all__ = ["is_noise_scale", "without_noise_scales"]


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
