"""Updaters from gin bindings, under the names of the paper."""

from collections.abc import Sequence
from typing import Any

import gin

from sparse_plugins import core
from sparse_plugins.core.base_updater import BaseUpdater
from sparse_plugins.core.distributions import FilterFn
from sparse_plugins.core.structure_names import parse_structure
from sparse_plugins.rl.noise_scales import without_noise_scales

__all__ = ["bound", "create_updater_from_config"]


@gin.configurable(module="sparse_plugins.rl")
def create_updater_from_config(
    algorithm: str | None = None,
    dist_type: str | None = None,
    sparsity: float | None = None,
    total_steps: int | None = None,
    update_start_step: int | None = None,
    update_end_step: int | None = None,
    update_freq: int | None = None,
    step_unit: str = "optimizer step",
    drop_fraction: float | None = None,
    drop_schedule: str | None = None,
    sparsity_type: Any = None,
    rules: Sequence[tuple[str, Any]] = (),
    filter_fn: FilterFn | None = None,
    rng_seed: int = 0,
    use_packed_masks: bool = True,
    is_sparse_gradients: bool | None = None,
    skip_gradients: bool | None = None,
    pruner_type: str | None = None,
    **settings: Any,
) -> BaseUpdater:
    """The updater that gin bindings describe.

    Args:
        algorithm: One of `core.all_algorithm_names()`; None, with nothing else bound, for a dense agent.
        dist_type: 'erk' or 'uniform'; None for 'erk'. `distribution` is another name for it.
        sparsity: Fraction of zeros in [0, 1] over the prunable layers; None for 0.8, or what an n:m structure is.
        total_steps: Length of the run in `step_unit`; without the three keys below, masks then change when papers have
            them change.
        update_start_step: First step at which masks are updated, in `step_unit`; None for no changes.
        update_end_step: Last step at which they do.
        update_freq: Steps between changes.
        step_unit: 'optimizer step' (the paper's), 'environment step' or 'frame'.
        drop_fraction: SET, RigL and related algorithms: fraction of kept weights replaced at first; None for 0.3.
        drop_schedule: How that fraction falls: 'cosine', 'linear' or 'constant'.
        sparsity_type: Structure, by name or by path; see `core.SparsityConfig`. `structure` is another name for it.
        rules: Pairs (regular expression for a path, what), as in `core.sparsify`.
        filter_fn: Which layers are pruned; None for all kernels but the noise scales of noisy layers.
        rng_seed: Seed of random masks and scores, beside the agent's own seed: two agents differ in their masks.
        use_packed_masks: True stores eight mask entries to a byte.
        is_sparse_gradients: None for the algorithm's own default.
        skip_gradients: The same; SET and RigL move no weight when masks are updated.
        pruner_type: The paper's name for `algorithm`.
        **settings: Any other key of `core.SparsityConfig`: custom_sparsity_map, use_normalization, topk_fn, ...

    Returns:
        The updater; `sparsify`'s agents turn its schedule into optimizer steps.

    Raises:
        ValueError: For a value that is not allowed, or if something is bound beside an algorithm that is not.

    Example:
        >>> create_updater_from_config("magnitude", sparsity=0.9, update_start_step=0, update_end_step=9,
        ...                            update_freq=3).scheduler.update_freq
        3
    """
    said = {
        **{"sparsity": sparsity, "total_steps": total_steps, "update_start_step": update_start_step},
        **{"update_end_step": update_end_step, "update_freq": update_freq, "drop_fraction": drop_fraction},
        **{"drop_schedule": drop_schedule, "sparsity_type": sparsity_type, "rules": rules or None, **settings},
    }
    is_named = algorithm is not None or pruner_type is not None
    if not is_named and (alone := [name for name, value in said.items() if value is not None]):
        raise ValueError(
            f"{', '.join(alone)} given for sparsity, but no algorithm, so the agent would be dense: bind "
            "create_updater_from_config.algorithm, or give --algorithm, one of "
            f"{', '.join(core.all_algorithm_names())} ('no_prune' for a dense agent)."
        )
    structure = sparsity_type or settings.get("structure")
    if sparsity is None and not isinstance(structure and parse_structure(structure), core.NByM):
        sparsity = 0.8
    if dist_type is None and settings.get("distribution") is None:
        dist_type = "erk"
    return core.create_updater_from_config(
        algorithm=algorithm if is_named else "no_prune",
        pruner_type=pruner_type,
        dist_type=dist_type,
        sparsity=sparsity,
        total_steps=total_steps,
        update_start_step=update_start_step,
        update_end_step=update_end_step,
        update_freq=update_freq,
        step_unit=step_unit,
        drop_fraction=drop_fraction,
        drop_schedule=drop_schedule,
        sparsity_type=sparsity_type,
        rules=tuple(rules),
        filter_fn=filter_fn or without_noise_scales(),
        rng_seed=rng_seed,
        use_packed_masks=use_packed_masks,
        is_sparse_gradients=is_sparse_gradients,
        skip_gradients=skip_gradients,
        **settings,
    )


def bound(*parameters: str, default: Any = None) -> Any:
    """What gin binds to the first of some parameters that it binds at all.

    Args:
        *parameters: 'configurable.parameter'.
        default: Returned if none of them is bound.

    Example:
        >>> bound("create_agent.agent_name", "create_continuous_agent.agent_name", default="jax_dqn")
        'jax_dqn'
    """
    for parameter in parameters:
        try:
            return gin.query_parameter(parameter)
        except ValueError:
            continue
    return default
