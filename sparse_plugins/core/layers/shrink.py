"""Networks without the channels that masks have pruned: smaller parameters, and a function that computes with them."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparse_plugins.core.algorithms.regrowth import StaticRandomSparse
from sparse_plugins.core.layers.channel_groups import ChannelGraph
from sparse_plugins.core.layers.half_pruned import channels_left, half_pruned, nothing_leaves, words_of_half_pruned
from sparse_plugins.core.layers.narrowed import narrowed
from sparse_plugins.core.layers.same_outputs import differences, rounding, why_not_the_same
from sparse_plugins.core.layers.shrunk_trees import (
    compiled_once,
    entries_left,
    part_left,
    put_back,
    smaller,
    taken,
    taken_along,
    taken_masks,
)
from sparse_plugins.core.masks import NOT_PRUNED, is_pruned, map_pruned, store_masks, unpack_masks
from sparse_plugins.core.transform.moments import owners
from sparse_plugins.core.transform.state import SparseState, holds_sparse_state, map_sparse_states
from sparse_plugins.core.trees import PyTree, aligned

__all__ = ["Shrunk", "expand", "narrowed", "put_back", "shrink", "shrunk_to", "taken", "taken_masks"]


@dataclasses.dataclass(frozen=True, eq=False)
class Shrunk:
    """A network that has lost channels.

    Attributes:
        params: Its parameters, in the tree they were in.
        masks: Their masks; None where there were none.
        opt_state: The optimizer's state for them; None where there was none.
        also: Further trees laid out like the parameters.
        apply: `(params, *inputs)` to outputs, an ordinary function for inputs of any shape that the network takes.
        kept: For each group that lost channels those that are left, int[channels left].
        half_pruned: For each group that has any the channels that could not leave, int[channels]: some of their makers
            have pruned them, and others keep them.
        graph: The graph of the network as it was.
        optimized: Key of the part of the parameters that the optimizer sees; None if it sees all.
    """

    params: PyTree
    masks: PyTree
    opt_state: PyTree
    also: tuple[PyTree, ...]
    apply: Callable[..., Any]
    kept: Mapping[str, np.ndarray]
    half_pruned: Mapping[str, np.ndarray]
    graph: ChannelGraph
    optimized: str | None = None

    def __str__(self) -> str:
        """A line for each group: how many of its channels are left, and how many of these are half pruned."""
        rows = []
        for name, group in self.graph.groups.items():
            half = len(self.half_pruned.get(name, ()))
            left = len(self.kept.get(name, range(group.size)))
            rows.append(f"{name}: {left} of {group.size} channels left{f', {half} of them half pruned' * bool(half)}")
        return "\n".join(rows)

    @functools.cached_property
    def updater(self) -> StaticRandomSparse:
        """An updater that keeps the masks that are left as they are, for the state in `opt_state`.

        A parameter whose mask keeps all of it is left to the optimizer alone.

        Example:
            >>> import optax
            >>> from sparse_plugins import core
            >>> params = {"a": jnp.ones((3, 8)), "b": jnp.ones((8, 2))}
            >>> apply = lambda params, x: jnp.tanh(x @ params["a"]) @ params["b"]
            >>> graph = core.channel_graph(apply, params, jnp.ones((1, 3)))
            >>> tx = core.sparsify(optax.sgd(0.1), "static_sparse", sparsity=0.5, structure=core.ChannelGroups(graph))
            >>> params, state = core.start(tx, params)
            >>> small = core.shrink(graph, params, state.masks, opt_state=state)
            >>> updates, state = small.updater.wrap_optax(optax.sgd(0.1)).update(
            ...     small.params, small.opt_state, small.params)
            >>> updates["a"].shape
            (3, 4)
        """
        targets = map_pruned(lambda p, m: _sparsity_of(m), self.params, self.masks, otherwise=lambda p: NOT_PRUNED)
        targets = targets if self.optimized is None else targets[self.optimized]
        return StaticRandomSparse(sparsity_distribution_fn=lambda params: targets, use_packed_masks=self._is_packed)

    def narrow(self, apply: Callable[..., Any]) -> Callable[..., Any]:
        """Another function of the same parameters and of inputs, such as one for evaluation, for the smaller ones."""
        return narrowed(dataclasses.replace(self.graph, apply=apply), self.kept)

    @property
    def _is_packed(self) -> bool:
        """Whether the state stores eight mask entries to a byte."""
        if self.opt_state is None:
            return True
        stored = [leaf for state in sparse_states(self.opt_state) for leaf in jax.tree.leaves(state.masks)]
        masks = [mask for mask in jax.tree.leaves(self.masks) if is_pruned(mask)]
        return any(jnp.shape(stored_mask) != mask.shape for stored_mask, mask in zip(stored, masks, strict=True))


def shrink(
    graph: ChannelGraph,
    params: PyTree,
    masks: PyTree,
    *,
    opt_state: PyTree = None,
    also: Sequence[PyTree] = (),
    optimized: str | None = None,
    tolerance: float | None = None,
) -> Shrunk:
    """Takes the channels that masks have pruned out of a network.

    A channel leaves if every mask of what makes it has nothing left of it. Outputs are then compared with those of the
    masked network, on the inputs that the graph was traced with; and once more with numbers in place of inputs and
    parameters of nothing but zeros, such as a last layer that begins at 0, behind which all channels look alike.

    Args:
        graph: The network's groups, from `core.channel_graph`.
        params: Its parameters.
        masks: Their masks.
        opt_state: State of their optimizer, whose moments, masks and copies of parameters shrink along.
        also: Trees laid out like the parameters, or like what the optimizer sees of them, such as those of a target
            network or their average.
        optimized: Key of the part of the parameters that the optimizer sees, such as 'params' among the variables of a
            Flax model; None if it sees all.
        tolerance: How far outputs may differ, as a share of the largest; None is 1e-4, and more in half precision.

    Returns:
        The smaller network.

    Raises:
        ValueError: If no channel is pruned as a whole, a group would lose all its channels, outputs would differ, or a
            tree in `also` is laid out otherwise.
        UserWarning: If other channels stay because some of their makers have pruned them and others keep them.

    Example:
        >>> from sparse_plugins import core
        >>> params = {"a": jnp.ones((3, 8)), "b": jnp.ones((8, 2))}
        >>> apply = lambda params, x: jax.nn.relu(x @ params["a"]) @ params["b"]
        >>> graph = core.channel_graph(apply, params, jnp.ones((4, 3)))
        >>> masks = {"a": jnp.ones((3, 8), jnp.uint8).at[:, 2:].set(0), "b": core.NOT_PRUNED}
        >>> small = core.shrink(graph, params, masks)
        >>> jax.tree.map(jnp.shape, small.params), small.apply(small.params, jnp.ones((1, 3))).tolist()
        ({'a': (3, 2), 'b': (2, 2)}, [[6.0, 6.0]])
    """
    _check_tree(graph, params)
    unpacked = _unpacked(params, masks)
    of_leaves = aligned(params, unpacked, "masks")
    kept = {name: channels_left(group, of_leaves) for name, group in graph.groups.items()}
    kept = {name: left for name, left in kept.items() if len(left) < graph.groups[name].size}
    if not kept:
        raise ValueError(nothing_leaves(graph, of_leaves))
    if half := half_pruned(graph, of_leaves):
        warnings.warn(
            f"channels stay that are half pruned, by some of their makers only: {words_of_half_pruned(graph, half)}. "
            "The nearest masks without them are core.whole_channels(graph, params, masks).",
            stacklevel=2,
        )
    small = shrunk_to(graph, kept, params, unpacked, opt_state=opt_state, also=also, optimized=optimized)
    difference = differences(graph, params, unpacked, kept, small.params)
    tolerance = rounding(graph) if tolerance is None else tolerance
    if not difference <= tolerance:
        raise ValueError(why_not_the_same(graph, params, unpacked, kept, difference, tolerance))
    return dataclasses.replace(small, half_pruned=half)


def shrunk_to(
    graph: ChannelGraph,
    kept: Mapping[str, np.ndarray],
    params: PyTree,
    masks: PyTree,
    *,
    opt_state: PyTree = None,
    also: Sequence[PyTree] = (),
    optimized: str | None = None,
) -> Shrunk:
    """`shrink` to channels that are known, as those in a checkpoint are: nothing is compared.

    Args:
        graph: As for `shrink`.
        kept: For each group that loses channels those that are left, int[channels left].
        params: As for `shrink`.
        masks: As for `shrink`, not packed.
        opt_state: As for `shrink`.
        also: As for `shrink`.
        optimized: As for `shrink`.

    Returns:
        The smaller network.
    """
    small, small_masks = smaller(graph, params, masks, kept)
    return Shrunk(
        small,
        small_masks,
        None if opt_state is None else _smaller_state(graph, kept, opt_state, params, small, small_masks, optimized),
        tuple(taken_along(graph, kept, tree, optimized) for tree in also),
        narrowed(graph, kept),
        kept,
        {},
        graph,
        optimized,
    )


def expand(shrunk: Shrunk, params: PyTree) -> PyTree:
    """Parameters of a smaller network in the shapes of the one it came from, 0 where channels are gone.

    Args:
        shrunk: What `core.shrink` returned.
        params: Parameters of the smaller network, such as those it was trained to.

    Returns:
        The tree in the old shapes; what was kept, bit-exactly.

    Example:
        >>> from sparse_plugins import core
        >>> params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}
        >>> apply = lambda params, x: jnp.tanh(x @ params["a"]) @ params["b"]
        >>> graph = core.channel_graph(apply, params, jnp.ones((1, 3)))
        >>> masks = {"a": jnp.ones((3, 4), jnp.uint8).at[:, 0].set(0), "b": core.NOT_PRUNED}
        >>> small = core.shrink(graph, params, masks)
        >>> core.expand(small, small.params)["b"].tolist()
        [[0.0, 0.0], [1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]
    """
    return put_back(shrunk.graph, shrunk.kept, params)


def _check_tree(graph: ChannelGraph, params: PyTree) -> None:
    shapes = [leaf.shape for leaf in aligned(graph.params, params, "params")]
    if shapes != [leaf.shape for leaf in jax.tree.leaves(graph.params)]:
        raise ValueError("the parameters have other shapes than those of the graph: make a graph of these.")


def _unpacked(params: PyTree, masks: PyTree) -> PyTree:
    """Masks with a byte for each entry, without a copy of those that are so already."""
    columns = list(zip(jax.tree.leaves(params), aligned(params, masks, "masks"), strict=True))
    stored = [(param, mask) for param, mask in columns if is_pruned(mask)]
    if all(getattr(mask, "dtype", None) == jnp.uint8 and mask.shape == jnp.shape(param) for param, mask in stored):
        nodes = [jnp.asarray(mask) if is_pruned(mask) else NOT_PRUNED for _, mask in columns]
        return jax.tree.unflatten(jax.tree.structure(params), nodes)
    return compiled_once(unpack_masks)(params, masks)


def _smaller_state(
    graph: ChannelGraph,
    kept: Mapping[str, np.ndarray],
    state: PyTree,
    params: PyTree,
    small: PyTree,
    masks: PyTree,
    optimized: str | None,
) -> PyTree:
    """An optimizer state for what is left."""
    entries = entries_left(graph, kept)
    if optimized is not None:
        numbers = jax.tree.unflatten(jax.tree.structure(params), range(len(entries)))
        entries = [entries[leaf] for leaf in jax.tree.leaves(numbers[optimized])]
        params, small, masks = params[optimized], small[optimized], masks[optimized]

    def smaller(sparse: SparseState) -> SparseState:
        left = lambda p, m: jnp.float32(_sparsity_of(m))  # noqa: E731 - what `Shrunk.updater` wants, to the last bit
        rest = map_pruned(left, small, masks, otherwise=lambda p: NOT_PRUNED)
        packed = _packs(params, sparse.masks)
        return sparse._replace(masks=store_masks(small, masks, packed), target_sparsities=rest)

    if not holds_sparse_state(state):
        return _taken_state(entries, state, params)
    hidden = map_sparse_states(lambda sparse: sparse._replace(masks=(), target_sparsities=()), state)
    found = _taken_state(entries, hidden, params)
    originals = iter(sparse_states(state))
    return map_sparse_states(
        lambda sparse: (lambda old: smaller(sparse._replace(masks=old.masks)))(next(originals)), found
    )


def _sparsity_of(mask: Any) -> float:
    return float(1 - np.mean(np.asarray(mask) != 0, dtype=np.float64))


def _packs(params: PyTree, masks: PyTree) -> bool:
    """Whether masks are stored in fewer bytes than entries."""
    columns = zip(aligned(params, masks, "masks"), jax.tree.leaves(params), strict=True)
    return any(is_pruned(stored) and jnp.shape(stored) != leaf.shape for stored, leaf in columns)


def _taken_state(entries: list[list[np.ndarray] | None], state: PyTree, params: PyTree) -> PyTree:
    likes = jax.tree.leaves(params)
    leaves, treedef = jax.tree.flatten(state)

    def taken(leaf: Any, owner: int | None) -> Any:
        if owner is None or jnp.ndim(leaf) == 0 or entries[owner] is None:
            return leaf
        if leaf.shape != likes[owner].shape:
            raise ValueError(
                f"the optimizer keeps an array of shape {leaf.shape} for a parameter of shape {likes[owner].shape}: "
                "which channels it holds is not known. Start a new optimizer state with the smaller parameters."
            )
        return part_left(leaf, entries[owner])

    return jax.tree.unflatten(treedef, list(map(taken, leaves, owners(state, params))))


def sparse_states(state: PyTree) -> list[SparseState]:
    found: list[SparseState] = []
    map_sparse_states(lambda sparse: found.append(sparse) or sparse, state)  # type: ignore[func-returns-value]
    return found
