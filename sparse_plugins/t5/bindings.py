"""JaxPruner's names, for gin files.

Nothing is registered here: files for T5X register what they import. Dopamine's files don't, and go by the last name
alone, which `sparse_plugins.rl` has, too.
"""

from collections.abc import Sequence
from typing import Any

import optax

from sparse_plugins.core.base_updater import BaseUpdater
from sparse_plugins.core.config import create_updater_from_config as create_from_core
from sparse_plugins.t5.optimizer import SparseOptimizer

__all__ = ["SparseOptaxWrapper", "chain", "create_updater_from_config"]


def create_updater_from_config(
    algorithm: str | None = None, dist_type: str | None = None, *, pruner_type: str | None = None, **settings: Any
) -> BaseUpdater:
    """The updater that gin bindings describe.

    Args:
        algorithm: One of `core.all_algorithm_names()`; None for 'magnitude'.
        dist_type: 'erk' or 'uniform'; None for 'erk'. `distribution` is another name for it.
        pruner_type: The paper's name for `algorithm`.
        **settings: Any other key of `core.SparsityConfig`: sparsity, update_start_step, update_end_step, update_freq,
            drop_fraction, rules, ...

    Returns:
        The updater. Its steps are optimizer steps from the start of sparse training.

    Raises:
        ValueError: For a key or value that is not allowed.

    Example:
        >>> create_updater_from_config("magnitude", sparsity=0.8, update_start_step=25_000, update_end_step=75_000,
        ...                            update_freq=1_000).scheduler.update_freq
        1000

    Source: Lee et al., JaxPruner (2023), baselines/t5x.
    """
    if algorithm is None and pruner_type is None:
        algorithm = "magnitude"
    if dist_type is None and settings.get("distribution") is None:
        dist_type = "erk"
    return create_from_core(algorithm=algorithm, pruner_type=pruner_type, dist_type=dist_type, **settings)


def chain(transformations: Sequence[optax.GradientTransformation]) -> optax.GradientTransformation:
    """`optax.chain` of a list, which is how gin can give them.

    Example:
        >>> len(chain([optax.clip(1.0), optax.sgd(0.1)]).init({}))
        2
    """
    return optax.chain(*transformations)


def SparseOptaxWrapper(  # noqa: N802 - JaxPruner's name, for gin files written for it
    optax_optimizer: Any, sparsity_updater: BaseUpdater
) -> SparseOptimizer:
    """`SparseOptimizer` under JaxPruner's names.

    Example:
        >>> SparseOptaxWrapper(None, sparsity_updater=None)
        Traceback (most recent call last):
        TypeError: updater is a NoneType; give an updater ...
    """
    return SparseOptimizer(optax_optimizer, sparsity_updater)
