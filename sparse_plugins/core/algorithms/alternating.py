"""Training that is sparse and dense in turn."""

import dataclasses
from typing import ClassVar

from sparse_plugins.core.algorithms.pruning import MagnitudePruning
from sparse_plugins.core.schedules import AlternatingSchedule, PeriodicSchedule

__all__ = ["ACDC"]


@dataclasses.dataclass(eq=False)
class ACDC(MagnitudePruning):
    """Magnitude pruning in sparse phases; in the dense ones between them all weights learn again.

    Weights that come back start at 0 with fresh moments. Give it an `AlternatingSchedule`; a dense copy of the model
    can be taken at the end of the last dense phase.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from sparse_plugins import core
        >>> schedule = core.AlternatingSchedule(update_freq=1, update_start_step=0, update_end_step=2)
        >>> tx = core.sparsify(optax.sgd(0.5), "acdc", sparsity=0.5, scheduler=schedule)
        >>> params, state = core.start(tx, {"w": jnp.array([[1.0, -4.0, 3.0, 2.0]])})
        >>> kept = []
        >>> for _ in range(4):
        ...     updates, state = tx.update({"w": -jnp.ones((1, 4))}, state, params)
        ...     params = optax.apply_updates(params, updates)
        ...     kept.append(int(jnp.count_nonzero(params["w"])))
        >>> kept  # sparse, dense, and sparse from then on
        [2, 4, 2, 2]

    Source: Peste et al., AC/DC: Alternating Compressed/DeCompressed Training of Deep Neural Networks (2021).
    """

    is_sparse_gradients: bool = True

    prunes_for_good: ClassVar[bool] = False
    restarts_moments: ClassVar[bool] = True
    schedule_type: ClassVar[type[PeriodicSchedule]] = AlternatingSchedule
