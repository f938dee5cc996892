"""The updaters of small federated tasks; it needs no FedJAX."""

import functools

from sparse_plugins import core

SPARSITY = 0.75
END_ROUND = 3


@functools.cache
def updater_of(algorithm: str, sparsity: float = SPARSITY) -> core.BaseUpdater:
    """Changes masks in rounds 1 and 2, counted from 0, and reaches its target in round 3."""
    return core.create_updater_from_config(
        algorithm=algorithm,
        sparsity=sparsity,
        dist_type="uniform",
        update_freq=1,
        update_start_step=1,
        update_end_step=END_ROUND,
        step_unit="round",
    )
