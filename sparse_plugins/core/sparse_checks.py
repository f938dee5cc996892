"""Whether parameters are on their masks, and what keeps them from being."""

import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sparse_plugins.core.base_updater import BaseUpdater
from sparse_plugins.core.masks import InZeros, is_pruned, kept
from sparse_plugins.core.run_length import first_update
from sparse_plugins.core.sparse_optimizer import what_follows
from sparse_plugins.core.transform.state import find_sparse_state
from sparse_plugins.core.trees import PyTree, aligned, leaf_names

__all__ = ["FirstCheck", "check_sparse", "outside_masks"]


def check_sparse(params: PyTree, opt_state: PyTree, optimizer: Any = None) -> None:
    """Checks that parameters are 0 outside their masks, as after every update of a sparse optimizer.

    One comparison per weight, so do it once after masks have first changed, or as often as a run is evaluated.

    Args:
        params: Concrete parameters, as the loop holds them.
        opt_state: Optimizer state that holds the sparse state.
        optimizer: The optimizer of the loop, so that the message names what follows the sparse one in it.

    Raises:
        ValueError: If they are not; the message names the first such layer, and what the cause is or usually is.

    Example:
        >>> import optax
        >>> from sparse_plugins import core
        >>> params, grads = {"w": jnp.ones((8, 8))}, {"w": jnp.ones((8, 8))}
        >>> tx = optax.chain(core.sparsify(optax.sgd(0.1), "static_sparse", sparsity=0.5), optax.scale(0.5))
        >>> updates, state = tx.update(grads, tx.init(params), params)
        >>> core.check_sparse(optax.apply_updates(params, updates), state, tx)
        Traceback (most recent call last):
        ValueError: 32 of the 32 pruned weights of 'w' are not 0, so the model is not as sparse as its masks: scale
        after the sparse optimizer moves weights off their masks: put the sparse optimizer last.
    """
    cause = ("" if optimizer is None else what_follows(optimizer)) or _USUAL_CAUSES
    masks = find_sparse_state(opt_state).masks
    for name, outside, pruned in outside_masks(params, masks):
        if outside:
            raise ValueError(
                f"{outside} of the {pruned} pruned weights of {name!r} are not 0, so the model is not as sparse as its "
                f"masks: {cause}."
            )


_USUAL_CAUSES = (
    "either something changes updates or parameters after the sparse optimizer (ema, scale, clip, add_decayed_weights "
    "behind it in a chain; lookahead or schedule_free around it; an average of parameters that is not masked): put the "
    "sparse optimizer last; or training began with dense parameters, and no update has been applied yet: begin with "
    "core.start(tx, params), or with updater.pre_forward_update(params, state)"
)


class FirstCheck:
    """Looks once, after masks have first been updated, whether parameters are on them; it warns if they are not.

    For front ends whose loop is on the host. The schedule says when that is, and the device is asked for nothing before
    and for nothing after, so that steps between mask updates cost what they cost.

    Args:
        updater: The updater of the parameters.

    Example:
        >>> import optax
        >>> from sparse_plugins import core
        >>> tx = core.sparsify(optax.sgd(0.1), "static_sparse", sparsity=0.5)
        >>> params, check = {"w": jnp.ones((8, 8))}, FirstCheck(core.updater_of(tx))
        >>> check(0, params, state := tx.init(params))  # not yet
        >>> check(1, core.start(tx, params)[0], state)
        >>> check(2, params, state)  # not again
    """

    def __init__(self, updater: BaseUpdater) -> None:
        self._first = first_update(updater)
        self._is_due = updater.prunes

    def is_due(self, steps: Any) -> bool:
        """Whether a call is going to look, for front ends that have to gather parameters for it."""
        is_known = not isinstance(steps, jax.core.Tracer | jax.ShapeDtypeStruct)
        return self._is_due and is_known and bool(steps > self._first)

    def __call__(self, steps: Any, params: PyTree, opt_state: PyTree) -> None:
        """Looks, if it is time.

        Args:
            steps: Optimizer steps so far, as the host counts them, or the count in a state, which is waited for until
                the check was made; traced, nothing is known. Fewer than there were make the check late.
            params: Parameters after them.
            opt_state: Optimizer state after them.
        """
        if not self.is_due(steps):
            return
        self._is_due = False
        if not all(map(_is_finite, jax.tree.leaves(params))):
            return  # NaN and infinity times a mask are NaN: the training has broken, which its loss tells
        try:
            check_sparse(params, opt_state)
        except ValueError as error:
            warnings.warn(f"after the first mask update, {error}", RuntimeWarning, stacklevel=3)

    def of_first_seed(self, steps: int, params: PyTree, opt_state: PyTree) -> None:
        """The same for trees with a first axis of seeds, of which one is enough."""
        if self.is_due(steps):
            self(steps, *jax.tree.map(lambda leaf: leaf[0], (params, opt_state)))


def outside_masks(params: PyTree, masks: PyTree) -> list[tuple[str, int, int]]:
    """How many weights outside the masks are not 0.

    Args:
        params: Concrete parameters.
        masks: Their masks, packed or not.

    Returns:
        For each pruned leaf its path, that number, and the number of entries outside.

    Example:
        >>> outside_masks({"w": jnp.ones(4)}, {"w": jnp.array([1, 1, 1, 0], jnp.uint8)})
        [('w', 1, 1)]
    """
    columns = zip(leaf_names(params), jax.tree.leaves(params), aligned(params, masks, "masks"), strict=True)
    stored = [column for column in columns if is_pruned(column[2]) and not isinstance(column[2], InZeros)]
    counts = jax.device_get([_counts(param, mask) for _, param, mask in stored])
    return [(name, int(outside), int(pruned)) for (name, *_), (outside, pruned) in zip(stored, counts, strict=True)]


@jax.jit
def _is_finite(param: jax.Array) -> jax.Array:
    return jnp.all(jnp.isfinite(param))


@jax.jit
def _counts(param: jax.Array, mask: Any) -> Sequence[jax.Array]:
    pruned = ~kept(param, mask)
    return jnp.count_nonzero(pruned & (param != 0)), jnp.count_nonzero(pruned)
