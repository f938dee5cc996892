"""What tells the checkpoints of two updaters apart."""

from sparse_plugins.core.base_updater import BaseUpdater
from sparse_plugins.core.descriptions import readable

__all__ = ["identity"]

_IN_IDENTITY = ("sparsity_distribution_fn", "sparsity", "filter_fn", "custom_sparsity_map", "rules")


def identity(updater: BaseUpdater) -> str:
    """What an updater is and wants: all that the masks of a finished run depend on, apart from seeds and schedules.

    Two updaters of one identity go on from each other's checkpoints. Functions are in it by their names: what a lambda
    computes is not known from one process to another. Where they decide target sparsities, these are compared as well.

    Args:
        updater: An updater.

    Example:
        >>> from sparse_plugins import core
        >>> identity(core.build_updater("rigl", sparsity=0.9, total_steps=1_000))
        'RigL, Unstructured(), erk(sparsity=0.9)'
    """
    if updater.parts:
        return "; ".join(f"{pattern!r}: {identity(part)}" for pattern, part in updater.parts)
    said = [getattr(updater, name, None) for name in ("sparsity_type", *_IN_IDENTITY)]
    return ", ".join([type(updater).__name__, *(readable(value) for value in said if value not in (None, ()))])
