"""The state that an updater keeps beside the optimizer's, and how to find it again."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sparse_plugins.core.layers.axes import Layers
from sparse_plugins.core.masks import InZeros, check_stored, is_pruned, kept
from sparse_plugins.core.trees import PyTree, aligned, exportable, leaf_names

__all__ = [
    "SparseState",
    "check_state",
    "find_sparse_state",
    "holds_sparse_state",
    "map_sparse_states",
    "settled",
    "warn_of_emptied",
]


@exportable("SparseState")
class SparseState(NamedTuple):
    """Masks and everything needed to change them, around the state of the wrapped optimizer.

    Invariants (checked by `check_state`): every mask belongs to its parameter's shape; a target exists exactly where
    a mask does; dense weights have their parameter's shape.

    Attributes:
        masks: One uint8 mask per pruned parameter, packed eight to a byte or of the parameter's shape, 1 = kept; an
            empty marker if the parameter's zeros are its mask; `NOT_PRUNED` for parameters that stay dense. Read them
            with `unpack_masks`.
        inner_state: State of the wrapped optimizer.
        target_sparsities: float32[] per pruned parameter: the fraction of zeros it ends with; float32[layers] where the
            layers of a stack end with different ones.
        count: int32[], calls of `update` so far; the schedule's step. At 2**31 - 1 it stays, as the counts of optax do,
            and masks are updated no more but where they follow every step.
        rng: uint32[2], the key all random scores of this run derive from; under `PerModule` a tuple of one per rule.
        dense_params: Straight-through updaters: the dense weights, of which the parameters are the masked view, per
            pruned parameter. Else ().
    """

    masks: PyTree
    inner_state: Any = None
    target_sparsities: PyTree = None
    count: Any = None
    rng: Any = None
    dense_params: PyTree = ()


_NO_MASKS = (
    "no SparseState in this optimizer state ({}): it holds no masks. Was it made by a dense optimizer, or restored "
    "from a dense checkpoint? Build it with updater.wrap_optax(tx).init(params)."
)


def _is_sparse_state(node: Any) -> bool:
    return isinstance(node, SparseState)


def holds_sparse_state(opt_state: PyTree) -> bool:
    """Whether there is a sparse state anywhere in an optimizer state."""
    return any(map(_is_sparse_state, jax.tree.leaves(opt_state, is_leaf=_is_sparse_state)))


def find_sparse_state(opt_state: PyTree) -> SparseState:
    """The one sparse state inside an optimizer state, however deep it is nested.

    Args:
        opt_state: State of `wrap_optax`, or of `chain`, `MultiSteps`, `masked`, ... around it.

    Returns:
        The `SparseState`.

    Raises:
        ValueError: If there is none (a dense checkpoint?) or more than one.

    Example:
        >>> find_sparse_state(((), (SparseState(masks={}),))).masks
        {}
    """
    found = [node for node in jax.tree.leaves(opt_state, is_leaf=_is_sparse_state) if _is_sparse_state(node)]
    if not found:
        raise ValueError(_NO_MASKS.format(type(opt_state).__name__))
    if len(found) > 1:
        raise ValueError(
            f"{len(found)} SparseStates in this optimizer state; say which one is meant by passing that state alone."
        )
    return found[0]


def map_sparse_states(function: Callable[[SparseState], SparseState], opt_state: PyTree) -> PyTree:
    """The optimizer state with `function` applied to each sparse state in it.

    Raises:
        ValueError: If there is none.
    """
    if not holds_sparse_state(opt_state):
        raise ValueError(_NO_MASKS.format(type(opt_state).__name__))
    apply = lambda node: function(node) if _is_sparse_state(node) else node  # noqa: E731
    return jax.tree.map(apply, opt_state, is_leaf=_is_sparse_state)


def settled(opt_state: PyTree) -> PyTree:
    """An optimizer state of any updater for one that keeps its masks: without dense weights behind them, with one key.

    Raises:
        ValueError: If there are no masks in it.

    Example:
        >>> settled(SparseState({}, rng=(1, 2), dense_params={"w": jnp.ones(3)}))
        SparseState(masks={}, inner_state=None, target_sparsities=None, count=None, rng=1, dense_params=())
    """
    first = lambda rng: rng if rng is None else jax.tree.leaves(rng)[0]  # noqa: E731
    return map_sparse_states(lambda state: state._replace(dense_params=(), rng=first(state.rng)), opt_state)


def check_state(params: PyTree, opt_state: PyTree, layers: Layers | None = None) -> None:
    """Checks the invariants of a concrete sparse state, for example after a restore.

    It warns about layers that keep nothing and were not asked to be empty: a ranking across layers may prune one whole.

    Args:
        params: The parameters it belongs to.
        opt_state: Optimizer state that holds it.
        layers: The updater's, if it has some: the layers of a stack are looked at one by one.

    Raises:
        ValueError: At the first parameter whose mask, target or dense weights do not fit.

    Example:
        >>> check_state({"w": jnp.ones(4)}, SparseState({"w": jnp.ones(4, jnp.uint8)}, (), {"w": 0.0}, 0))
    """
    state = find_sparse_state(opt_state)
    masks = aligned(params, state.masks, "masks")
    targets = aligned(params, state.target_sparsities, "target sparsities")
    for name, param, mask, target in zip(leaf_names(params), jax.tree.leaves(params), masks, targets, strict=True):
        if is_pruned(mask) != is_pruned(target):
            raise ValueError(f"{name!r} has a {'mask' if is_pruned(mask) else 'target'} but not both mask and target.")
        if is_pruned(mask):
            check_stored(mask, param.shape, name)
    if state.dense_params != ():
        dense = aligned(params, state.dense_params, "dense weights")
        for name, param, weights in zip(leaf_names(params), jax.tree.leaves(params), dense, strict=True):
            if is_pruned(weights) and weights.shape != param.shape:
                raise ValueError(
                    f"the dense weights of {name!r} have shape {weights.shape}, the parameter {param.shape}."
                )
    columns = list(zip(leaf_names(params), jax.tree.leaves(params), masks, targets, strict=True))
    # Before the first step the zeros of parameters are no masks yet.
    unread = lambda mask: isinstance(mask, InZeros) and int(state.count) == 0  # noqa: E731
    views = [None] * len(columns) if layers is None else [axes.as_stored for axes in layers.of(params)]
    used = []
    for (name, param, mask, target), view in zip(columns, views, strict=True):
        if is_pruned(mask) and not unread(mask) and bool((jnp.asarray(target) < 1).all()):
            seen = kept(param, mask)
            used += [(name, seen)] if view is None else view.named(name, seen)
    warn_of_emptied(used)


def warn_of_emptied(layers: Sequence[tuple[str, jax.Array]]) -> None:
    """Warns about layers whose masks keep nothing; of masks that are being traced nothing is known.

    Args:
        layers: Paths of layers that are not asked to be empty, and their masks, not packed.

    Example:
        >>> warn_of_emptied([("w", jnp.array([0, 1], jnp.uint8))])
    """
    if any(isinstance(mask, jax.core.Tracer) for _, mask in layers):
        return
    used = jax.device_get([jnp.any(mask) for _, mask in layers])
    emptied = [name for (name, mask), is_used in zip(layers, used, strict=True) if mask.size and not is_used]
    if emptied:
        warnings.warn(
            f"a ranking across layers pruned all weights of {', '.join(map(repr, emptied))}, which cuts the network in "
            f"two unless something leads around them. Give them a rule, such as rules=[({emptied[0]!r}, 0.9)], lower "
            "the sparsity, or use an algorithm that ranks each layer alone.",
            stacklevel=3,
        )
