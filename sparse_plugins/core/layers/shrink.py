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
from sparse_plugins.core.layers.channel_groups import ChannelGraph, Channels, Network, followed, labels, movable
from sparse_plugins.core.layers.factors import Factor
from sparse_plugins.core.layers.half_pruned import channels_left, half_pruned, nothing_leaves, words_of_half_pruned
from sparse_plugins.core.layers.smaller_program import Sizes, run
from sparse_plugins.core.masks import NOT_PRUNED, apply_masks, is_pruned, map_pruned, store_masks, unpack_masks
from sparse_plugins.core.transform.moments import owners
from sparse_plugins.core.transform.state import SparseState, holds_sparse_state, map_sparse_states
from sparse_plugins.core.trees import PyTree, aligned, leaf_names

__all__ = ["Shrunk", "expand", "narrowed", "put_back", "shrink", "taken", "taken_masks"]


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
    masked network, on the inputs that the graph was traced with.

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
    unpacked = unpack_masks(params, masks)
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
    small, small_masks = _smaller(graph, params, unpacked, kept)
    differences = _differences(graph, params, unpacked, kept, small)
    tolerance = _rounding(graph) if tolerance is None else tolerance
    if not differences <= tolerance:
        raise ValueError(_not_the_same(graph, params, unpacked, kept, differences, tolerance))
    return Shrunk(
        small,
        small_masks,
        None if opt_state is None else _smaller_state(graph, kept, opt_state, params, small, small_masks, optimized),
        tuple(_taken_along(graph, kept, tree, optimized) for tree in also),
        narrowed(graph, kept),
        kept,
        half,
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


def taken(graph: Channels, kept: Mapping[str, np.ndarray], tree: PyTree) -> PyTree:
    """What is left of a tree laid out like the parameters.

    Args:
        graph: The network's groups.
        kept: For each group that loses channels those that are left, int[channels left].
        tree: The tree, of the full shapes.

    Example:
        >>> from sparse_plugins import core
        >>> params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}
        >>> apply = lambda params, x: jnp.tanh(x @ params["a"]) @ params["b"]
        >>> graph = core.channel_graph(apply, params, jnp.ones((1, 3)))
        >>> jax.tree.map(jnp.shape, taken(graph, {"a": np.array([0, 2])}, params))
        {'a': (3, 2), 'b': (2, 2)}
    """
    leaves, treedef = jax.tree.flatten(tree)
    columns = zip(leaves, jax.tree.leaves(graph.params), _entries(graph, kept), strict=True)
    return jax.tree.unflatten(treedef, [_taken(_of_shape(leaf, like.shape), its) for leaf, like, its in columns])


def _taken_along(graph: ChannelGraph, kept: Mapping[str, np.ndarray], tree: PyTree, optimized: str | None) -> PyTree:
    """The same of a tree beside the parameters, which may hold the optimized part of them alone; by name."""
    columns = zip(leaf_names(graph.params), jax.tree.leaves(graph.params), _entries(graph, kept), strict=True)
    known = {name: (like.shape, its) for name, like, its in columns}
    (leaves, treedef), names = jax.tree.flatten(tree), leaf_names(tree)
    if {*names} != {*known} and optimized is not None:
        start = f"{optimized}/"
        known = {name.removeprefix(start): row for name, row in known.items() if name.startswith(start)}
    if differing := sorted({*names} ^ {*known}):
        raise ValueError(
            f"a tree in `also` is laid out otherwise than the parameters: they differ in {', '.join(differing)}. Give "
            "trees with an array for each parameter, or for each of the part that `optimized` names."
        )
    rows = [known[name] for name in names]
    small = [_taken(_of_shape(leaf, shape), its) for leaf, (shape, its) in zip(leaves, rows, strict=True)]
    return jax.tree.unflatten(treedef, small)


def _of_shape(leaf: Any, shape: tuple[int, ...]) -> Any:
    if jnp.shape(leaf) != shape:
        raise ValueError(f"an array has shape {jnp.shape(leaf)}, and the parameter in its place has {shape}.")
    return leaf


def put_back(graph: Channels, kept: Mapping[str, np.ndarray], tree: PyTree) -> PyTree:
    """A tree of what is left in the full shapes, 0 where channels are gone; see `taken`."""
    leaves, treedef = jax.tree.flatten(tree)
    columns = zip(leaves, jax.tree.leaves(graph.params), _entries(graph, kept), strict=True)
    full = [
        leaf if its is None else _put_back(_of_shape(leaf, tuple(map(len, its))), like.shape, its)
        for leaf, like, its in columns
    ]
    return jax.tree.unflatten(treedef, full)


def _put_back(leaf: Any, shape: tuple[int, ...], entries: list[np.ndarray]) -> jax.Array:
    if isinstance(leaf, jax.core.Tracer):
        return jnp.zeros(shape, leaf.dtype).at[jnp.ix_(*entries)].set(leaf)
    full = np.zeros(shape, leaf.dtype)  # eight times as fast on CPUs as the same scatter by XLA
    full[np.ix_(*entries)] = leaf
    return jnp.asarray(full)


def _check_tree(graph: ChannelGraph, params: PyTree) -> None:
    shapes = [leaf.shape for leaf in aligned(graph.params, params, "params")]
    if shapes != [leaf.shape for leaf in jax.tree.leaves(graph.params)]:
        raise ValueError("the parameters have other shapes than those of the graph: make a graph of these.")


def _entries(graph: Channels, kept: Mapping[str, np.ndarray]) -> list[list[np.ndarray] | None]:
    """For each parameter that shrinks the entries left along every axis."""
    flags: list[list[np.ndarray] | None] = [None] * len(jax.tree.leaves(graph.params))
    for leaf, like in enumerate(jax.tree.leaves(graph.params)):
        flags[leaf] = [np.ones(length, bool) for length in like.shape]
    is_touched = [False] * len(flags)
    for name, left in kept.items():
        group = graph.groups[name]
        stays = np.append(np.isin(np.arange(group.size), left), True)  # the last for entries of no channel
        for member in group.members:
            flags[member.leaf][member.axis] &= stays[member.labels]  # type: ignore[index]
            is_touched[member.leaf] = True
    return [
        [np.flatnonzero(axis) for axis in axes or []] if touched else None
        for axes, touched in zip(flags, is_touched, strict=True)
    ]


def _taken(leaf: Any, entries: list[np.ndarray] | None) -> Any:
    shorter = {axis: its for axis, its in enumerate(entries or []) if len(its) < leaf.shape[axis]}
    return _part(leaf, shorter) if shorter else leaf


@jax.jit
def _part(leaf: jax.Array, entries: dict[int, np.ndarray]) -> jax.Array:
    for axis, its in entries.items():
        leaf = jnp.take(leaf, its, axis=axis)
    return leaf


def taken_masks(graph: Channels, kept: Mapping[str, np.ndarray], params: PyTree, masks: PyTree) -> PyTree:
    """Masks of what is left; `core.NOT_PRUNED` where a parameter has none. See `taken`."""
    left = [
        _taken(mask, entries) if is_pruned(mask) else NOT_PRUNED
        for mask, entries in zip(aligned(params, masks, "masks"), _entries(graph, kept), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(params), left)


def narrowed(graph: ChannelGraph, kept: Mapping[str, np.ndarray]) -> Callable[..., Any]:
    """The function of the graph for parameters that have lost channels; see `taken`."""
    networks: dict[Any, tuple[Any, Sizes]] = {}

    def apply(params: PyTree, *inputs: Any) -> Any:
        leaves, treedef = jax.tree.flatten(inputs)
        key = treedef, tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
        if key not in networks:
            network = followed(graph.apply, graph.params, inputs)
            networks[key] = network, _sizes(graph, kept, network.operands)
        return _narrow(*networks[key], params, *inputs)

    return apply


def _narrow(network: Network, sizes: Sizes, params: PyTree, *inputs: Any) -> Any:
    results = run(sizes, network.program, network.walked, [*jax.tree.leaves(params), *jax.tree.leaves(inputs)])
    return jax.tree.unflatten(network.result_tree, results)


def _sizes(graph: ChannelGraph, kept: Mapping[str, np.ndarray], operands: Sequence[Any]) -> Sizes:
    left: dict[Factor, np.ndarray] = {}
    for name, channels in kept.items():
        first = graph.groups[name].members[0]
        axis = operands[first.leaf].axes[first.axis]
        match = [factor for factor in movable(axis) if np.array_equal(labels(axis, factor), first.labels)]
        if not match:
            raise ValueError(
                f"with inputs of these shapes the channels of {name!r} cannot leave: make a graph of these inputs."
            )
        left[match[0]] = channels
    return Sizes(left)


def _smaller(
    graph: ChannelGraph, params: PyTree, masks: PyTree, kept: Mapping[str, np.ndarray]
) -> tuple[PyTree, PyTree]:
    """What is left of parameters, on the masks that are left, and these; nothing of the full size is copied."""
    small_masks = taken_masks(graph, kept, params, masks)
    small = jax.jit(lambda params, masks: apply_masks(taken(graph, kept, params), masks))  # one program for all shapes
    return small(params, small_masks), small_masks


def _differences(
    graph: ChannelGraph, params: PyTree, masks: PyTree, kept: Mapping[str, np.ndarray], small: PyTree
) -> float:
    """How far outputs differ once channels are gone, as a share of the largest."""
    inputs = jax.tree.map(_example, graph.inputs)
    masked = jax.jit(lambda params, masks, *inputs: graph.apply(apply_masks(params, masks), *inputs))
    before = jax.tree.leaves(masked(params, masks, *inputs))
    network, entries = followed(graph.apply, graph.params, inputs), _entries(graph, kept)
    after = jax.tree.leaves(
        jax.jit(functools.partial(_narrow, network, _sizes(graph, kept, network.operands)))(small, *inputs)
    )
    whole = [
        old if leaf is None else _taken(old, entries[leaf]) for old, leaf in zip(before, network.renewed, strict=True)
    ]
    shares = [0.0]
    for old, new in zip(whole, after, strict=True):
        if jnp.size(old) and jnp.issubdtype(old.dtype, jnp.inexact):
            wide = np.asarray(old, np.float64), np.asarray(new, np.float64)
            shares.append(float(np.max(np.abs(wide[0] - wide[1])) / (np.max(np.abs(wide[0])) or 1.0)))
    return max(shares) if all(map(np.isfinite, shares)) else float("nan")


def _rounding(graph: ChannelGraph) -> float:
    """What sums in another order may change outputs by."""
    outputs = jax.tree.leaves(jax.eval_shape(graph.apply, graph.params, *graph.inputs))
    return max(
        [1e-4, *(8 * float(jnp.finfo(out.dtype).eps) for out in outputs if jnp.issubdtype(out.dtype, jnp.inexact))]
    )


def _example(leaf: Any) -> Any:
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return jnp.zeros(leaf.shape, leaf.dtype)
    return jax.random.normal(jax.random.key(0), leaf.shape, leaf.dtype)


def _not_the_same(
    graph: ChannelGraph,
    params: PyTree,
    masks: PyTree,
    kept: Mapping[str, np.ndarray],
    difference: float,
    tolerance: float,
) -> str:
    alone = {}
    for name, left in kept.items():
        small, _ = _smaller(graph, params, masks, {name: left})
        alone[name] = _differences(graph, params, masks, {name: left}, small)
    name = max(alone, key=lambda name: np.nan_to_num(alone[name], nan=np.inf))
    makers = ", ".join(member.path for member in graph.groups[name].members if member.makes)
    return (
        f"without the channels of {name!r} outputs differ by {alone[name]:.1e} of the largest (all groups: "
        f"{difference:.1e}; allowed: {tolerance:.0e}). A pruned channel must be 0 for all that read it: prune its bias "
        f"and its scale and shift of a norm as well ({makers}), and keep channels whose statistics, sigmoid or softmax "
        "others see."
    )


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
    entries = _entries(graph, kept)
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
        return _taken(leaf, entries[owner])

    return jax.tree.unflatten(treedef, list(map(taken, leaves, owners(state, params))))


def sparse_states(state: PyTree) -> list[SparseState]:
    found: list[SparseState] = []
    map_sparse_states(lambda sparse: found.append(sparse) or sparse, state)  # type: ignore[func-returns-value]
    return found
