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
        >>> import functools
        >>> from sparse_plugins import core
        >>> updater = ACDC(sparsity_distribution_fn=functools.partial(core.uniform, sparsity=0.9),
        ...     scheduler=core.AlternatingSchedule(update_freq=500, update_start_step=1000, update_end_step=8000))
        >>> updater.describe_schedule()
        'masks change 15 times, every 500 optimizer steps from optimizer step 1000 to 8000'

    Source: Peste et al., AC/DC: Alternating Compressed/DeCompressed Training of Deep Neural Networks (2021).
    """

    is_sparse_gradients: bool = True

    prunes_for_good: ClassVar[bool] = False
    restarts_moments: ClassVar[bool] = True
    schedule_type: ClassVar[type[PeriodicSchedule]] = AlternatingSchedule
