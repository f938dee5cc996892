"""The updaters of the linear task."""

from sparse_plugins import core


def updater(algorithm: str, sparsity: float = 0.75) -> core.BaseUpdater:
    """Changes masks in rounds 1 and 2, counted from 0."""
    return core.create_updater_from_config(
        algorithm=algorithm,
        sparsity=sparsity,
        dist_type="uniform",
        update_freq=1,
        update_start_step=1,
        update_end_step=3,
        step_unit="round",
    )
